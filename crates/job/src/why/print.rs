//! What is remembered of a step that ran.
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::{Ran, RanInput};
use llb::{ContentCache, ExecOp, FileAction, FileActionKind, FileOp, Mount, MountKind, NetMode, Op, Owner, SecurityMode, Vertex, Who};
use oci::Digest;
use serde::{Deserialize, Serialize};

use super::files::Listings;

/// Keys of one input that are remembered.
const MOST_KEYS: usize = 8;
const LONGEST_NAME: usize = 300;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Print {
    /// What progress called it.
    pub name: String,
    pub build: String,
    /// Unix seconds.
    pub at: u64,
    /// Of the op without its inputs, as in its cache key.
    pub digest: String,
    /// What the op's digest is made of, by name: `env WORD`, `command`, `mount /c`. Values are texts where they tell no secrets, else digests.
    pub parts: BTreeMap<String, String>,
    pub inputs: Vec<Input>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    pub origin: Origin,
    /// What it is known by, with the part of it that is used.
    pub keys: Vec<String>,
    pub content: Option<String>,
    /// What is used of it, where that counts by content: paths and digests. Empty if that is not known.
    pub files: BTreeMap<String, String>,
}

/// Where an input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Image(String),
    /// The name that the client gave it, `context` for one.
    Local(String),
    /// Any other source.
    Source(String),
    Step(String),
}

impl Print {
    pub(super) fn of(run: &Ran, build: &str, files: &mut Listings) -> Self {
        let input = |(i, input): (usize, &RanInput)| Input {
            origin: Origin::of(&input.vertex),
            keys: input.keys.iter().take(MOST_KEYS).map(|key| key_of(key.digest(), input.selector.as_ref(), input.output)).collect(),
            content: input.content.as_ref().map(|key| short(key.digest())),
            files: if input.content.is_some() { files.of(&run.vertex, i, input.layer.as_ref()) } else { BTreeMap::new() },
        };
        Self {
            name: cut(&run.vertex.name),
            build: build.to_owned(),
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            digest: short(&run.digest),
            parts: parts(&run.vertex.op),
            inputs: run.inputs.iter().enumerate().map(input).collect(),
        }
    }

    /// Whether a cache takes the one for the other.
    pub fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest
            && self.inputs.len() == other.inputs.len()
            && self.inputs.iter().zip(&other.inputs).all(|(a, b)| a.is_same(b))
    }
}

impl Input {
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.content, &other.content) {
            (Some(a), Some(b)) => a == b,
            _ => self.keys.iter().any(|key| other.keys.contains(key)),
        }
    }
}

impl Origin {
    fn of(vertex: &Vertex) -> Self {
        let Op::Source(source) = &vertex.op else { return Self::Step(cut(&vertex.name)) };
        match source.identifier.split_once("://") {
            Some(("docker-image", reference)) => Self::Image(cut(reference)),
            Some(("local", name)) => Self::Local(cut(name)),
            _ => Self::Source(cut(&source.identifier)),
        }
    }
}

/// The place that a step shares with those that might be its like.
pub(super) fn place(vertex: &Vertex, project: &str) -> String {
    let kind = match &vertex.op {
        Op::Source(_) => "source",
        Op::Exec(_) => "exec",
        Op::File(_) => "file",
        Op::Build(_) => "build",
        Op::Merge(_) => "merge",
        Op::Diff { .. } => "diff",
        Op::Passthrough { .. } => "passthrough",
    };
    let platform = vertex.platform.as_ref().map(ToString::to_string).unwrap_or_default();
    let stage = label(&vertex.name).map_or("", |(stage, _)| stage);
    Digest::of([project, stage, kind, &platform].join("\0")).hex().to_owned()
}

/// Stage and position of a name like `[build 2/4] RUN make`.
pub(super) fn label(name: &str) -> Option<(&str, &str)> {
    let (inner, _) = name.strip_prefix('[')?.split_once(']')?;
    match inner.rsplit_once(' ') {
        Some((stage, position)) if is_position(position) => Some((stage, position)),
        None if is_position(inner) => Some(("", inner)),
        _ => Some((inner, "")),
    }
}

fn is_position(text: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.split_once('/').is_some_and(|(at, of)| number(at) && number(of))
}

fn key_of(key: &Digest, selector: Option<&Digest>, output: u32) -> String {
    let selector = selector.map(short).unwrap_or_default();
    format!("{}/{selector}/{output}", short(key))
}

/// Enough of a digest to tell things apart.
pub(super) fn short(digest: &Digest) -> String {
    digest.hex().chars().take(16).collect()
}

fn cut(text: &str) -> String {
    if text.len() <= LONGEST_NAME {
        return text.to_owned();
    }
    let end = (0..=LONGEST_NAME).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}

fn hidden(value: &str) -> String {
    short(&Digest::of(value))
}

fn parts(op: &Op) -> BTreeMap<String, String> {
    let mut parts = BTreeMap::new();
    match op {
        Op::Exec(op) => exec(op, &mut parts),
        Op::File(op) => file(op, &mut parts),
        Op::Merge(order) => _ = parts.insert("order".into(), format!("{order:?}")),
        Op::Diff { lower, upper } => _ = parts.insert("order".into(), format!("{lower:?} {upper:?}")),
        Op::Source(_) | Op::Build(_) | Op::Passthrough { .. } => {}
    }
    parts
}

fn exec(op: &ExecOp, parts: &mut BTreeMap<String, String>) {
    let mut put = |what: String, value: String| _ = parts.insert(what, value);
    let meta = &op.meta;
    put("command".into(), hidden(&meta.args.join("\0")));
    for entry in &meta.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        put(format!("env {name}"), hidden(value));
    }
    put("working directory".into(), meta.cwd.clone());
    put("user".into(), meta.user.clone());
    put("host name".into(), meta.hostname.clone());
    put("extra hosts".into(), meta.extra_hosts.iter().map(|h| h.host.as_str()).collect::<Vec<_>>().join(" "));
    put("limits".into(), format!("{:?}", meta.ulimits));
    put("cgroup parent".into(), meta.cgroup_parent.clone());
    put("valid exit codes".into(), format!("{:?}", meta.valid_exit_codes));
    put("network mode".into(), network(op.network).into());
    put("security mode".into(), if op.security == SecurityMode::Insecure { "insecure" } else { "sandbox" }.into());
    for secret in &op.secret_env {
        put(format!("secret {}", secret.id), format!("${} optional={}", secret.name, secret.optional));
    }
    for device in &op.cdi_devices {
        put(format!("device {}", device.name), device.optional.to_string());
    }
    for mount in &op.mounts {
        let (what, value) = of_mount(mount);
        put(what, value);
    }
}

fn network(mode: NetMode) -> &'static str {
    match mode {
        NetMode::Unset => "default",
        NetMode::Host => "host",
        NetMode::None => "none",
    }
}

fn of_mount(mount: &Mount) -> (String, String) {
    let dest = &mount.dest;
    let shared = format!("readonly={} output={:?} content={}", mount.readonly, mount.output, mount.content_cache != ContentCache::Off);
    match &mount.kind {
        MountKind::Bind => (format!("mount {dest}"), shared),
        // Of a cache mount little more than its place counts.
        MountKind::Cache { .. } => (format!("cache mount {dest}"), shared),
        MountKind::Tmpfs { size } => (format!("mount {dest}"), format!("tmpfs {size}")),
        MountKind::Secret(o) => (format!("secret {}", o.id), format!("{dest} {} {} {:o} {}", o.uid, o.gid, o.mode, o.optional)),
        MountKind::Ssh(o) => (format!("ssh agent {}", o.id), format!("{dest} {} {} {:o} {}", o.uid, o.gid, o.mode, o.optional)),
    }
}

fn file(op: &FileOp, parts: &mut BTreeMap<String, String>) {
    for (i, action) in op.actions.iter().enumerate() {
        for (what, value) in of_action(action) {
            // Of several actions the first goes by the plain name.
            let what = if i == 0 { what.to_owned() } else { format!("{what} of action {}", i + 1) };
            parts.insert(what, value);
        }
    }
    parts.insert("number of actions".into(), op.actions.len().to_string());
}

fn of_action(action: &FileAction) -> Vec<(&'static str, String)> {
    match &action.kind {
        FileActionKind::Copy(copy) => vec![
            // Where the source lies does not count, its name does.
            ("source name", patterns::base(&copy.src).into()),
            ("destination", copy.dest.clone()),
            ("owner", owner(copy.owner.as_ref())),
            ("mode", format!("{} {}", copy.mode, copy.mode_str)),
            ("timestamp", copy.timestamp.to_string()),
            ("include patterns", copy.include_patterns.join(" ")),
            ("exclude patterns", copy.exclude_patterns.join(" ")),
            (
                "copy options",
                format!(
                    "{} {} {} {} {} {} {} {:?}",
                    copy.follow_symlink,
                    copy.dir_copy_contents,
                    copy.attempt_unpack,
                    copy.create_dest_path,
                    copy.allow_wildcard,
                    copy.allow_empty_wildcard,
                    copy.always_replace_existing_dest_paths,
                    copy.required_paths
                ),
            ),
        ],
        FileActionKind::Mkfile { path, mode, data, owner: of, timestamp } => vec![
            ("file name", path.clone()),
            ("content", short(&Digest::of(data))),
            ("mode", mode.to_string()),
            ("owner", owner(of.as_ref())),
            ("timestamp", timestamp.to_string()),
        ],
        FileActionKind::Mkdir { path, mode, make_parents, owner: of, timestamp } => vec![
            ("directory name", path.clone()),
            ("mode", format!("{mode} {make_parents}")),
            ("owner", owner(of.as_ref())),
            ("timestamp", timestamp.to_string()),
        ],
        FileActionKind::Symlink { oldpath, newpath, owner: of, timestamp } => {
            vec![("link", format!("{newpath} -> {oldpath}")), ("owner", owner(of.as_ref())), ("timestamp", timestamp.to_string())]
        }
        FileActionKind::Rm { path, allow_not_found, allow_wildcard } => {
            vec![("path to remove", path.clone()), ("remove options", format!("{allow_not_found} {allow_wildcard}"))]
        }
    }
}

fn owner(owner: Option<&Owner>) -> String {
    let who = |who: &Option<Who>| match who {
        None => String::new(),
        Some(Who::Id(id)) => id.to_string(),
        Some(Who::Name { name, .. }) => name.clone(),
    };
    owner.map(|owner| format!("{}:{}", who(&owner.user), who(&owner.group))).unwrap_or_default()
}
