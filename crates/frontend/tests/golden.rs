//! Whole requests against what BuildKit's own frontend answered: vertex digests, names, capabilities, places, metadata, warnings, errors.
//!
//! `golden.json` holds requests and BuildKit's answers to them, given the same images. Vertices are compared as a set where several platforms
//! are built at once, because BuildKit's order is then not fixed either.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use fault::{Detail, Fault, Kind, Result};
use frontend::bridge::*;
use llb::Graph;
use oci::{Digest, Platform};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    images: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Case {
    name: String,
    dockerfile: String,
    ignore: String,
    opts: BTreeMap<String, String>,
    /// More files that every ref has.
    files: BTreeMap<String, String>,
    /// The commit object of every git source.
    commit: String,
    /// When every download was modified; 0 if its server does not say.
    modified: i64,
    /// Names of graphs that the client hands over.
    inputs: Vec<String>,
    error: String,
    places: Vec<Vec<i32>>,
    /// digest | name | command | capabilities | places | progress group | `again` if not to be taken from the cache
    vertices: Vec<String>,
    metadata: BTreeMap<String, String>,
    /// Images and sources asked for, with the name of the question; where it is the same question.
    asked: Option<Vec<String>>,
    warnings: Vec<String>,
}

/// A client and daemon that have the case's files and images, and solve nothing.
struct Fake<'a> {
    case: &'a Case,
    images: &'a BTreeMap<String, String>,
    build: Build,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    vertices: Vec<String>,
    asked: Vec<String>,
    warnings: Vec<String>,
}

struct Files {
    graph: Arc<Graph>,
    files: BTreeMap<String, String>,
}

#[async_trait]
impl Ref for Files {
    fn id(&self) -> &str {
        "ref"
    }

    fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    async fn evaluate(&self) -> Result<()> {
        Ok(())
    }

    async fn read_file(&self, path: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        let missing = || Fault::new(Kind::NotFound, format!("open {path}: no such file or directory"));
        let data = Bytes::from(self.files.get(path).ok_or_else(missing)?.clone());
        Ok(range.map_or(data.clone(), |(from, length)| data.slice(from as usize..data.len().min((from + length) as usize))))
    }

    async fn read_dir(&self, _: &str, _: &str) -> Result<Vec<session::Stat>> {
        Err(Fault::internal("no frontend of this test reads directories"))
    }

    async fn stat_file(&self, _: &str) -> Result<session::Stat> {
        Err(Fault::internal("no frontend of this test asks for metadata"))
    }
}

#[async_trait]
impl Bridge for Fake<'_> {
    fn build(&self) -> &Build {
        &self.build
    }

    async fn resolve_source(&self, request: ResolveRequest) -> Result<SourceMeta> {
        let (scheme, reference) = request.op.identifier.split_once("://").expect("identifiers have a scheme");
        if scheme != "docker-image" && scheme != "oci-layout" {
            self.seen.lock().unwrap().asked.push(format!("{} {}", request.op.identifier, request.log_name));
            let git = GitMeta { commit_object: self.case.commit.clone().into(), ..GitMeta::default() };
            let last_modified = Some(self.case.modified).filter(|time| *time != 0);
            let http = HttpMeta { digest: Digest::of(b""), filename: String::new(), last_modified, checksum: None };
            let is_git = scheme == "git";
            return Ok(SourceMeta { op: request.op, image: None, git: is_git.then_some(git), http: (!is_git).then_some(http) });
        }
        let platform = request.platform.as_ref().map_or(String::new(), |p| format!("{}/{}/{}", p.os, p.architecture, p.variant));
        let with_platform = format!("{reference} {platform}");
        self.seen.lock().unwrap().asked.push(format!("{with_platform} {}", request.log_name));
        let found = self.images.get(&with_platform).or_else(|| self.images.get(reference));
        let config = found.ok_or_else(|| Fault::new(Kind::NotFound, format!("{reference}: not found")))?.clone();
        let image = ImageMeta { digest: Digest::of(&config), config: config.into(), attestations: None };
        Ok(SourceMeta { op: request.op, image: Some(image), git: None, http: None })
    }

    async fn solve(&self, request: SolveRequest) -> Result<Outcome> {
        if !request.frontend.is_empty() {
            return Err(Fault::new(Kind::Unknown, format!("forward {} {}", request.frontend, request.frontend_opts["source"])));
        }
        let graph = request.graph.unwrap_or_default();
        // What is handed over must load as what came over the wire does.
        if graph.result.is_some() {
            assert_eq!(Graph::decode(graph.to_bytes()).unwrap().vertices, graph.vertices);
        }
        let mut seen = self.seen.lock().unwrap();
        seen.vertices.extend(graph.vertices.iter().map(|vertex| describe(&graph, vertex)));
        let name = self.case.opts.get("filename").map_or("Dockerfile", String::as_str).to_owned();
        let mut files = self.case.files.clone();
        files.entry(name).or_insert_with(|| self.case.dockerfile.clone());
        if !self.case.ignore.is_empty() {
            files.insert(".dockerignore".into(), self.case.ignore.clone());
        }
        Ok(Outcome::single(Some(Arc::new(Files { graph, files }))))
    }

    async fn inputs(&self) -> Result<BTreeMap<String, Arc<Graph>>> {
        Ok(self.case.inputs.iter().map(|name| (name.clone(), Arc::new(client_graph(name)))).collect())
    }

    async fn warn(&self, warning: progress::Warning) -> Result<()> {
        self.seen.lock().unwrap().warnings.push(String::from_utf8(warning.short.to_vec()).unwrap());
        Ok(())
    }
}

/// An image with a directory made in it.
fn client_graph(name: &str) -> Graph {
    let mut builder = llb::Builder::new();
    let metadata = |cap: &str| llb::Metadata { caps: [(cap.to_owned(), true)].into(), ..llb::Metadata::default() };
    let image = llb::SourceOp { identifier: format!("docker-image://docker.io/library/input-{name}:latest"), ..Default::default() };
    let arm64 = Platform::new("linux", "arm64", "");
    let image = builder.add(llb::Op::Source(image), Vec::new(), Some(arm64), Vec::new(), metadata("source.image"));
    let path = format!("/{name}");
    let kind = llb::FileActionKind::Mkdir { path, mode: 0o755, make_parents: false, owner: None, timestamp: -1 };
    let action = llb::FileAction { input: Some(0), secondary_input: None, output: Some(0), kind };
    let made = builder.add(llb::Op::File(llb::FileOp { actions: vec![action] }), vec![image], None, Vec::new(), metadata("file.base"));
    builder.finish(Some(made))
}

fn describe(graph: &Graph, vertex: &llb::Vertex) -> String {
    let metadata = &vertex.metadata;
    let text = |key: &str| metadata.description.get(key).map(String::as_str);
    let places: Vec<String> = graph.locations(&vertex.digest).iter().map(|l| format!("{:?}", lines(&l.ranges)).replace(' ', "")).collect();
    let caps: Vec<&str> = metadata.caps.keys().map(String::as_str).collect();
    let group = metadata.progress_group.as_ref().map_or(String::new(), |g| format!("{} weak={}", g.name, g.weak));
    [
        vertex.digest.to_string(),
        text("llb.customname").unwrap_or_default().to_owned(),
        text("com.docker.dockerfile.v1.command").unwrap_or("-").to_owned(),
        caps.join(" "),
        format!("[{}]", places.join(",")),
        group,
        if metadata.ignore_cache { "again" } else { "" }.to_owned(),
    ]
    .join(" | ")
}

fn lines(ranges: &[llb::Range]) -> Vec<i32> {
    ranges.iter().map(|range| range.start.0).collect()
}

#[tokio::test]
async fn answers_what_buildkit_answers() {
    let golden: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
    assert!(golden.cases.len() > 200);
    for case in &golden.cases {
        check(case, &golden.images).await;
    }
}

async fn check(case: &Case, images: &BTreeMap<String, String>) {
    let platforms = vec![Platform::new("linux", "amd64", ""), Platform::new("linux", "arm64", "")];
    let build = Build {
        opts: case.opts.clone(),
        session_id: "sess".into(),
        workers: vec![WorkerPlatforms { id: "worker".into(), labels: BTreeMap::new(), platforms }],
        llb_caps: llb::CAPABILITIES.iter().copied().collect(),
        gateway_caps: ["frontend.inputs"].into_iter().collect(),
        ..Build::default()
    };
    let fake = Fake { case, images, build, seen: Mutex::default() };
    let outcome = frontend::dockerfile::build(&fake).await;
    let mut seen = fake.seen.into_inner().unwrap();
    let name = &case.name;
    assert_eq!(seen.warnings, case.warnings, "{name}: warnings");
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(fault) => {
            assert_eq!(fault.to_string(), case.error, "{name}: error");
            let place = |detail: &&Detail| match detail {
                Detail::Source { ranges, .. } => Some(ranges.iter().map(|range| range.start.0).collect::<Vec<_>>()),
                _ => None,
            };
            let mut places: Vec<Vec<i32>> = fault.details().iter().filter_map(place).collect();
            let mut want = case.places.clone();
            places.sort();
            want.sort();
            assert_eq!(places, want, "{name}: places");
            return;
        }
    };
    assert_eq!(case.error, "", "{name}: an error was expected");
    let mut want = case.vertices.clone();
    if case.opts.get("platform").is_some_and(|p| p.contains(',')) {
        want.sort();
        seen.vertices.sort();
    }
    assert_eq!(seen.vertices, want, "{name}: vertices");
    seen.asked.sort();
    if let Some(asked) = &case.asked {
        assert_eq!(&seen.asked, asked, "{name}: images asked for");
    }
    // Long values are there as digests only.
    let value = |key: &String, value: &Bytes| match case.metadata.get(key) {
        Some(want) if want.starts_with("sha256:") => Digest::of(value).to_string(),
        _ => String::from_utf8(value.to_vec()).unwrap(),
    };
    let metadata: BTreeMap<String, String> = outcome.metadata.iter().map(|(key, v)| (key.clone(), value(key, v))).collect();
    assert_eq!(metadata, case.metadata, "{name}: metadata");
}
