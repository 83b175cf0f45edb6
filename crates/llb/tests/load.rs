//! What is refused, with which words; and graphs of awkward shape.
#![allow(clippy::unwrap_used)]
use std::collections::HashMap;

use llb::*;
use prost::Message as _;
use proto::pb;

fn source(identifier: &str) -> Op {
    Op::Source(SourceOp { identifier: identifier.into(), attrs: [("empty".to_owned(), String::new())].into() })
}

fn exec(args: &str, input: Option<u32>) -> Op {
    let root = Mount {
        dest: "/".into(),
        input,
        selector: String::new(),
        output: Some(0),
        readonly: false,
        kind: MountKind::Bind,
        content_cache: ContentCache::Default,
        result_id: String::new(),
    };
    let meta = Meta { args: args.split(' ').map(str::to_owned).collect(), cwd: "/".into(), ..Default::default() };
    Op::Exec(Box::new(ExecOp { meta, mounts: vec![root], ..Default::default() }))
}

fn add(b: &mut Builder, op: Op, inputs: &[&Edge]) -> Edge {
    b.add(op, inputs.iter().map(|e| (*e).clone()).collect(), None, vec![], Metadata::default())
}

fn load(ops: &[pb::Op]) -> Result<Graph, String> {
    let def = ops.iter().map(|o| o.encode_to_vec().into()).collect();
    Graph::load(&pb::Definition { def, ..Default::default() }).map_err(|e| e.to_string())
}

fn wire(op: pb::op::Op) -> pb::Op {
    pb::Op { op: Some(op), ..Default::default() }
}

fn to(op: &pb::Op) -> pb::Op {
    let input = pb::Input { digest: oci::Digest::of(op.encode_to_vec()).to_string(), index: 0 };
    pb::Op { inputs: vec![input], ..Default::default() }
}

#[test]
fn malformed_definitions_are_named() {
    let img = wire(pb::op::Op::Source(pb::SourceOp { identifier: "docker-image://x".into(), ..Default::default() }));
    let missing = pb::Op { inputs: vec![pb::Input { digest: "sha256:nope".into(), index: 0 }], ..Default::default() };
    let negative = pb::Op { inputs: vec![pb::Input { digest: "x".into(), index: -3 }], ..Default::default() };
    let other = wire(pb::op::Op::Source(pb::SourceOp { identifier: "y://".into(), ..Default::default() }));
    for (ops, want) in [
        (vec![], "invalid empty definition"),
        (vec![img.clone()], "invalid LLB with 1 vertexes"),
        (vec![img.clone(), img.clone()], "invalid LLB with 1 vertexes"),
        (vec![img.clone(), missing], "invalid missing input digest sha256:nope"),
        (vec![img.clone(), negative], "invalid input 0 output index -3"),
        (vec![img.clone(), other], "invalid LLB with no inputs on last vertex"),
    ] {
        assert_eq!(load(&ops).unwrap_err(), want);
    }
    let junk = pb::Definition { def: vec![bytes::Bytes::from_static(b"\xff\xff")], ..Default::default() };
    assert!(Graph::load(&junk).unwrap_err().to_string().starts_with("failed to parse llb proto op"));
}

#[test]
fn malformed_ops_are_named() {
    use pb::op::Op as W;
    let mount = |input: i64, dest: &str| pb::Mount { input, dest: dest.into(), ..Default::default() };
    let meta = Some(pb::Meta { args: vec!["x".into()], ..Default::default() });
    let exec = |meta: &Option<pb::Meta>, mounts| W::Exec(pb::ExecOp { meta: meta.clone(), mounts, ..Default::default() });
    let action = |kind| W::File(pb::FileOp { actions: vec![pb::FileAction { input: -1, secondary_input: -2, output: 0, action: kind }] });
    let copy = Some(pb::file_action::Action::Copy(pb::FileActionCopy::default()));
    for (op, want) in [
        (None, "invalid nil op"),
        (Some(exec(&None, vec![])), "invalid exec op with no meta"),
        (Some(exec(&Some(pb::Meta::default()), vec![])), "invalid exec op with no args"),
        (Some(exec(&meta, vec![])), "invalid exec op with no mounts"),
        (Some(exec(&meta, vec![mount(-1, "/x")])), "invalid exec op with no rootfs"),
        (Some(exec(&meta, vec![mount(0, "/")])), "invalid mount input 0 for /"),
        (Some(exec(&meta, vec![mount(-2, "/")])), "invalid mount input -2 for /"),
        (Some(W::File(pb::FileOp::default())), "invalid file op with no actions"),
        (Some(action(copy)), "invalid index -2"),
        (Some(W::Diff(pb::DiffOp::default())), "invalid diff op with nil lower or upper input"),
        (
            Some(W::Diff(pb::DiffOp { lower: Some(pb::LowerDiffInput { input: 5 }), upper: Some(pb::UpperDiffInput { input: -1 }) })),
            "invalid diff input index 5",
        ),
        (Some(W::Merge(pb::MergeOp { inputs: vec![pb::MergeInput { input: 1 }] })), "invalid merge input index 1"),
        (Some(W::Passthrough(pb::PassthroughOp::default())), "invalid passthrough op with no id"),
        (Some(W::Passthrough(pb::PassthroughOp { id: "p".into(), outputs: vec![] })), "invalid passthrough op with no outputs"),
        (Some(W::Passthrough(pb::PassthroughOp { id: "p".into(), outputs: vec![1] })), "invalid passthrough output input index 1"),
    ] {
        let op = pb::Op { op, platform: Some(pb::Platform::default()), ..Default::default() };
        assert_eq!(load(&[op.clone(), to(&op)]).unwrap_err(), want);
    }
}

#[test]
fn order_and_repetition_do_not_matter_and_what_is_not_needed_goes() {
    let mut b = Builder::new();
    let image = add(&mut b, source("docker-image://a"), &[]);
    let unused = add(&mut b, source("docker-image://unused"), &[]);
    let run = add(&mut b, exec("make all", Some(0)), &[&image]);
    let mut graph = b.finish(Some(run.clone()));
    assert!(graph.vertex(&unused.vertex).is_none());
    // None has a place in a file, and of those nothing is said.
    graph.sources.locations.clear();

    let mut wire = graph.encode();
    let all = b.finish(Some(unused)).encode().def[0].clone();
    let terminal = wire.def.pop().unwrap();
    wire.def.reverse();
    wire.def.extend([all, wire.def[0].clone(), terminal]);
    assert_eq!(Graph::load(&wire).unwrap(), graph);
}

#[test]
fn depth_is_no_matter() {
    let mut b = Builder::new();
    let mut top = add(&mut b, source("local://x"), &[]);
    for i in 0..20_000 {
        top = add(&mut b, exec(&format!("step {i}"), Some(0)), &[&top]);
    }
    let mut wire = b.finish(Some(top)).encode();
    let last = wire.def.len() - 1;
    wire.def[..last].reverse();
    let graph = Graph::load(&wire).unwrap();
    assert_eq!(graph.vertices.len(), 20_001);
    assert_eq!(graph.vertices[20_000].name, "step 19999");
}

#[test]
fn names() {
    let mut b = Builder::new();
    let image = add(&mut b, source("docker-image://a"), &[]);
    let metadata = Metadata { description: [("llb.customname".to_owned(), "mine".to_owned())].into(), ..Default::default() };
    let run = b.add(exec("make all", Some(0)), vec![image.clone()], None, vec![], metadata);
    let mut merged = add(&mut b, Op::Merge(vec![Some(0), Some(1)]), &[&image, &run]);
    assert_eq!(b.vertex(&merged.vertex).unwrap().name, "merge (docker-image://a, mine)");
    let diff = add(&mut b, Op::Diff { lower: None, upper: Some(0) }, &[&run]);
    assert_eq!(b.vertex(&diff.vertex).unwrap().name, "diff scratch -> (mine)");
    let actions = vec![
        FileAction {
            input: None,
            secondary_input: None,
            output: None,
            kind: FileActionKind::Mkdir { path: "/a".into(), mode: 0, make_parents: false, owner: None, timestamp: -1 },
        },
        FileAction {
            input: Some(0),
            secondary_input: None,
            output: Some(0),
            kind: FileActionKind::Symlink { oldpath: "o".into(), newpath: "n".into(), owner: None, timestamp: -1 },
        },
    ];
    let file = add(&mut b, Op::File(FileOp { actions }), &[]);
    assert_eq!(b.vertex(&file.vertex).unwrap().name, "mkdir /a, symlink n -> o");
    for _ in 0..40 {
        merged = add(&mut b, Op::Merge(vec![Some(0), Some(1)]), &[&merged, &merged]);
    }
    assert!(b.vertex(&merged.vertex).unwrap().name.len() < 5000, "names of merges of merges do not explode");
}

#[test]
fn a_rewrite_changes_digests_upwards_and_leads_back() {
    let mut b = Builder::new();
    let image = add(&mut b, source("docker-image://a"), &[]);
    let context = add(&mut b, source("local://context"), &[]);
    let run = add(&mut b, exec("make", Some(0)), &[&image]);
    let top = add(&mut b, Op::Merge(vec![Some(0), Some(1)]), &[&run, &context]);
    let file = b.source(SourceInfo { filename: "Dockerfile".into(), ..Default::default() });
    b.location(&run.vertex, file, vec![Range { start: (3, 0), end: (3, 9) }]);
    let graph = b.finish(Some(top.clone()));
    assert_eq!(graph.clone().rewrite(&Rewrite::default()), graph, "nothing to do changes nothing");

    let pinned = SourceOp { identifier: "docker-image://b".into(), attrs: Default::default() };
    let rewrite = Rewrite { sources: HashMap::from([(image.vertex.clone(), pinned)]), ..Default::default() };
    let new = graph.clone().rewrite(&rewrite);
    let result = new.result.clone().unwrap();
    assert_ne!(result.vertex, top.vertex);
    assert_eq!(new.original(&result.vertex), &top.vertex);
    assert_eq!(new.original(&context.vertex), &context.vertex, "what is not above a change keeps its digest");
    assert!(new.vertex(&context.vertex).is_some());
    let new_run = &new.vertices.iter().find(|v| v.name == "make").unwrap().digest;
    assert_eq!(new.locations(new_run).len(), 1, "locations are found under the client's digest");
    assert_eq!(Graph::load(&new.encode()).unwrap().vertices, new.vertices, "the rewritten graph is a definition of its own");

    let proxied = graph.clone().rewrite(&Rewrite { proxy_network: true, ..Default::default() });
    let marked = proxied.vertices.iter().find(|v| v.name == "make").unwrap();
    assert_eq!(marked.encoded, graph.vertex(&run.vertex).unwrap().encoded);
    assert_ne!(marked.digest, run.vertex);
}

#[test]
fn unknown_capabilities_are_refused() {
    let mut b = Builder::new();
    let mut with = |cap: &str| {
        let metadata = Metadata { caps: [(cap.to_owned(), true)].into(), ..Default::default() };
        let edge = b.add(source(cap), vec![], None, vec![], metadata);
        b.finish(Some(edge)).check_capabilities().map_err(|e| e.to_string())
    };
    assert_eq!(with("exec.mount.ssh"), Ok(()));
    assert_eq!(with("exec.teleport"), Err("unknown API capability exec.teleport".to_owned()));
}
