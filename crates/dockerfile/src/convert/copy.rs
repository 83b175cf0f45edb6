//! ADD and COPY: one file op with an action for each source.
use llb::progress_group::ProgressGroup;
use llb::{Copy, FileActionKind, Metadata};
use oci::{Digest, Timestamp};
use patterns::{base, clean, join};

use super::plan::{NodeId, Planned, PlannedAction, State};
use super::{Converter, dispatch, image, name, paths, validate};
use crate::git_ref::{GitRef, percent_decode};
use crate::instruction::{self, Add, Chmod, CopyFiles, Files, Instruction, parse_chmod};
use crate::lint::Linter;
use crate::source::{self, describe};
use crate::text::quote;
use crate::{Error, Result};

/// What ADD and COPY have in common.
pub(super) struct Spec<'a> {
    is_add: bool,
    files: &'a Files,
    chown: &'a str,
    chmod: &'a str,
    link: bool,
    exclude: &'a [String],
    parents: bool,
    keep_git_dir: Option<bool>,
    checksum: &'a str,
    unpack: Option<bool>,
    instruction: &'a Instruction,
}

impl<'a> Spec<'a> {
    pub fn add(add: &'a Add, instruction: &'a Instruction) -> Self {
        Self {
            is_add: true,
            files: &add.files,
            chown: &add.chown,
            chmod: &add.chmod,
            link: add.link,
            exclude: &add.exclude,
            parents: false,
            keep_git_dir: add.keep_git_dir,
            checksum: &add.checksum,
            unpack: add.unpack,
            instruction,
        }
    }

    pub fn copy(copy: &'a CopyFiles, instruction: &'a Instruction) -> Self {
        Self {
            is_add: false,
            files: &copy.files,
            chown: &copy.chown,
            chmod: &copy.chmod,
            link: copy.link,
            exclude: &copy.exclude,
            parents: copy.parents,
            keep_git_dir: None,
            checksum: "",
            unpack: None,
            instruction,
        }
    }

    /// What all actions of the instruction share.
    fn template(&self) -> Result<Copy> {
        let mut copy = Copy {
            owner: (!self.chown.is_empty()).then(|| dispatch::owner(self.chown)),
            exclude_patterns: self.exclude.to_vec(),
            create_dest_path: true,
            ..Copy::default()
        };
        if !self.chmod.is_empty() {
            match parse_chmod(self.chmod)? {
                Chmod::Octal(mode) => copy.mode = mode as i32,
                Chmod::Symbolic(change) => {
                    copy.mode = 0;
                    copy.mode_str = change;
                }
            }
        }
        Ok(copy)
    }

    fn check(&self) -> Result<()> {
        if self.checksum.is_empty() {
            return Ok(());
        }
        match self.files.sources.as_slice() {
            [source] if is_http(source) || matches!(GitRef::parse(source), Some(Ok(_))) => Ok(()),
            [_] => Err(Error::new("checksum requires HTTP(S) or Git sources")),
            _ => Err(Error::new("checksum can't be specified for multiple sources")),
        }
    }

    /// `COPY --chown=a src dest # buildkit`
    fn history_text(&self) -> String {
        let mut text = String::from(if self.is_add { "ADD" } else { "COPY" });
        if self.parents {
            text.push_str(" --parents");
        }
        for (flag, value) in [("chown", self.chown), ("chmod", self.chmod)] {
            if !value.is_empty() {
                text.push_str(&format!(" --{flag}={value}"));
            }
        }
        self.files.sources.iter().for_each(|source| text.push_str(&format!(" {source}")));
        self.files.inline.iter().for_each(|inline| text.push_str(&format!(" <<{}", inline.path)));
        format!("{text} {} # buildkit", self.files.dest)
    }
}

/// An HTTP(S) URL that is not a git repository.
pub(super) fn is_http(source: &str) -> bool {
    (source.starts_with("http://") || source.starts_with("https://")) && !matches!(GitRef::parse(source), Some(Ok(_)))
}

/// What a download is called.
pub(super) fn http_filename(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default().split_once("://").map_or("", |(_, rest)| rest);
    let path = path.find('/').map_or("", |at| &path[at..]);
    match percent_decode(path).as_deref().map(base) {
        Some(name) if name != "." && name != "/" => name.to_owned(),
        _ => "__unnamed__".to_owned(),
    }
}

/// `sha256:…` and its like.
pub(super) fn check_digest(text: &str) -> Result<()> {
    let Some((algorithm, encoded)) = text.split_once(':') else { return Err(Error::new("invalid checksum digest format")) };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ if algorithm.is_empty() || encoded.is_empty() => return Err(Error::new("invalid checksum digest format")),
        _ => return Err(Error::new("unsupported digest algorithm")),
    };
    if encoded.len() != length {
        return Err(Error::new("invalid checksum digest length"));
    }
    text.parse::<Digest>().map(|_| ()).map_err(|_| Error::new("invalid checksum digest format"))
}

impl Converter<'_> {
    /// `source` is the stage to copy from, if it is not the build context.
    pub(super) async fn copy_step(
        &mut self,
        index: usize,
        source: Option<usize>,
        spec: &Spec<'_>,
        linter: &Linter,
        epoch: Option<Timestamp>,
    ) -> Result<()> {
        let platform = self.platform_of(index);
        let dest = destination(&self.stages[index].state, &spec.files.dest, &platform.os)?;
        let template = Copy { dest, ..spec.template()? };
        spec.check()?;

        let env = self.stages[index].state.env.clone();
        let text = name::shown(&spec.instruction.code, &self.lexer, &env);
        let shown = self.options.multi_platform.then_some(&platform);
        let step_name = name::prefix(&mut self.stages[index], &text, shown, &env);

        let files = source.map_or(Some(self.context), |source| self.stages[source].state.files);
        let mut keep_git_dir = spec.keep_git_dir;
        let mut checksum = spec.checksum.to_owned();
        let mut actions = Vec::new();
        for source in &spec.files.sources {
            let action = match GitRef::parse(source) {
                Some(Err(error)) => return Err(error),
                Some(Ok(git)) if !git.like_a_path => {
                    self.git_action(spec, git, &mut keep_git_dir, &mut checksum, &template, &step_name).await?
                }
                _ if is_http(source) => self.http_action(spec, source, &checksum, &template, &step_name)?,
                _ => {
                    let ignore = self.ignore.as_ref().filter(|_| files == Some(self.context));
                    validate::ignored_source(source, spec.is_add, ignore, spec.instruction.lines, linter);
                    path_action(spec, source, &template, files, &platform.os)?
                }
            };
            actions.push(action);
        }
        for inline in &spec.files.inline {
            actions.push(self.inline_action(inline, &template, &platform.os)?);
        }

        let mut metadata = Metadata { ignore_cache: self.stages[index].ignore_cache, ..Metadata::default() };
        describe(&mut metadata, "llb.customname", &step_name);
        let place = Some(spec.instruction.lines);
        let below = self.stages[index].state.files;
        let result = if spec.link && spec.chmod.is_empty() && self.options.has_cap("mergeop") {
            let id = progress_id(&step_name, index, spec.instruction, &platform.to_string());
            let group = |weak| Some(ProgressGroup { id: id.clone(), name: step_name.clone(), weak });
            let mut linked = Metadata { progress_group: group(false), ..metadata.clone() };
            let link_name = name::numbered(&self.stages[index], &format!("LINK {text}"), shown, &env);
            describe(&mut linked, "llb.customname", link_name);
            metadata.progress_group = group(true);
            let copied = self.plan.add(Planned::File { base: None, actions }, metadata, place);
            below.map_or(copied, |below| self.plan.add(Planned::Merge([below, copied]), linked, place))
        } else {
            self.plan.add(Planned::File { base: below, actions }, metadata, place)
        };
        let stage = &mut self.stages[index];
        stage.state.files = Some(result);
        image::commit(&mut stage.image, spec.history_text(), true, epoch);
        Ok(())
    }

    async fn git_action(
        &mut self,
        spec: &Spec<'_>,
        mut git: GitRef,
        keep_git_dir: &mut Option<bool>,
        checksum: &mut String,
        template: &Copy,
        step_name: &str,
    ) -> Result<PlannedAction> {
        if !spec.is_add {
            return Err(Error::new("source can't be a git ref for COPY"));
        }
        if let (Some(flag), Some(query)) = (*keep_git_dir, git.keep_git_dir)
            && flag != query
        {
            return Err(Error::new("inconsistent keep-git-dir configuration"));
        }
        *keep_git_dir = git.keep_git_dir.or(*keep_git_dir);
        if !checksum.is_empty() && !git.checksum.is_empty() && *checksum != git.checksum {
            return Err(Error::new(format!("checksum mismatch {} != {}", quote(checksum), quote(&git.checksum))));
        }
        if !git.checksum.is_empty() {
            checksum.clone_from(&git.checksum);
        }
        git.keep_git_dir = *keep_git_dir;
        git.checksum.clone_from(checksum);
        // Times of files are not for ADD to choose.
        git.mtime.clear();
        let node = self.git_source(&git, Some(step_name)).await;
        let copy = Copy { src: "/".into(), ..template.clone() };
        Ok(PlannedAction { kind: FileActionKind::Copy(Box::new(copy)), from: Some(node) })
    }

    async fn git_source(&mut self, git: &GitRef, step_name: Option<&str>) -> NodeId {
        let known_hosts = match source::ssh_host(git) {
            Some(host) => self.ask.ssh_known_hosts(&host).await,
            None => None,
        };
        let mut found = source::git(git, known_hosts.as_deref());
        if let Some(step_name) = step_name {
            found = found.named(step_name);
        }
        self.plan.add_source(found)
    }

    fn http_action(&mut self, spec: &Spec<'_>, url: &str, checksum: &str, template: &Copy, step_name: &str) -> Result<PlannedAction> {
        if !spec.is_add {
            return Err(Error::new("source can't be a URL for COPY"));
        }
        if !checksum.is_empty() {
            check_digest(checksum)?;
        }
        let filename = http_filename(url);
        let mut found = source::http(url, &filename, checksum).named(step_name);
        describe(&mut found.metadata, "com.docker.dockerfile.v1.command", "");
        let node = self.plan.add_source(found);
        let copy = Copy { src: join(&["/", &filename]), attempt_unpack: spec.unpack.unwrap_or(false), ..template.clone() };
        Ok(PlannedAction { kind: FileActionKind::Copy(Box::new(copy)), from: Some(node) })
    }

    fn inline_action(&mut self, inline: &instruction::InlineSource, template: &Copy, os: &str) -> Result<PlannedAction> {
        let path = paths::without_drive(&inline.path, os, false).map_err(|e| e.context("removing drive letter"))?;
        let node = self.inline_file(&path, inline.data.clone(), 0o644);
        let copy = Copy { src: join(&["/", &paths::to_slash(&path, os)]), ..template.clone() };
        Ok(PlannedAction { kind: FileActionKind::Copy(Box::new(copy)), from: Some(node) })
    }
}

fn destination(state: &State, written: &str, os: &str) -> Result<String> {
    let path = paths::without_drive(written, os, true).map_err(|e| e.context("removing drive letter"))?;
    let dest = if paths::is_absolute(&path, os) {
        paths::normalize("/", &path, os, true)?
    } else {
        // A lone dot is a directory.
        let path = if path.is_empty() || path == "." { "./" } else { &path };
        paths::normalize(&state.dir, path, os, true)?
    };
    Ok(paths::action_path(&state.dir, &dest, true))
}

fn path_action(spec: &Spec<'_>, written: &str, template: &Copy, files: Option<NodeId>, os: &str) -> Result<PlannedAction> {
    let normal = |path: &str| paths::normalize("/", path, os, false).map_err(|e| e.context("removing drive letter"));
    let mut source = written;
    let (mut include, mut required) = (Vec::new(), Vec::new());
    if spec.parents {
        // What stands in front of `/./` is left out at the destination.
        let (parent, pattern) = written.split_once("/./").unwrap_or(("/", written));
        let pattern = normal(pattern)?;
        if !has_wildcards(parent) && !has_wildcards(&pattern) {
            required.push(normal(&join(&[parent, &pattern]))?);
        }
        include.push(pattern.strip_prefix('/').unwrap_or(&pattern).to_owned());
        source = parent;
    }
    let copy = Copy {
        src: join(&["/", &clean(&normal(source)?)]),
        follow_symlink: true,
        dir_copy_contents: true,
        include_patterns: include,
        required_paths: required,
        attempt_unpack: spec.unpack.unwrap_or(spec.is_add),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..template.clone()
    };
    Ok(PlannedAction { kind: FileActionKind::Copy(Box::new(copy)), from: files })
}

fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => _ = chars.next(),
            _ => {}
        }
    }
    false
}

/// Ties the vertices of one linked copy together; must differ between copies of one build.
fn progress_id(step_name: &str, stage: usize, instruction: &Instruction, platform: &str) -> String {
    let lines = instruction.lines;
    Digest::of(format!("{step_name}\0{stage}\0{}\0{}\0{platform}", lines.first, lines.last)).hex()[..25].to_owned()
}
