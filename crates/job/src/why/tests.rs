//! Steps as the engine tells of them, and what is said of them.
use std::collections::BTreeMap;

use engine::RanInput;
use llb::{ExecOp, FileOp, Meta, Metadata, SourceOp, Vertex};
use oci::Digest;
use solver::KeyId;

use super::*;

struct House {
    _dir: tempfile::TempDir,
    likes: Likes,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let likes = Likes::new(kv::Db::open(&dir.path().join("db"), kv::Options::default()).unwrap());
        Self { _dir: dir, likes }
    }

    /// One text for each miss: the step and the reasons.
    fn build(&self, name: &str, attrs: &[&str], steps: Vec<Ran>) -> Vec<String> {
        let inquiry = Inquiry::new(name);
        steps.into_iter().for_each(|step| inquiry.ran(&Arc::new(step)));
        let attrs: BTreeMap<String, String> = attrs.iter().map(|name| ((*name).to_owned(), String::new())).collect();
        let misses = inquiry.conclude(&self.likes, &Circumstances { project: "p".into(), attrs: Some(&attrs) });
        let text = |miss: Miss| format!("{}: {}", miss.step, miss.reasons.iter().map(|r| &*r.text).collect::<Vec<_>>().join("; "));
        misses.into_iter().map(text).collect()
    }
}

fn vertex(name: &str, op: Op) -> Arc<Vertex> {
    Arc::new(Vertex {
        digest: Digest::of(name),
        encoded: Default::default(),
        op,
        inputs: Vec::new(),
        platform: None,
        constraints: Vec::new(),
        metadata: Metadata::default(),
        proxied: false,
        name: name.to_owned(),
    })
}

fn input(vertex: Arc<Vertex>, key: &str) -> RanInput {
    RanInput { vertex, output: 0, selector: None, keys: vec![KeyId::from(Digest::of(key))], content: None, forced: false, layer: None }
}

fn image(reference: &str) -> RanInput {
    let source = SourceOp { identifier: format!("docker-image://{reference}"), attrs: BTreeMap::new() };
    input(vertex(&format!("[base 1/3] FROM {reference}"), Op::Source(source)), reference)
}

fn run(name: &str, command: &str, env: &[&str], below: RanInput) -> Ran {
    let meta = Meta { args: vec![command.to_owned()], env: env.iter().map(|e| (*e).to_owned()).collect(), ..Meta::default() };
    let op = ExecOp { meta, ..ExecOp::default() };
    let digest = Digest::of(format!("{command} {env:?}"));
    Ran { vertex: vertex(name, Op::Exec(Box::new(op))), digest, ignore_cache: false, inputs: vec![below], succeeded: true }
}

#[test]
fn each_change_is_named() {
    let house = House::new();
    let step = |command, env: &[&str]| run("[base 2/3] RUN x", command, env, image("a@1"));
    assert!(house.build("1", &[], vec![step("x", &["WORD=a", "PATH=p"])]).is_empty(), "nothing was there before");
    let said = house.build("2", &["build-arg:WORD"], vec![step("x", &["WORD=b", "PATH=p"])]);
    assert_eq!(said, ["[base 2/3] RUN x: build argument WORD has changed"]);
    let said = house.build("3", &[], vec![step("x", &["WORD=b"])]);
    assert_eq!(said, ["[base 2/3] RUN x: argument or environment variable PATH is gone"]);
    let said = house.build("4", &[], vec![step("y", &["WORD=b"])]);
    assert_eq!(said, ["[base 2/3] RUN x: its command has changed"]);
    let said = house.build("5", &[], vec![run("[base 2/3] RUN x", "y", &["WORD=b"], image("a@2"))]);
    assert_eq!(said, ["[base 2/3] RUN x: its base image has changed from a@1 to a@2"]);
    let said = house.build("6", &[], vec![run("[base 2/3] RUN x", "y", &["WORD=b"], image("a@2"))]);
    assert_eq!(said, ["[base 2/3] RUN x: its earlier result is not in the cache any more (pruned or evicted)"]);
    let forbidden = Ran { ignore_cache: true, ..run("[base 2/3] RUN x", "y", &["WORD=b"], image("a@2")) };
    assert_eq!(house.build("7", &[], vec![forbidden]), ["[base 2/3] RUN x: the build forbids the cache for it (no-cache)"]);
}

#[test]
fn a_step_that_moved_is_still_known_and_what_it_follows_is_named() {
    let house = House::new();
    let first = || vertex("[base 2/3] RUN one", Op::Exec(Box::default()));
    house.build("1", &[], vec![run("[base 3/3] RUN two", "two", &[], input(first(), "k1"))]);
    let new = vertex("[base 3/4] RUN new", Op::Exec(Box::default()));
    let said = house.build("2", &[], vec![run("[base 4/4] RUN two", "two", &[], input(new, "k2"))]);
    assert_eq!(said, ["[base 4/4] RUN two: it follows the step \"[base 3/4] RUN new\" now, and followed the step \"[base 2/3] RUN one\""]);
    let forced = RanInput { forced: true, ..input(first(), "k1") };
    let said = house.build("3", &[], vec![run("[base 3/3] RUN two", "two", &[], forced)]);
    assert_eq!(said, ["[base 3/3] RUN two: the step \"[base 2/3] RUN one\" was made without the cache"]);
}

#[test]
fn other_stages_other_projects_failed_steps_and_the_same_build_are_no_likes() {
    let house = House::new();
    let step = |name: &str, command: &str| run(name, command, &[], image("a@1"));
    house.build("1", &[], vec![step("[base 2/3] RUN x", "x"), Ran { succeeded: false, ..step("[fails 2/2] RUN z", "z") }]);
    assert!(house.build("2", &[], vec![step("[other 2/3] RUN x", "x"), step("[fails 2/2] RUN z", "z")]).is_empty());
    let twins = vec![step("[twins 2/3] RUN a", "a"), step("[twins 3/3] RUN a", "a")];
    assert!(house.build("3", &[], twins).is_empty());
}

#[test]
fn files_that_changed_are_listed() {
    let house = House::new();
    let copy = |content: &str, files: &[(&str, &str)]| {
        let op = Op::File(FileOp::default());
        let context =
            vertex("[internal] load build context", Op::Source(SourceOp { identifier: "local://context".into(), ..SourceOp::default() }));
        let run = Ran {
            vertex: vertex("[base 2/2] COPY . .", op),
            digest: Digest::of("copy"),
            ignore_cache: false,
            inputs: vec![RanInput { content: Some(KeyId::from(Digest::of(content))), ..input(context, content) }],
            succeeded: true,
        };
        let mut print = Print::of(&run, content, &mut files::Listings::default());
        print.inputs[0].files = files.iter().map(|(path, digest)| ((*path).to_owned(), (*digest).to_owned())).collect();
        (run, print)
    };
    let (_, before) = copy("1", &[("/a", "1"), ("/b", "1"), ("/c", "1")]);
    let (run, after) = copy("2", &[("/a", "2"), ("/b", "1"), ("/d/e", "1")]);
    house.likes.add([("here".to_owned(), before)]);
    let known = house.likes.at("here");
    let like = compare::like(&after, &known).unwrap();
    let said: Vec<String> = compare::reasons(&run, &after, like, &|_| false).iter().map(ToString::to_string).collect();
    assert_eq!(said, ["files of the build context: changed a; new d/e; gone c"]);
}

#[test]
fn what_is_kept_is_bounded() {
    let house = House::new();
    for i in 0..10 {
        let many = (0..MOST_STEPS).map(|n| run(&format!("RUN {i} {n}"), &format!("{i} {n}"), &["A=b"], image(&"x".repeat(200)))).collect();
        house.build(&i.to_string(), &[], many);
    }
    let step = run("RUN 9 9", "9 9", &[], image("a"));
    let place = print::place(&step.vertex, "p");
    let kept = house.likes.at(&place);
    assert!(!kept.is_empty() && kept.len() <= 64, "{}", kept.len());
    assert!(kept.iter().all(|print| print.build == "9"));
    house.likes.clean().unwrap();
    assert_eq!(house.likes.at(&place).len(), kept.len());
}
