//! What instructions mean: every instruction and flag with a type. Variables are still in the text; [`crate::convert`] expands them.
mod csv;
mod flags;
mod mount;
mod parse;
mod units;

use crate::Lines;

pub use csv::fields as csv_fields;
pub use mount::{Device, Mount, MountKind, MountText, Sharing};
pub(crate) use parse::parse_one;
pub use parse::{Dockerfile, parse};
pub use units::{Chmod, parse_chmod, parse_signal};

/// From one FROM to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Lower case; empty if the stage has none.
    pub name: String,
    pub base: String,
    /// Of `--platform`; empty if not given.
    pub platform: String,
    /// The word that was written for FROM.
    pub keyword: String,
    pub code: String,
    /// `None` for stages that only exist because something copies or mounts from an image.
    pub lines: Option<Lines>,
    pub comments: Vec<String>,
    pub description: String,
    pub instructions: Vec<Instruction>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    pub command: Command,
    /// The keyword as written.
    pub keyword: String,
    /// The whole instruction as written, without heredocs.
    pub code: String,
    pub lines: Lines,
    pub comments: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Add(Box<Add>),
    Arg(Vec<Arg>),
    Cmd(CommandLine),
    Copy(Box<CopyFiles>),
    Entrypoint(CommandLine),
    Env(Vec<Pair>),
    Expose(Vec<String>),
    Healthcheck(oci::Healthcheck),
    Label(Vec<Pair>),
    Maintainer(String),
    /// The instruction to run in images built on this one.
    OnBuild(String),
    Run(Box<Run>),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

impl Command {
    /// Whether it is a step of its own, which counts in `[2/5]`.
    pub fn is_step(&self) -> bool {
        matches!(self, Command::Add(_) | Command::Copy(_) | Command::Run(_) | Command::Workdir(_))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair {
    pub key: String,
    pub value: String,
    /// The legacy form, a blank instead of `=`.
    pub legacy: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arg {
    pub key: String,
    pub value: Option<String>,
    pub description: String,
}

/// A command line that may be meant for a shell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    pub args: Vec<String>,
    pub heredocs: Vec<InlineFile>,
    /// Not a JSON array.
    pub shell: bool,
}

/// A heredoc of RUN.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InlineFile {
    pub name: String,
    pub data: String,
    pub chomp: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    pub sources: Vec<String>,
    pub inline: Vec<InlineSource>,
    pub dest: String,
}

/// A heredoc of ADD or COPY.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InlineSource {
    pub path: String,
    pub data: String,
    pub expand: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Add {
    pub files: Files,
    pub chown: String,
    pub chmod: String,
    pub link: bool,
    pub exclude: Vec<String>,
    pub keep_git_dir: Option<bool>,
    pub checksum: String,
    pub unpack: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyFiles {
    pub files: Files,
    pub from: String,
    pub chown: String,
    pub chmod: String,
    pub link: bool,
    pub exclude: Vec<String>,
    pub parents: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    pub line: CommandLine,
    pub mounts: Vec<MountText>,
    pub devices: Vec<Device>,
    pub network: RunNetwork,
    pub security: RunSecurity,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunNetwork {
    #[default]
    Default,
    None,
    Host,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunSecurity {
    #[default]
    Sandbox,
    Insecure,
}

/// Names of all instructions, upper case.
pub const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];
