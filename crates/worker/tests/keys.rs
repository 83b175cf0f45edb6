//! The keys of whole graphs, as BuildKit v0.32 computes them: `data/keys.json` holds the records of the caches that its daemon exported for
//! the graphs made here (`type=local`, `mode=max`). Runs real file ops; needs root, as overlay trees do.
#![allow(clippy::unwrap_used)]
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use llb::{Builder, Copy, Edge, FileAction, FileActionKind, FileOp, Graph, Metadata, Op, Owner, Who};
use oci::Digest;
use progress::{Sink, Update};
use session::Group;
use solver::Key;
use task::Cancel;
use worker::{Settings, Worker};

/// A record: its digest, and for each input the digests that lead there, after their selectors.
type Lines = BTreeSet<String>;

struct Silent;

impl Sink for Silent {
    fn emit(&self, _: Update) {}
}

#[derive(Default)]
struct Script(Builder);

impl Script {
    fn file(&mut self, inputs: &[&Edge], actions: Vec<FileActionKind>) -> Edge {
        self.file_of(inputs, actions.into_iter().map(|kind| (None, kind)).collect())
    }

    /// Actions on each other's results, with the number of the input that each copies from.
    fn file_of(&mut self, inputs: &[&Edge], actions: Vec<(Option<u32>, FileActionKind)>) -> Edge {
        let (count, last) = (inputs.len() as u32, actions.len() - 1);
        let sources: HashSet<u32> = actions.iter().filter_map(|(from, _)| *from).collect();
        let base = (0..count).find(|input| !sources.contains(input));
        let action = |(n, (from, kind)): (usize, (Option<u32>, FileActionKind))| FileAction {
            input: if n == 0 { base } else { Some(count + n as u32 - 1) },
            secondary_input: from,
            output: (n == last).then_some(0),
            kind,
        };
        let actions = actions.into_iter().enumerate().map(action).collect();
        self.add(Op::File(FileOp { actions }), inputs)
    }

    fn add(&mut self, op: Op, inputs: &[&Edge]) -> Edge {
        self.0.add(op, inputs.iter().map(|e| (*e).clone()).collect(), None, Vec::new(), Metadata::default())
    }

    fn finish(self, result: Edge) -> Graph {
        self.0.finish(Some(result))
    }
}

fn mkfile(path: &str, data: &str) -> FileActionKind {
    FileActionKind::Mkfile { path: path.into(), mode: 0o644, data: data.to_owned().into(), owner: None, timestamp: -1 }
}

fn mkdir(path: &str) -> FileActionKind {
    FileActionKind::Mkdir { path: path.into(), mode: 0o755, make_parents: true, owner: None, timestamp: -1 }
}

fn copy(src: &str, dest: &str) -> Copy {
    Copy { src: src.into(), dest: dest.into(), create_dest_path: true, timestamp: -1, ..Copy::default() }
}

fn copied(copy: Copy) -> (Option<u32>, FileActionKind) {
    (Some(1), FileActionKind::Copy(Box::new(copy)))
}

/// A few files of all kinds.
fn tree(script: &mut Script, salt: &str) -> Edge {
    let symlink = FileActionKind::Symlink { oldpath: "b/c".into(), newpath: "/a/link".into(), owner: None, timestamp: -1 };
    let owner = Some(Owner { user: Some(Who::Id(7)), group: Some(Who::Id(8)) });
    let owned = FileActionKind::Mkfile { path: "/a/owned".into(), mode: 0o600, data: "owned".into(), owner, timestamp: 5_000_000_000 };
    script.file(
        &[],
        vec![
            mkdir("/a/b"),
            mkfile("/a/b/c", salt),
            mkfile("/a/d.txt", "d"),
            mkfile("/a/e.txt", "e"),
            symlink,
            owned,
            mkdir("/etc"),
            mkfile("/etc/passwd", "root:x:0:0::/:\nme:x:1000:1001::/:\n"),
            mkfile("/etc/group", "us:x:2000:\n"),
        ],
    )
}

fn graphs() -> Vec<(&'static str, Graph)> {
    let mut all = Vec::new();
    let mut graph = |name, make: &dyn Fn(&mut Script) -> Edge| {
        let mut script = Script::default();
        let result = make(&mut script);
        all.push((name, script.finish(result)));
    };
    let base = |s: &mut Script| s.file(&[], vec![mkfile("/base", "base")]);
    let copying = |s: &mut Script, copy: Copy| {
        let (below, tree) = (base(s), tree(s, "c"));
        s.file_of(&[&below, &tree], vec![copied(copy)])
    };
    graph("chain", &|s| {
        let a = base(s);
        let b = s.file(&[&a], vec![mkdir("/x/y")]);
        s.file(&[&b], vec![FileActionKind::Rm { path: "/base".into(), allow_not_found: false, allow_wildcard: false }])
    });
    graph("copy of a file", &|s| copying(s, copy("/a/d.txt", "/d")));
    graph("copy of a directory's content", &|s| copying(s, Copy { dir_copy_contents: true, ..copy("/a", "/to/") }));
    graph("copy of all", &|s| copying(s, Copy { dir_copy_contents: true, ..copy("/", "/all") }));
    graph("copy through a link", &|s| copying(s, Copy { follow_symlink: true, ..copy("/a/link", "/c") }));
    graph("copy of the link", &|s| copying(s, copy("/a/link", "/c")));
    graph("copy by wildcard", &|s| copying(s, Copy { allow_wildcard: true, ..copy("/a/*.txt", "/txt/") }));
    graph("copy of no match", &|s| copying(s, Copy { allow_wildcard: true, allow_empty_wildcard: true, ..copy("/a/*.no", "/txt/") }));
    graph("copy with patterns", &|s| {
        let (include_patterns, exclude_patterns) = (vec!["**/*.txt".into(), "b".into()], vec!["e.txt".into()]);
        copying(s, Copy { dir_copy_contents: true, include_patterns, exclude_patterns, ..copy("/a", "/p") })
    });
    graph("copy with owner by name", &|s| {
        let (below, tree) = (tree(s, "below"), tree(s, "c"));
        let who = |name: &str| Some(Who::Name { name: name.into(), input: Some(0) });
        let owner = Some(Owner { user: who("me"), group: who("us") });
        s.file_of(&[&below, &tree], vec![copied(Copy { owner, ..copy("/a/d.txt", "/d") })])
    });
    graph("copies of one input", &|s| {
        let (below, tree) = (base(s), tree(s, "c"));
        s.file_of(&[&below, &tree], vec![copied(copy("/a/d.txt", "/d")), copied(copy("/a/b", "/b")), (None, mkfile("/own", "own"))])
    });
    graph("on a copy", &|s| {
        let copy = copying(s, copy("/a/b", "/b"));
        let next = s.file(&[&copy], vec![mkfile("/after", "after")]);
        let more = tree(s, "other");
        s.file_of(&[&next, &more], vec![copied(copy_of_copy())])
    });
    graph("merge", &|s| {
        let (a, b) = (base(s), tree(s, "c"));
        let merged = s.add(Op::Merge(vec![Some(0), Some(1)]), &[&a, &b]);
        let below = s.file(&[], vec![mkfile("/z", "z")]);
        s.file_of(&[&below, &merged], vec![copied(copy("/base", "/from-merge"))])
    });
    graph("diff", &|s| {
        let lower = base(s);
        let upper = s.file(&[&lower], vec![mkfile("/new", "new")]);
        let diff = s.add(Op::Diff { lower: Some(0), upper: Some(1) }, &[&lower, &upper]);
        let below = s.file(&[], vec![mkfile("/z", "z")]);
        s.file_of(&[&below, &diff], vec![copied(copy("/new", "/from-diff"))])
    });
    all
}

fn copy_of_copy() -> Copy {
    copy("/a/b/c", "/c")
}

fn settings(root: &Path) -> Settings {
    Settings {
        ceiling: 0,
        emulators: Vec::new(),
        environment: Default::default(),
        gc_rules: Vec::new(),
        root: root.to_owned(),
        backend: snapshot::Backend::Auto,
        runtime: worker::Runtime::Builtin,
        // No process is run.
        sandbox: sandbox::Settings { helper: "/bin/true".into(), ..sandbox::Settings::new(root.join("sandbox")) },
        network: Default::default(),
        registry: Default::default(),
        labels: BTreeMap::new(),
        platforms: Vec::new(),
        platforms_max_age: Default::default(),
        devices: worker::Devices::default(),
        parallelism: None,
        log_limits: Default::default(),
        hostname: String::new(),
        program_path: Default::default(),
        proxy: Vec::new(),
    }
}

/// All records that a key stands on, and its own.
fn lines(keys: &[Key]) -> Lines {
    let digest = |key: &Key| match key.output {
        Some(output) => Digest::of(format!("{}@{output}", key.digest)),
        None => Digest::of(format!("{}@-1", key.digest)),
    };
    let mut lines = Lines::new();
    let mut pending: Vec<Key> = keys.to_vec();
    while let Some(key) = pending.pop() {
        let mut inputs = Vec::new();
        for input in &key.inputs {
            let link = |k: &solver::key::InputKey| format!("{}>{}", k.selector.as_ref().map_or("", Digest::as_str), digest(&k.key));
            inputs.push(input.iter().map(link).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" "));
            pending.extend(input.iter().map(|k| k.key.clone()));
        }
        lines.insert(format!("{} <- {}", digest(&key), inputs.join(" | ")));
    }
    lines
}

async fn keys(graph: Graph) -> Lines {
    let root = tempfile::tempdir().unwrap();
    let worker = Worker::open(settings(root.path())).unwrap();
    let job = worker.engine().job("keys", Arc::new(Silent), Group::default(), Cancel::new());
    let built = job.build(Arc::new(graph)).await.unwrap();
    lines(&built.keys)
}

#[tokio::test]
async fn graphs_have_the_keys_that_buildkit_gives_them() {
    let golden: BTreeMap<String, (String, Lines)> = serde_json::from_str(include_str!("data/keys.json")).unwrap();
    let graphs = graphs();
    assert_eq!(graphs.len(), golden.len());
    for (name, graph) in graphs {
        let (definition, records) = &golden[name];
        assert_eq!(Digest::of(graph.to_bytes()).as_str(), definition, "{name} is not the graph that was recorded: record it again");
        assert_eq!(keys(graph).await, *records, "{name}");
    }
}

/// Writes the definitions to the directory that is given, to record from.
#[test]
#[ignore = "for recording only"]
fn definitions() {
    let dir = std::path::PathBuf::from(std::env::var("KEYS_DIR").unwrap());
    for (name, graph) in graphs() {
        std::fs::write(dir.join(format!("{name}.llb")), graph.to_bytes()).unwrap();
    }
}
