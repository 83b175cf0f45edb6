//! LLB that is none, or says what cannot be.
use oci::Digest;
use prost::Message as _;
use proto::pb;
use testkit::Daemon;

use crate::client::{connect, solve};
use crate::lives_on;

fn source(identifier: &str) -> pb::Op {
    pb::Op {
        op: Some(pb::op::Op::Source(pb::SourceOp { identifier: identifier.into(), attrs: Default::default() })),
        platform: Some(pb::Platform { os: "linux".into(), architecture: "amd64".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn digest(op: &pb::Op) -> String {
    Digest::of(op.encode_to_vec()).to_string()
}

fn input(op: &pb::Op, index: i64) -> pb::Input {
    pb::Input { digest: digest(op), index }
}

/// A definition of these ops whose result is output `index` of the last.
fn of(ops: &[pb::Op], index: i64) -> pb::Definition {
    let end = pb::Op { inputs: ops.last().map(|op| input(op, index)).into_iter().collect(), ..Default::default() };
    pb::Definition { def: ops.iter().chain([&end]).map(|op| op.encode_to_vec().into()).collect(), ..Default::default() }
}

fn exec(inputs: Vec<pb::Input>, meta: Option<pb::Meta>, mounts: Vec<pb::Mount>) -> pb::Op {
    pb::Op { inputs, op: Some(pb::op::Op::Exec(pb::ExecOp { meta, mounts, ..Default::default() })), ..source("") }
}

fn meta() -> Option<pb::Meta> {
    Some(pb::Meta { args: vec!["/bin/true".into()], cwd: "/".into(), ..Default::default() })
}

fn root(index: i64) -> pb::Mount {
    pb::Mount { input: index, dest: "/".into(), output: 0, ..Default::default() }
}

fn file(inputs: Vec<pb::Input>, actions: Vec<pb::FileAction>) -> pb::Op {
    pb::Op { inputs, op: Some(pb::op::Op::File(pb::FileOp { actions })), ..source("") }
}

fn mkdir(from: i64, path: &str) -> pb::FileAction {
    let action = pb::FileActionMkDir { path: path.into(), mode: 0o755, timestamp: -1, ..Default::default() };
    pb::FileAction { input: from, secondary_input: -1, output: 0, action: Some(pb::file_action::Action::Mkdir(action)) }
}

/// A graph that would run, but for one thing that nobody knows.
fn with_capability(id: &str) -> pb::Definition {
    let made = file(vec![], vec![mkdir(-1, "/a")]);
    let mut definition = of(&[made], 0);
    let ops: Vec<String> = definition.def.iter().map(|op| Digest::of(op).to_string()).collect();
    for op in ops {
        let metadata = pb::OpMetadata { caps: [(id.to_owned(), true)].into(), ..Default::default() };
        definition.metadata.insert(op, metadata);
    }
    definition
}

#[tokio::test]
async fn definitions_that_cannot_be() {
    let daemon = Daemon::start(&[]);
    let client = connect(&daemon).await;
    let local = source("local://context");
    let nowhere = pb::Input { digest: Digest::of("nowhere").to_string(), index: 0 };
    let garbage = |parts: &[&[u8]]| pb::Definition { def: parts.iter().map(|p| p.to_vec().into()).collect(), ..Default::default() };
    let unknown_action = pb::FileAction { input: -1, secondary_input: -1, output: 0, action: None };
    let made = file(vec![], vec![mkdir(-1, "/a")]);
    let exec_of = |index, mounts| exec(vec![input(&made, index)], meta(), mounts);
    let mut itself = source("local://x");
    itself.inputs = vec![pb::Input { digest: digest(&itself), index: 0 }];
    let merge = |index| pb::Op {
        inputs: vec![input(&made, 0)],
        op: Some(pb::op::Op::Merge(pb::MergeOp { inputs: vec![pb::MergeInput { input: index }, pb::MergeInput { input: 0 }] })),
        ..Default::default()
    };
    for (definition, want) in [
        (garbage(&[b""]), "invalid LLB with 1 vertexes"),
        (garbage(&[b"\xff\xff\xff"]), "failed to parse llb proto op"),
        (garbage(&[b"\x0a\xff\x01", b"x"]), "failed to parse llb proto op"),
        (garbage(&[&[0x12; 3000], b""]), "failed to parse llb proto op"),
        (of(&[], 0), "invalid LLB with 1 vertexes"),
        (of(&[pb::Op { inputs: vec![nowhere.clone()], ..local.clone() }], 0), &nowhere.digest),
        (of(&[itself.clone()], 0), &itself.inputs[0].digest),
        (of(std::slice::from_ref(&local), -1), "output index -1"),
        (of(std::slice::from_ref(&local), i64::MAX), "output index 9223372036854775807"),
        (of(&[pb::Op { op: None, ..local.clone() }], 0), "invalid nil op"),
        (of(&[source("gopher://x")], 0), "gopher"),
        (of(&[source("")], 0), "failed to parse"),
        (of(&[source("docker-image://a b c")], 0), "a b c"),
        (of(&[source("local://")], 0), "local"),
        (with_capability("source.time-travel"), "source.time-travel"),
        (of(&[made.clone(), exec(vec![input(&made, 0)], None, vec![root(0)])], 0), "invalid exec op with no meta"),
        (of(&[made.clone(), exec(vec![input(&made, 0)], Some(pb::Meta::default()), vec![root(0)])], 0), "invalid exec op with no args"),
        (of(&[made.clone(), exec_of(0, vec![])], 0), "invalid exec op with no mounts"),
        (of(&[made.clone(), exec_of(0, vec![root(3)])], 0), "invalid mount input 3"),
        (of(&[made.clone(), exec_of(0, vec![root(-2)])], 0), "-2"),
        (of(&[made.clone(), exec_of(5, vec![root(0)])], 0), "5"),
        (of(&[file(vec![], vec![])], 0), "invalid file op with no actions"),
        (of(&[file(vec![], vec![unknown_action])], 0), "invalid nil file action"),
        (of(&[file(vec![], vec![mkdir(4, "/a")])], 0), "4"),
        (of(&[file(vec![], vec![mkdir(0, "/a")])], 0), "0"),
        (of(&[made.clone(), merge(9)], 0), "invalid merge input index 9"),
    ] {
        let said = solve(&client, definition.clone(), "").await;
        assert!(said.contains(want), "wanted {want:?}, got {said:?} for {definition:?}");
    }
    assert_eq!(solve(&client, garbage(&[]), "").await, "", "no definition and no frontend: nothing to do, as in BuildKit");
    lives_on(&daemon);
}

#[tokio::test]
async fn a_vertex_twice_is_one_and_a_deep_graph_is_no_danger() {
    let daemon = Daemon::start(&[]);
    let client = connect(&daemon).await;
    let made = file(vec![], vec![mkdir(-1, "/a")]);
    let twice = of(&[made.clone(), made.clone()], 0);
    assert_eq!(solve(&client, twice, "").await, "");
    let mut chain = vec![made];
    for step in 0..20_000 {
        let below = input(chain.last().unwrap(), 0);
        // The result leads nowhere, so nothing of this runs: it is loaded, hashed and searched.
        chain.push(file(vec![below], vec![mkdir(0, &format!("/a/{step}"))]));
    }
    chain[0] = source("gopher://deep");
    for at in 1..chain.len() {
        chain[at].inputs = vec![input(&chain[at - 1], 0)];
    }
    let said = solve(&client, of(&chain, 0), "").await;
    assert!(said.contains("gopher"), "{said}");
    lives_on(&daemon);
}

/// Through the command line: bytes that are no definition at all.
#[test]
fn bytes_that_are_no_definition() {
    use std::io::Write as _;
    use std::process::Stdio;
    let daemon = Daemon::start(&[]);
    for bytes in [&b""[..], b"not a definition", &[0xff; 64], b"\x0a\x05abc"] {
        let mut client = daemon.kiln(&["build"]);
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = client.stdin.take().unwrap().write_all(bytes);
        let output = client.wait_with_output().unwrap();
        assert!(!output.status.success() && !output.stderr.is_empty(), "{bytes:?}");
    }
    lives_on(&daemon);
}
