//! What is known of how one result came about.
use std::sync::Arc;

use llb::{Graph, MountKind, NetMode, Op, SourceOp, Vertex};
use oci::Digest;
use serde::Serialize;

use crate::provenance::request::{Grant, Parameters};
use crate::provenance::sources::{BlobSource, GitSource, HttpSource, ImageSource, Sources};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capture {
    pub request: Parameters,
    pub sources: Sources,
    /// Some step could reach the network.
    pub network_access: bool,
    /// Something went in that `sources` does not tell of.
    pub incomplete: bool,
    /// Some step was behind the proxy.
    pub proxy: bool,
    /// Requests of which it is not known what came.
    pub uncaptured: Vec<Uncaptured>,
}

/// A request through the proxy that is no material, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Uncaptured {
    /// The step's digest.
    pub op: String,
    pub name: String,
    pub method: String,
    pub uri: String,
    pub reason: String,
}

impl Capture {
    /// What the graph of an evaluated result tells. `pin` says what a source vertex was pinned to.
    /// `captured` says what went through the proxy while an exec vertex ran.
    pub fn of(graph: &Graph, pin: impl Fn(&Digest) -> Option<String>, captured: impl Fn(&Digest) -> Option<Arc<worker::Captured>>) -> Self {
        let mut capture = Self::default();
        let index = graph.index();
        let mut seen = vec![false; graph.vertices.len()];
        let mut pending: Vec<usize> = graph.result.iter().filter_map(|edge| index.get(&edge.vertex).copied()).collect();
        while let Some(at) = pending.pop() {
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            let vertex = &graph.vertices[at];
            capture.add(vertex, &pin);
            if let (true, Op::Exec(op)) = (vertex.proxied, &vertex.op) {
                capture.proxied(vertex, &op.meta.args.join(" "), captured(&vertex.digest));
            }
            pending.extend(vertex.inputs.iter().rev().filter_map(|edge| index.get(&edge.vertex).copied()));
        }
        capture
    }

    fn add(&mut self, vertex: &Vertex, pin: &impl Fn(&Digest) -> Option<String>) {
        match &vertex.op {
            Op::Source(op) => self.source(op, vertex, pin(&vertex.digest)),
            Op::Exec(op) => {
                for mount in &op.mounts {
                    match &mount.kind {
                        MountKind::Secret(secret) => self.secret(&secret.id, secret.optional),
                        MountKind::Ssh(ssh) => self.ssh(&ssh.id, ssh.optional),
                        _ => {}
                    }
                }
                for secret in &op.secret_env {
                    self.secret(&secret.id, secret.optional);
                }
                self.network_access |= op.network != NetMode::None;
            }
            // What a nested build used is not known.
            Op::Build(_) => self.incomplete = true,
            _ => {}
        }
    }

    fn proxied(&mut self, vertex: &Vertex, name: &str, captured: Option<Arc<worker::Captured>>) {
        self.proxy = true;
        // Nothing is known of a step that was found in the cache.
        let Some(captured) = captured else { return };
        for material in &captured.materials {
            self.sources.add_http(HttpSource { url: material.url.clone(), digest: Some(material.digest.clone()) });
        }
        self.incomplete |= !captured.incomplete.is_empty();
        self.uncaptured.extend(captured.incomplete.iter().map(|request| Uncaptured {
            op: vertex.digest.to_string(),
            name: name.to_owned(),
            method: request.method.clone(),
            uri: request.url.clone(),
            reason: request.reason.to_owned(),
        }));
    }

    fn source(&mut self, op: &SourceOp, vertex: &Vertex, pin: Option<String>) {
        let Some((scheme, rest)) = op.identifier.split_once("://") else { return };
        let digest = || pin.as_deref().and_then(|pin| pin.parse::<Digest>().ok());
        let attr = |key: &str| op.attrs.get(key).filter(|v| !v.is_empty());
        match scheme {
            "docker-image" | "oci-layout" => self.sources.add_image(ImageSource {
                reference: rest.to_owned(),
                platform: vertex.platform.clone(),
                digest: digest(),
                local: scheme == "oci-layout",
            }),
            "docker-image+blob" | "oci-layout+blob" => {
                self.sources.add_blob(BlobSource { reference: rest.to_owned(), digest: digest(), local: scheme == "oci-layout+blob" });
            }
            "local" => self.sources.add_local(rest),
            "http" | "https" => self.sources.add_http(HttpSource { url: op.identifier.clone(), digest: digest() }),
            "git" => {
                let (place, fragment) = rest.split_once('#').unwrap_or((rest, ""));
                let remote = attr("git.fullurl").map_or(place, String::as_str);
                let remote = if remote.contains("://") || is_scp(remote) { remote.to_owned() } else { format!("https://{remote}") };
                let reference = fragment.split(':').next().unwrap_or_default();
                let url = if reference.is_empty() { remote } else { format!("{remote}#{reference}") };
                self.sources.add_git(GitSource { url, commit: pin.unwrap_or_default(), bundle: attr("git.bundle").cloned() });
                for key in ["git.authtokensecret", "git.authheadersecret"] {
                    if let Some(id) = attr(key) {
                        self.secret(id, true);
                    }
                }
                if let Some(id) = attr("git.mountsshsock") {
                    self.ssh(id, true);
                }
            }
            _ => {}
        }
    }

    fn secret(&mut self, id: &str, optional: bool) {
        grant(&mut self.request.secrets, id, optional);
    }

    fn ssh(&mut self, id: &str, optional: bool) {
        grant(&mut self.request.ssh, if id.is_empty() { "default" } else { id }, optional);
    }

    /// Adds what went into another result.
    pub fn merge(&mut self, other: &Self) {
        self.sources.merge(&other.sources);
        for secret in &other.request.secrets {
            self.secret(&secret.id, secret.optional);
        }
        for ssh in &other.request.ssh {
            self.ssh(&ssh.id, ssh.optional);
        }
        self.network_access |= other.network_access;
        self.incomplete |= other.incomplete;
        self.proxy |= other.proxy;
        for request in &other.uncaptured {
            if !self.uncaptured.contains(request) {
                self.uncaptured.push(request.clone());
            }
        }
    }

    pub fn sort(&mut self) {
        self.sources.sort();
        self.request.secrets.sort();
        self.request.ssh.sort();
        self.uncaptured.sort();
    }

    /// Whether `sources` is all that went in, bit for bit.
    pub fn has_all_materials(&self) -> bool {
        !self.incomplete && self.sources.local.is_empty()
    }
}

/// What is needed once is needed.
fn grant(known: &mut Vec<Grant>, id: &str, optional: bool) {
    match known.iter_mut().find(|grant| grant.id == id) {
        Some(grant) => grant.optional &= optional,
        None => known.push(Grant { id: id.to_owned(), optional }),
    }
}

/// `user@host:path`
fn is_scp(remote: &str) -> bool {
    remote.split_once('@').is_some_and(|(user, rest)| !user.contains('/') && rest.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use llb::{Builder, Edge, ExecOp, Metadata, Mount, SecretEnv, SecretOpt};

    fn source(builder: &mut Builder, identifier: &str, attrs: &[(&str, &str)]) -> Edge {
        let attrs: BTreeMap<_, _> = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        builder.add(Op::Source(SourceOp { identifier: identifier.into(), attrs }), Vec::new(), None, Vec::new(), Metadata::default())
    }

    #[test]
    fn a_graph_tells_its_sources_and_grants() {
        let mut builder = Builder::new();
        let image = source(&mut builder, "docker-image://docker.io/library/a:latest", &[]);
        let git = source(&mut builder, "git://h/x.git#v1:sub", &[("git.fullurl", "https://h/x.git"), ("git.authtokensecret", "TOKEN")]);
        let unused = source(&mut builder, "local://context", &[]);
        let mount = |dest: &str, input, kind| Mount {
            dest: dest.into(),
            input,
            selector: String::new(),
            output: (dest == "/").then_some(0),
            readonly: false,
            kind,
            content_cache: Default::default(),
            result_id: String::new(),
        };
        let secret = |id: &str, optional| SecretOpt { id: id.into(), optional, ..SecretOpt::default() };
        let exec = ExecOp {
            mounts: vec![
                mount("/", Some(0), MountKind::Bind),
                mount("/src", Some(1), MountKind::Bind),
                mount("/s", None, MountKind::Secret(secret("one", true))),
                mount("/agent", None, MountKind::Ssh(secret("", false))),
            ],
            secret_env: vec![SecretEnv { id: "one".into(), name: "ONE".into(), optional: false }],
            network: NetMode::None,
            ..ExecOp::default()
        };
        let run = builder.add(Op::Exec(Box::new(exec)), vec![image, git.clone()], None, Vec::new(), Metadata::default());
        let graph = builder.finish(Some(run));
        let digest = Digest::of("pin");
        let capture =
            Capture::of(&graph, |vertex| Some(if *vertex == git.vertex { "ab".repeat(20) } else { digest.to_string() }), |_| None);
        assert_eq!(capture.sources.images[0].digest, Some(digest));
        assert_eq!(capture.sources.git, [GitSource { url: "https://h/x.git#v1".into(), commit: "ab".repeat(20), bundle: None }]);
        assert!(capture.sources.local.is_empty(), "{unused:?} is not part of the result");
        let grant = |id: &str, optional| Grant { id: id.into(), optional };
        assert_eq!(capture.request.secrets, [grant("one", false), grant("TOKEN", true)]);
        assert_eq!(capture.request.ssh, [grant("default", false)]);
        assert!(!capture.network_access && capture.has_all_materials());
        let local = builder_with_local();
        assert!(!Capture::of(&local, |_| None, |_| None).has_all_materials());
    }

    fn builder_with_local() -> Graph {
        let mut builder = Builder::new();
        let local = source(&mut builder, "local://context", &[]);
        builder.finish(Some(local))
    }
}
