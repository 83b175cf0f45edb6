//! Where the Dockerfile and the build context come from.
use std::sync::Arc;

use bytes::Bytes;
use dockerfile::source::{self, Local, Source};
use dockerfile::text::parse_bool;
use dockerfile::{GitRef, Lines};
use fault::{Context as _, Detail, Fault, Result};
use llb::{Builder, Copy, FileAction, FileActionKind, FileOp, Graph, Metadata, Op, SourceInfo};
use oci::Digest;
use patterns::{base, clean, dir, join};
use tokio::sync::OnceCell;

use super::head;
use super::opts::{Config, invalid};
use crate::bridge::{Bridge, Ref, SolveRequest};

pub(super) const LANGUAGE: &str = "Dockerfile";
const DOCKERFILE: &str = "Dockerfile";
pub(super) const IGNORE_FILE: &str = ".dockerignore";
const CONTEXT: &str = "context";

/// What is known of the context before the Dockerfile is read.
pub(super) struct BuildContext {
    /// `None`: a directory of the client. A graph without a result is an empty context.
    remote: Option<Arc<Graph>>,
    dockerfile: Option<Arc<Graph>>,
    dockerfile_local: String,
    force_local_dockerfile: bool,
    filename: String,
    ignore: OnceCell<Vec<String>>,
}

impl BuildContext {
    pub async fn open(bridge: &dyn Bridge, config: &Config) -> Result<Self> {
        let mut context = Self {
            remote: None,
            dockerfile: None,
            dockerfile_local: config.opts.get("dockerfilekey").map_or("dockerfile", String::as_str).to_owned(),
            force_local_dockerfile: config.opts.contains_key("dockerfilekey"),
            filename: config.opts.get("filename").map_or(DOCKERFILE, String::as_str).to_owned(),
            ignore: OnceCell::new(),
        };
        let key = config.opts.get("contextkey").map_or(CONTEXT, String::as_str);
        let location = config.opt(key);
        if let Some(git) = GitRef::parse(location) {
            let graph = git_context(location, git.map_err(|e| invalid(e.to_string()))?, config);
            context.remote = Some(graph.clone());
            context.dockerfile = Some(graph);
        } else if location.starts_with("http://") || location.starts_with("https://") {
            context.open_http(bridge, location).await?;
        } else if bridge.build().gateway_caps.contains("frontend.inputs") {
            let mut inputs = bridge.inputs().await.context("failed to get frontend inputs")?;
            if !context.force_local_dockerfile {
                context.dockerfile = inputs.remove(&context.dockerfile_local);
            }
            context.remote = inputs.remove(CONTEXT);
        }
        if let (Some(graph), Some(subdir)) = (&context.remote, config.opts.get("contextsubdir")) {
            context.remote = Some(subdirectory(graph, subdir));
        }
        Ok(context)
    }

    /// An archive is unpacked; anything else is the Dockerfile itself.
    async fn open_http(&mut self, bridge: &dyn Bridge, url: &str) -> Result<()> {
        let source = source::http(url, CONTEXT, "").named("[internal] load remote build context");
        let graph = Arc::new(source.into_graph());
        let reference = solve(bridge, graph.clone()).await.context("failed to resolve httpcontext")?;
        let head = reference.read_file(CONTEXT, Some((0, 1024))).await.context("failed to read downloaded context")?;
        let context = if super::archive::is_archive(&head) {
            let copy = Copy { src: join(&["/", CONTEXT]), dest: "/".into(), attempt_unpack: true, ..Copy::default() };
            copied(&graph, copy)
        } else {
            self.filename = CONTEXT.into();
            graph
        };
        self.remote = Some(context.clone());
        self.dockerfile = Some(context);
        Ok(())
    }

    pub fn is_local(&self) -> bool {
        self.remote.is_none()
    }

    /// `paths` narrow a directory of the client; none means all of it. `None` is an empty context.
    pub async fn graph(
        &self,
        bridge: &dyn Bridge,
        config: &Config,
        entrypoint: &Entrypoint,
        paths: &[String],
    ) -> Result<Option<Arc<Graph>>> {
        if let Some(graph) = &self.remote {
            return Ok(Some(graph.clone()));
        }
        let exclude = self.ignore_patterns(bridge, config, entrypoint).await.context("failed to read dockerignore patterns")?;
        let local = Local {
            name: CONTEXT.into(),
            session_id: config.session_for(CONTEXT, bridge.build()).to_owned(),
            exclude: exclude.to_vec(),
            follow_paths: paths.to_vec(),
            shared_key_hint: CONTEXT.into(),
            no_diff: false,
        };
        Ok(Some(Arc::new(source::local(&local).named("[internal] load build context").into_graph())))
    }

    /// The ignore file beside the Dockerfile, else the one of the context. Remote contexts have none.
    pub async fn ignore_patterns(&self, bridge: &dyn Bridge, config: &Config, entrypoint: &Entrypoint) -> Result<&[String]> {
        if !self.is_local() {
            return Ok(&[]);
        }
        let load = || async {
            if let Some(data) = &entrypoint.ignore_file {
                return Ok::<_, Fault>(patterns::parse_ignore_file(data));
            }
            let local = Local {
                name: CONTEXT.into(),
                session_id: config.session_for(CONTEXT, bridge.build()).to_owned(),
                follow_paths: vec![IGNORE_FILE.into()],
                shared_key_hint: format!("{CONTEXT}-{IGNORE_FILE}"),
                no_diff: true,
                ..Local::default()
            };
            let source = source::local(&local).named(format!("[internal] load {IGNORE_FILE}"));
            let reference = solve(bridge, Arc::new(source.into_graph())).await?;
            // A file that cannot be read counts as empty.
            let data = reference.read_file(IGNORE_FILE, None).await.unwrap_or_default();
            Ok(patterns::parse_ignore_file(&data))
        };
        Ok(self.ignore.get_or_try_init(load).await?.as_slice())
    }
}

/// The Dockerfile, and what lies beside it.
pub(super) struct Entrypoint {
    pub filename: String,
    pub data: Bytes,
    /// The vertex that it was read from; warnings are tied to it.
    pub vertex: Digest,
    /// What it was read from.
    pub graph: Arc<Graph>,
    ignore_file: Option<Bytes>,
}

impl Entrypoint {
    pub async fn read(bridge: &dyn Bridge, config: &Config, context: &BuildContext) -> Result<Self> {
        let filename = &context.filename;
        // The lower-case name is found too.
        let lower = (base(filename) == DOCKERFILE).then(|| join(&[&dir(filename), "dockerfile"]));
        let graph = match context.dockerfile.as_ref().filter(|_| !context.force_local_dockerfile) {
            Some(graph) => graph.clone(),
            None => {
                let local = Local {
                    name: context.dockerfile_local.clone(),
                    session_id: config.session_for(&context.dockerfile_local, bridge.build()).to_owned(),
                    follow_paths: [filename.clone(), format!("{filename}{IGNORE_FILE}")].into_iter().chain(lower.clone()).collect(),
                    shared_key_hint: context.dockerfile_local.clone(),
                    no_diff: true,
                    ..Local::default()
                };
                Arc::new(source::local(&local).named(format!("[internal] load build definition from {filename}")).into_graph())
            }
        };
        let vertex = head(&graph)?;
        let reference = solve(bridge, graph.clone()).await.context("failed to resolve dockerfile")?;
        let mut data = reference.read_file(filename, None).await;
        if let (Err(_), Some(lower)) = (&data, &lower)
            && let Ok(found) = reference.read_file(lower, None).await
        {
            data = Ok(found);
        }
        let data = data.context("failed to read dockerfile")?;
        let ignore_file = reference.read_file(&format!("{filename}{IGNORE_FILE}"), None).await.ok();
        Ok(Self { filename: filename.clone(), data, vertex, graph, ignore_file })
    }

    pub fn info(&self) -> SourceInfo {
        SourceInfo {
            filename: self.filename.clone(),
            data: self.data.clone(),
            language: LANGUAGE.into(),
            definition: Some(self.graph.to_bytes()),
        }
    }

    /// A place in the file, for a fault.
    pub fn detail(&self, place: Option<Lines>) -> Detail {
        let ranges = place.into_iter().flat_map(Lines::ranges).map(|r| fault::Range { start: r.start, end: r.end });
        Detail::Source {
            filename: self.filename.clone(),
            language: LANGUAGE.into(),
            data: self.data.to_vec(),
            definition: self.graph.to_bytes().into(),
            ranges: ranges.collect(),
        }
    }
}

/// A graph's files, in whatever state they are.
pub(super) async fn solve(bridge: &dyn Bridge, graph: Arc<Graph>) -> Result<Arc<dyn Ref>> {
    let outcome = bridge.solve(SolveRequest { graph: Some(graph), ..SolveRequest::default() }).await?;
    outcome.single_ref()?.ok_or_else(|| invalid("empty result"))
}

fn git_context(location: &str, mut git: GitRef, config: &Config) -> Arc<Graph> {
    if parse_bool(config.opt("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR")) == Some(true) {
        git.keep_git_dir = Some(true);
    }
    // A build that is to be reproducible takes the commit's time for its files.
    if git.mtime.is_empty() && !config.opt("build-arg:SOURCE_DATE_EPOCH").is_empty() {
        git.mtime = "commit".into();
    }
    Arc::new(named_git(location, &git).into_graph())
}

pub(super) fn named_git(location: &str, git: &GitRef) -> Source {
    source::git(git, None).named(format!("[internal] load git source {location}"))
}

fn subdirectory(graph: &Arc<Graph>, subdir: &str) -> Arc<Graph> {
    copied(graph, Copy { src: join(&["/", &clean(subdir)]), dest: "/".into(), dir_copy_contents: true, ..Copy::default() })
}

/// A new file system with something of `graph` in it.
fn copied(graph: &Arc<Graph>, copy: Copy) -> Arc<Graph> {
    let mut builder = Builder::new();
    let source = builder.graft(graph);
    let action = FileAction {
        input: None,
        secondary_input: source.is_some().then_some(0),
        output: Some(0),
        kind: FileActionKind::Copy(Box::new(copy)),
    };
    let mut metadata = Metadata::default();
    metadata.caps.insert("file.base".into(), true);
    let edge = builder.add(Op::File(FileOp { actions: vec![action] }), source.into_iter().collect(), None, Vec::new(), metadata);
    Arc::new(builder.finish(Some(edge)))
}
