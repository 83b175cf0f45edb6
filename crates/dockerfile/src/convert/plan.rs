//! The graph while it is being made. Vertices are content-addressed, so none can be encoded before what it needs is known, and which files of the
//! context a build needs is known last: this plan holds ops with references to each other and is turned into LLB at the end.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use llb::{
    Builder, CdiDevice, ContentCache, Edge, ExecOp, FileAction, FileActionKind, FileOp, Graph, Meta, Metadata, Mount, MountKind, NetMode,
    Op, Owner, Range, SecretEnv, SecurityMode, SourceInfo, Who,
};
use oci::Platform;

use super::env::Env;
use crate::Lines;
use crate::source::{self, Local, Source};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(usize);

/// Names a set of paths that are used of something.
pub(super) type PathSetId = usize;

/// A file system on its way, and what a process started in it would see.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// `None` is scratch.
    pub files: Option<NodeId>,
    pub env: Env,
    pub dir: String,
    pub user: String,
    pub hostname: String,
    pub network: NetMode,
    /// Normalized; `None` until an image or a context says so.
    pub platform: Option<Platform>,
}

impl State {
    pub fn new(files: Option<NodeId>) -> Self {
        Self { files, dir: "/".into(), ..Self::default() }
    }
}

#[derive(Debug)]
pub(super) enum Planned {
    Source(Box<Source>),
    Exec(Box<PlannedExec>),
    File {
        base: Option<NodeId>,
        actions: Vec<PlannedAction>,
    },
    Merge([NodeId; 2]),
    Graph(Option<Arc<Graph>>),
    /// The build context.
    Context,
    /// A directory of the client, narrowed to the paths that are used of it.
    Local {
        local: Local,
        name: String,
        paths: PathSetId,
    },
}

#[derive(Debug)]
pub(super) struct PlannedExec {
    pub meta: Meta,
    /// `None`: the target platform.
    pub platform: Option<Platform>,
    pub root: Option<NodeId>,
    pub mounts: Vec<PlannedMount>,
    pub secrets: Vec<Mount>,
    pub ssh: Vec<Mount>,
    pub secret_env: Vec<SecretEnv>,
    pub network: NetMode,
    pub security: SecurityMode,
    pub devices: Vec<CdiDevice>,
}

#[derive(Debug)]
pub(super) struct PlannedMount {
    pub dest: String,
    pub source: Option<NodeId>,
    pub selector: String,
    pub readonly: bool,
    pub no_output: bool,
    pub kind: MountKind,
}

/// An action on what the one before it left.
#[derive(Debug)]
pub(super) struct PlannedAction {
    pub kind: FileActionKind,
    /// Where files are copied from.
    pub from: Option<NodeId>,
}

#[derive(Debug)]
struct Node {
    planned: Planned,
    metadata: Metadata,
    /// Where it stems from. Some stem from the file, but from no line of it.
    place: Option<Vec<Range>>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    nodes: Vec<Node>,
    paths: Vec<BTreeSet<String>>,
}

impl Plan {
    pub fn add(&mut self, planned: Planned, metadata: Metadata, place: Option<Lines>) -> NodeId {
        let place = place.map(|lines| lines.ranges().collect());
        self.nodes.push(Node { planned, metadata, place });
        NodeId(self.nodes.len() - 1)
    }

    pub fn add_source(&mut self, mut source: Source) -> NodeId {
        let metadata = std::mem::take(&mut source.metadata);
        self.add(Planned::Source(Box::new(source)), metadata, None)
    }

    /// The image of a stage, which has no line if only a mount names it.
    pub fn add_base(&mut self, source: Source, lines: Option<Lines>) -> NodeId {
        let node = self.add_source(source);
        self.nodes[node.0].place = Some(lines.into_iter().flat_map(Lines::ranges).collect());
        node
    }

    pub fn new_paths(&mut self) -> PathSetId {
        self.paths.push(BTreeSet::new());
        self.paths.len() - 1
    }

    pub fn use_path(&mut self, set: PathSetId, path: &str) {
        self.paths[set].insert(patterns::join(&["/", path]));
    }

    /// Whether everything is used, and which paths are: relative and sorted.
    pub fn paths(&self, set: PathSetId) -> (bool, Vec<String>) {
        let mut paths: Vec<String> = self.paths[set].iter().map(|path| path.trim_start_matches('/').to_owned()).collect();
        paths.sort();
        (self.paths[set].contains("/"), paths)
    }

    fn follow_paths(&self, set: PathSetId) -> Vec<String> {
        match self.paths(set) {
            (true, _) => Vec::new(),
            (false, paths) => paths,
        }
    }
}

/// Turns a plan into graphs.
pub(super) struct Encoder<'a> {
    /// Ops move from here into the graph.
    plan: Plan,
    context: Option<&'a Arc<Graph>>,
    default_platform: &'a Platform,
    sets_default_path: bool,
    builder: Builder,
    source: usize,
    done: HashMap<NodeId, Option<Edge>>,
}

impl<'a> Encoder<'a> {
    pub fn new(plan: Plan, context: Option<&'a Arc<Graph>>, default_platform: &'a Platform, info: SourceInfo) -> Self {
        let mut builder = Builder::new();
        let source = builder.source(info);
        Self { plan, context, default_platform, sets_default_path: true, builder, source, done: HashMap::new() }
    }

    /// The daemon does not give processes a PATH by itself.
    pub fn without_default_path(mut self) -> Self {
        self.sets_default_path = false;
        self
    }

    pub fn graph(&mut self, files: Option<NodeId>) -> Graph {
        let edge = files.and_then(|node| self.edge(node));
        self.builder.finish(edge)
    }

    /// As [`Self::graph`], for the last of them.
    pub fn into_graph(self, result: Option<Edge>) -> Graph {
        self.builder.into_graph(result)
    }

    /// Iterative, because chains of steps are long.
    pub fn edge(&mut self, wanted: NodeId) -> Option<Edge> {
        let mut stack = vec![(wanted, false)];
        while let Some((node, ready)) = stack.pop() {
            if self.done.contains_key(&node) {
                continue;
            }
            if ready {
                let edge = self.encode(node);
                self.done.insert(node, edge);
                continue;
            }
            stack.push((node, true));
            let inputs = inputs(&self.plan.nodes[node.0].planned);
            stack.extend(inputs.into_iter().rev().map(|input| (input, false)));
        }
        self.done[&wanted].clone()
    }

    fn encode(&mut self, id: NodeId) -> Option<Edge> {
        let node = &mut self.plan.nodes[id.0];
        let mut metadata = std::mem::take(&mut node.metadata);
        let place = node.place.take();
        let edge = match std::mem::replace(&mut node.planned, Planned::Context) {
            Planned::Source(source) => self.builder.add(Op::Source(source.op), Vec::new(), source.platform, Vec::new(), metadata),
            Planned::Exec(exec) => self.exec(*exec, metadata),
            Planned::File { base, actions } => {
                cap(&mut metadata, "file.base");
                self.file(base, actions, metadata)
            }
            Planned::Merge(parts) => {
                let inputs: Vec<Edge> = parts.iter().filter_map(|part| self.done[part].clone()).collect();
                if inputs.len() < 2 {
                    return inputs.into_iter().next();
                }
                cap(&mut metadata, "mergeop");
                let all = (0..inputs.len() as u32).map(Some).collect();
                self.builder.add(Op::Merge(all), inputs, None, Vec::new(), metadata)
            }
            Planned::Graph(graph) => return graph.as_ref().and_then(|graph| self.builder.graft(graph)),
            Planned::Context => return self.context.and_then(|graph| self.builder.graft(graph)),
            Planned::Local { local, name, paths } => {
                let local = Local { follow_paths: self.plan.follow_paths(paths), ..local };
                let source = source::local(&local).named(name);
                self.builder.add(Op::Source(source.op), Vec::new(), None, Vec::new(), source.metadata)
            }
        };
        if let Some(ranges) = place {
            self.builder.location(&edge.vertex, self.source, ranges);
        }
        Some(edge)
    }

    fn resolve(&self, node: Option<NodeId>) -> Option<Edge> {
        node.and_then(|node| self.done[&node].clone())
    }

    fn exec(&mut self, exec: PlannedExec, mut metadata: Metadata) -> Edge {
        exec_caps(&exec, &mut metadata);
        let platform = exec.platform.unwrap_or_else(|| self.default_platform.clone());
        let mut op = ExecOp {
            meta: exec.meta,
            network: exec.network,
            security: exec.security,
            secret_env: exec.secret_env,
            cdi_devices: exec.devices,
            mounts: Vec::new(),
        };
        if self.sets_default_path {
            cap(&mut metadata, "exec.meta.setsdefaultpath");
        } else if platform.os != "windows" && !op.meta.env.iter().any(|e| e.starts_with("PATH=")) {
            op.meta.env.push(format!("PATH={}", super::image::default_path(&platform.os)));
        }
        let root = PlannedMount {
            dest: "/".into(),
            source: exec.root,
            selector: String::new(),
            readonly: false,
            no_output: false,
            kind: MountKind::Bind,
        };
        let mut mounts: Vec<PlannedMount> = std::iter::once(root).chain(exec.mounts).collect();
        mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        let mut inputs = Inputs::default();
        let mut outputs = 0;
        for mount in mounts {
            let input = self.resolve(mount.source).map(|edge| inputs.index(edge));
            let keeps = !mount.no_output && !mount.readonly && mount.kind == MountKind::Bind;
            let output = keeps.then_some(outputs);
            outputs += u32::from(keeps);
            op.mounts.push(Mount {
                dest: mount.dest,
                input,
                selector: mount.selector,
                output,
                readonly: mount.readonly,
                kind: mount.kind,
                content_cache: ContentCache::Default,
                result_id: String::new(),
            });
        }
        op.mounts.extend(exec.secrets.into_iter().chain(exec.ssh));
        self.builder.add(Op::Exec(Box::new(op)), inputs.0, Some(platform), Vec::new(), metadata)
    }

    fn file(&mut self, base: Option<NodeId>, actions: Vec<PlannedAction>, metadata: Metadata) -> Edge {
        let mut inputs = Inputs::default();
        let base = self.resolve(base).map(|edge| inputs.index(edge));
        let from: Vec<Option<u32>> = actions.iter().map(|a| self.resolve(a.from).map(|edge| inputs.index(edge))).collect();
        let count = inputs.0.len() as u32;
        let last = actions.len() - 1;
        let actions = actions.into_iter().zip(from).enumerate().map(|(i, (action, from))| FileAction {
            input: if i == 0 { base } else { Some(count + i as u32 - 1) },
            secondary_input: from,
            output: (i == last).then_some(0),
            kind: with_owner_input(action.kind, base),
        });
        let op = FileOp { actions: actions.collect() };
        self.builder.add(Op::File(op), inputs.0, None, Vec::new(), metadata)
    }
}

#[derive(Default)]
struct Inputs(Vec<Edge>);

impl Inputs {
    fn index(&mut self, edge: Edge) -> u32 {
        let at = self.0.iter().position(|known| *known == edge).unwrap_or_else(|| {
            self.0.push(edge);
            self.0.len() - 1
        });
        at as u32
    }
}

/// Users are looked up in the file system that the first action works on.
fn with_owner_input(mut kind: FileActionKind, base: Option<u32>) -> FileActionKind {
    let owner = match &mut kind {
        FileActionKind::Copy(copy) => &mut copy.owner,
        FileActionKind::Mkfile { owner, .. } | FileActionKind::Mkdir { owner, .. } | FileActionKind::Symlink { owner, .. } => owner,
        FileActionKind::Rm { .. } => return kind,
    };
    if let Some(Owner { user, group }) = owner {
        for who in [user, group].into_iter().flatten() {
            if let Who::Name { input, .. } = who {
                *input = base;
            }
        }
    }
    kind
}

/// In the order in which BuildKit's client library walks them.
fn inputs(planned: &Planned) -> Vec<NodeId> {
    match planned {
        Planned::Exec(exec) => {
            let mut mounts: Vec<(&str, Option<NodeId>)> = vec![("/", exec.root)];
            mounts.extend(exec.mounts.iter().map(|m| (m.dest.as_str(), m.source)));
            mounts.sort_by_key(|(dest, _)| *dest);
            mounts.into_iter().filter_map(|(_, source)| source).collect()
        }
        Planned::File { base, actions } => base.iter().copied().chain(actions.iter().rev().filter_map(|a| a.from)).collect(),
        Planned::Merge(parts) => parts.to_vec(),
        Planned::Source(_) | Planned::Graph(_) | Planned::Context | Planned::Local { .. } => Vec::new(),
    }
}

pub(super) fn cap(metadata: &mut Metadata, id: &str) {
    metadata.caps.insert(id.to_owned(), true);
}

fn exec_caps(exec: &PlannedExec, metadata: &mut Metadata) {
    let mut needs: BTreeMap<&str, bool> = BTreeMap::from([("exec.meta.base", true)]);
    let mut need = |id: &'static str, when: bool| *needs.entry(id).or_default() |= when;
    need("exec.meta.ulimit", !exec.meta.ulimits.is_empty());
    need("exec.meta.linux.resources", metadata.linux_resources.is_some());
    need("exec.meta.network", exec.network != NetMode::Unset);
    need("exec.meta.security", exec.security == SecurityMode::Insecure);
    need("exec.meta.proxyenv", exec.meta.proxy_env.is_some());
    need("exec.meta.cdi", !exec.devices.is_empty());
    need("exec.mount.secret", !exec.secrets.is_empty() || !exec.secret_env.is_empty());
    need("exec.secretenv", !exec.secret_env.is_empty());
    need("exec.mount.ssh", !exec.ssh.is_empty());
    need("exec.mount.bind", exec.root.is_some());
    for mount in &exec.mounts {
        need("exec.mount.selector", !mount.selector.is_empty());
        match &mount.kind {
            MountKind::Cache { .. } => {
                need("exec.mount.cache", true);
                need("exec.mount.cache.sharing", true);
            }
            MountKind::Tmpfs { size } => {
                need("exec.mount.tmpfs", true);
                need("exec.mount.tmpfs.size", *size > 0);
            }
            _ => need("exec.mount.bind", mount.source.is_some()),
        }
    }
    needs.into_iter().filter(|(_, needed)| *needed).for_each(|(id, _)| cap(metadata, id));
}
