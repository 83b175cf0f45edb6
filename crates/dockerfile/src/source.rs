//! Source ops as BuildKit's client library writes them: identifier, attributes and the capabilities that they rely on.
use std::collections::BTreeMap;

use llb::{Metadata, Op, SourceOp};
use oci::Platform;

use crate::git_ref::{GitRef, GitUrl};

/// A source op with what goes beside it into a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub op: SourceOp,
    /// Only of sources that differ by platform.
    pub platform: Option<Platform>,
    pub metadata: Metadata,
}

impl Source {
    fn new(identifier: String, cap: &str) -> Self {
        let mut source = Self { op: SourceOp { identifier, attrs: BTreeMap::new() }, platform: None, metadata: Metadata::default() };
        source.cap(cap);
        source
    }

    fn cap(&mut self, id: &str) {
        self.metadata.caps.insert(id.to_owned(), true);
    }

    fn attr(&mut self, key: &str, value: impl Into<String>) {
        self.op.attrs.insert(key.to_owned(), value.into());
    }

    fn attr_with_cap(&mut self, key: &str, value: impl Into<String>, cap: &str) {
        self.attr(key, value);
        self.cap(cap);
    }

    /// What progress calls it.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        describe(&mut self.metadata, "llb.customname", name);
        self
    }

    /// A graph of just this.
    pub fn into_graph(self) -> llb::Graph {
        let mut builder = llb::Builder::new();
        let edge = builder.add(Op::Source(self.op), Vec::new(), self.platform, Vec::new(), self.metadata);
        builder.finish(Some(edge))
    }
}

pub(crate) fn describe(metadata: &mut Metadata, key: &str, value: impl Into<String>) {
    metadata.description.insert(key.to_owned(), value.into());
}

/// How an image is looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResolveMode {
    #[default]
    Default,
    ForcePull,
    PreferLocal,
}

impl ResolveMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::ForcePull => "pull",
            Self::PreferLocal => "local",
        }
    }
}

/// `reference` is in its full form.
pub fn image(reference: &str, platform: Option<Platform>, mode: ResolveMode) -> Source {
    let mut source = Source::new(format!("docker-image://{reference}"), "source.image");
    source.platform = platform;
    if mode != ResolveMode::Default {
        source.attr("image.resolvemode", mode.as_str());
    }
    if mode == ResolveMode::ForcePull {
        source.cap("source.image.resolvemode");
    }
    source
}

pub fn oci_layout(reference: &str, platform: Option<Platform>, session_id: &str, store_id: &str) -> Source {
    let mut source = Source::new(format!("oci-layout://{reference}"), "source.ocilayout");
    source.platform = platform;
    if !session_id.is_empty() {
        source.attr("oci.session", session_id);
    }
    if !store_id.is_empty() {
        source.attr("oci.store", store_id);
    }
    source
}

/// An empty checksum is none.
pub fn http(url: &str, filename: &str, checksum: &str) -> Source {
    let mut source = Source::new(url.to_owned(), "source.http");
    if !checksum.is_empty() {
        source.attr_with_cap("http.checksum", checksum, "source.http.checksum");
    }
    source.attr("http.filename", filename);
    source
}

/// A directory of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    pub name: String,
    pub session_id: String,
    pub exclude: Vec<String>,
    pub follow_paths: Vec<String>,
    pub shared_key_hint: String,
    /// Do not compare with an earlier transfer: everything is sent again.
    pub no_diff: bool,
}

pub fn local(local: &Local) -> Source {
    let mut source = Source::new(format!("local://{}", local.name), "source.local");
    let list = |items: &[String]| oci::gojson::to_string(items);
    if !local.session_id.is_empty() {
        source.attr_with_cap("local.session", &local.session_id, "source.local.sessionid");
    }
    if !local.follow_paths.is_empty() {
        source.attr_with_cap("local.followpaths", list(&local.follow_paths), "source.local.followpaths");
    }
    if !local.exclude.is_empty() {
        source.attr_with_cap("local.excludepatterns", list(&local.exclude), "source.local.excludepatterns");
    }
    if !local.shared_key_hint.is_empty() {
        source.attr_with_cap("local.sharedkeyhint", &local.shared_key_hint, "source.local.sharedkeyhint");
    }
    if local.no_diff {
        source.attr("local.differ", "none");
    }
    source
}

/// `git.checksum`, `git.keepgitdir` and the like are taken from `git`. `known_hosts` is what the ssh host's keys are known to be, if anything.
pub fn git(git: &GitRef, known_hosts: Option<&str>) -> Source {
    let url = GitUrl::parse(&git.remote).or_else(|| GitUrl::parse(&format!("https://{}", git.remote)));
    let (identifier, remote) = match &url {
        Some(url) => {
            let mut id = format!("{}{}", url.host, patterns::join(&["/", &url.path]));
            if !git.reference.is_empty() || !git.subdir.is_empty() {
                id.push_str(&format!("#{}", git.reference));
            }
            if !git.subdir.is_empty() {
                id.push_str(&format!(":{}", git.subdir));
            }
            (id, url.remote.as_str())
        }
        None => (git.remote.clone(), git.remote.as_str()),
    };
    let mut source = Source::new(format!("git://{identifier}"), "source.git");
    if git.keep_git_dir == Some(true) {
        source.attr_with_cap("git.keepgitdir", "true", "source.git.keepgitdir");
    }
    if !remote.is_empty() {
        source.attr_with_cap("git.fullurl", remote, "source.git.fullurl");
    }
    source.attr("git.authtokensecret", "GIT_AUTH_TOKEN");
    source.attr("git.authheadersecret", "GIT_AUTH_HEADER");
    if url.is_some_and(|url| url.scheme == "ssh") {
        if let Some(keys) = known_hosts {
            source.attr("git.knownsshhosts", keys);
        }
        source.cap("source.git.knownsshhosts");
        source.attr_with_cap("git.mountsshsock", "default", "source.git.mountsshsock");
    }
    if !git.checksum.is_empty() {
        source.attr_with_cap("git.checksum", &git.checksum, "source.git.checksum");
    }
    if git.submodules == Some(false) {
        source.attr_with_cap("git.skipsubmodules", "true", "source.git.skipsubmodules");
    }
    if !git.mtime.is_empty() {
        source.attr_with_cap("git.mtime", &git.mtime, "source.git.mtime");
    }
    if git.fetch_by_commit {
        source.attr_with_cap("git.fetchbycommit", "true", "source.git.fetchbycommit");
    }
    source
}

/// The host whose ssh keys [`git`] wants to know.
pub fn ssh_host(git: &GitRef) -> Option<String> {
    GitUrl::parse(&git.remote).filter(|url| url.scheme == "ssh").map(|url| url.host)
}
