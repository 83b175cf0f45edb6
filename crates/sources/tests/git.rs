//! Repositories over HTTP, as a plain file server offers them, and what is made of them.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use oci::Digest;
use snapshot::Follow;
use support::{Client, Place, context, op, read, vertex};

/// A repository `x.git`, and a server that shows its files.
struct Remote {
    dir: tempfile::TempDir,
    address: String,
    /// The `Authorization` headers that came.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Remote {
    /// One commit with `file`, `sub/inner`, `sub/link` and the executable `run.sh`, on the branch `main`; tags `v1` and, annotated, `v1a`.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let remote = Self { address: String::new(), seen: Arc::default(), dir };
        let work = remote.work();
        std::fs::create_dir_all(work.join("sub")).unwrap();
        remote.git(&["-c", "init.defaultBranch=main", "init", "-q"]);
        std::fs::write(work.join("file"), "one").unwrap();
        std::fs::write(work.join("sub/inner"), "two").unwrap();
        std::fs::write(work.join("run.sh"), "#!/bin/sh").unwrap();
        std::os::unix::fs::symlink("inner", work.join("sub/link")).unwrap();
        remote.git(&["add", "-A"]);
        remote.git(&["update-index", "--chmod=+x", "run.sh"]);
        remote.git(&["commit", "-q", "-m", "first"]);
        remote.git(&["tag", "v1"]);
        remote.git(&["tag", "-a", "-m", "annotated", "v1a"]);
        remote.publish();
        remote.serve()
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn git(&self, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.current_dir(self.work()).args(args);
        for (key, value) in [
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_AUTHOR_NAME", "a"),
            ("GIT_AUTHOR_EMAIL", "a@b"),
            ("GIT_COMMITTER_NAME", "a"),
            ("GIT_COMMITTER_EMAIL", "a@b"),
            ("GIT_AUTHOR_DATE", "1600000000 +0000"),
            ("GIT_COMMITTER_DATE", "1600000001 +0000"),
        ] {
            command.env(key, value);
        }
        let output = command.output().expect("git is installed");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Makes the served copy what the work tree is.
    fn publish(&self) {
        let bare = self.dir.path().join("x.git");
        let _ = std::fs::remove_dir_all(&bare);
        let bare = bare.to_str().unwrap().to_owned();
        self.git(&["clone", "-q", "--bare", ".", &bare]);
        self.git(&["--git-dir", &bare, "update-server-info"]);
    }

    fn serve(mut self) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        self.address = listener.local_addr().unwrap().to_string();
        let (root, seen) = (self.dir.path().to_owned(), self.seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let Some(request) = lines.next() else { continue };
                let headers = lines.take_while(|l| !l.is_empty()).filter(|l| l.to_lowercase().starts_with("authorization:"));
                seen.lock().unwrap().extend(headers);
                let path = request.split(' ').nth(1).unwrap().split('?').next().unwrap().trim_start_matches('/').to_owned();
                let (status, body) = match std::fs::read(root.join(path)) {
                    Ok(body) => ("200 OK", body),
                    Err(_) => ("404 Not Found", Vec::new()),
                };
                let _ = write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(&body);
            }
        });
        self
    }

    fn url(&self) -> String {
        format!("http://{}/x.git", self.address)
    }

    fn vertex(&self, fragment: &str, attrs: &[(&str, &str)]) -> llb::Vertex {
        let url = self.url();
        let attrs: Vec<_> = attrs.iter().copied().chain([("git.fullurl", url.as_str())]).collect();
        vertex(&format!("git://{}/x.git{fragment}", self.address), &attrs)
    }
}

#[tokio::test]
async fn a_branch_is_a_commits_files() {
    let remote = Remote::new();
    let (place, context) = (Place::new(), context(&[]));
    let head = remote.git(&["rev-parse", "HEAD"]);
    for fragment in ["", "#main", "#refs/heads/main", "#v1", &format!("#{head}")] {
        let vertex = remote.vertex(fragment, &[]);
        let key = place.key(&vertex, 0, &context).await.unwrap();
        assert_eq!((key.pin.as_str(), key.digest), (head.as_str(), Digest::of(format!("buildkit.source.v0:{head}"))), "{fragment}");
    }
    let vertex = remote.vertex("", &[]);
    let layer = place.fetch(&vertex, &context).await.unwrap().unwrap();
    assert_eq!(layer.description(), format!("git snapshot for {}#main", remote.url()));
    let view = place.files(&layer, &context).await;
    assert_eq!((read(&view, "file").as_str(), read(&view, "sub/link").as_str()), ("one", "two"));
    let mode = |path: &str| view.lookup(Path::new(path), Follow::No).unwrap().unwrap().metadata().mode & 0o7777;
    assert_eq!((mode("file"), mode("run.sh"), mode("sub")), (0o644, 0o755, 0o755));
    assert!(view.lookup(Path::new(".git"), Follow::No).unwrap().is_none());
    // What is checked out once is not checked out again.
    let again = place.fetch(&remote.vertex("#v1", &[]), &context).await.unwrap().unwrap();
    assert_eq!(again.id(), layer.id());
}

#[tokio::test]
async fn annotated_tags_lead_to_their_commit() {
    let remote = Remote::new();
    let (place, context) = (Place::new(), context(&[]));
    let (head, tag) = (remote.git(&["rev-parse", "HEAD"]), remote.git(&["rev-parse", "v1a"]));
    let key = place.key(&remote.vertex("#v1a", &[]), 0, &context).await.unwrap();
    assert_eq!((key.pin.as_str(), key.digest), (tag.as_str(), Digest::of(format!("buildkit.source.v0:{head}"))));
    let kept = remote.vertex("#v1a", &[("git.keepgitdir", "true")]);
    let key = place.key(&kept, 0, &context).await.unwrap();
    assert_eq!(key.digest, Digest::of(format!("buildkit.source.v0:{tag}.git#refs/tags/v1a")));
    let layer = place.fetch(&kept, &context).await.unwrap().unwrap();
    let view = place.files(&layer, &context).await;
    assert!(read(&view, ".git/config").contains(&remote.url()));
    let op = op(&format!("git://{}/x.git#v1a", remote.address), &[("git.fullurl", &remote.url())]);
    let meta = place.sources.git_meta(&op, true, &context).await.unwrap();
    assert_eq!((meta.reference.as_str(), meta.checksum, meta.commit_checksum), ("refs/tags/v1a", tag, head));
    assert!(meta.commit_object.starts_with(b"tree ") && meta.tag_object.starts_with(b"object "));
}

#[tokio::test]
async fn directories_and_times() {
    let remote = Remote::new();
    let (place, context) = (Place::new(), context(&[]));
    let vertex = remote.vertex("#main:sub", &[("git.mtime", "commit")]);
    let layer = place.fetch(&vertex, &context).await.unwrap().unwrap();
    let view = place.files(&layer, &context).await;
    let names: Vec<_> = view.read_dir(Path::new("")).unwrap().into_iter().map(|e| e.name().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["inner", "link"]);
    let snapshot::MountSpec::Overlay { lowers, .. } = layer.mount_spec().unwrap() else {
        panic!("an overlay, or this file system cannot be tested on")
    };
    for name in ["", "inner", "link"] {
        assert_eq!(std::fs::symlink_metadata(lowers[0].join(name)).unwrap().mtime(), 1_600_000_001, "{name}");
    }
    for (fragment, error) in [
        ("#main:nope", "invalid subdir nope: failed to lstat \"nope\": no such file or directory"),
        ("#main:file", "invalid subdir file: git subpath \"file\" contains non-directory \"file\""),
    ] {
        let fault = place.fetch(&remote.vertex(fragment, &[]), &context).await.unwrap_err();
        assert_eq!(fault.to_string(), error);
    }
}

#[tokio::test]
async fn a_moved_branch_gives_what_was_pinned() {
    let remote = Remote::new();
    let (place, context) = (Place::new(), context(&[]));
    let (before, vertex) = (remote.git(&["rev-parse", "HEAD"]), remote.vertex("#main", &[]));
    let key = place.key(&vertex, 0, &context).await.unwrap();
    std::fs::write(remote.work().join("file"), "changed").unwrap();
    remote.git(&["commit", "-q", "-a", "-m", "second"]);
    remote.publish();
    let layer = place.fetch(&vertex, &context).await.unwrap().unwrap();
    assert_eq!((key.pin, read(&place.files(&layer, &context).await, "file").as_str()), (before, "one"));
    // Asked anew it is the new commit.
    assert_eq!(place.key(&vertex, 0, &context).await.unwrap().pin, remote.git(&["rev-parse", "HEAD"]));
    let layer = place.fetch(&vertex, &context).await.unwrap().unwrap();
    assert_eq!(read(&place.files(&layer, &context).await, "file"), "changed");
}

#[tokio::test]
async fn a_session_sees_one_commit() {
    let remote = Remote::new();
    let (place, same, other) = (Place::new(), context(&[Arc::new(Client::new("a"))]), context(&[Arc::new(Client::new("b"))]));
    let before = place.key(&remote.vertex("#main", &[]), 0, &same).await.unwrap().pin;
    remote.git(&["commit", "-q", "--allow-empty", "-m", "second"]);
    remote.publish();
    assert_eq!(place.key(&remote.vertex("#main:sub", &[]), 0, &same).await.unwrap().pin, before);
    assert_ne!(place.key(&remote.vertex("#main:sub", &[]), 0, &other).await.unwrap().pin, before);
}

#[tokio::test]
async fn checksums_are_held_to() {
    let remote = Remote::new();
    let (place, context) = (Place::new(), context(&[]));
    let head = remote.git(&["rev-parse", "HEAD"]);
    let key = place.key(&remote.vertex("#v1a", &[("git.checksum", &head[..12])]), 0, &context).await;
    key.unwrap();
    let fault = place.key(&remote.vertex("#main", &[("git.checksum", "1234")]), 0, &context).await.unwrap_err();
    assert_eq!(fault.to_string(), format!("expected checksum to match 1234, got {head}"));
    let fault = place.key(&remote.vertex("#nope", &[]), 0, &context).await.unwrap_err();
    assert!(fault.to_string().starts_with("repository does not contain ref nope"), "{fault}");
}

#[tokio::test]
async fn a_clients_token_lets_in() {
    let remote = Remote::new();
    let client = Client { secrets: [("T".to_owned(), "tok".into())].into(), ..Client::new("c") };
    let (place, context) = (Place::new(), context(&[Arc::new(client)]));
    let vertex = remote.vertex("#main", &[("git.authtokensecret", "T"), ("git.authheadersecret", "H")]);
    place.key(&vertex, 0, &context).await.unwrap();
    let seen = remote.seen.lock().unwrap().clone();
    assert!(!seen.is_empty() && seen.iter().all(|header| header == "Authorization: basic eC1hY2Nlc3MtdG9rZW46dG9r"), "{seen:?}");
}

#[tokio::test]
async fn a_cancelled_build_ends_git() {
    // Accepts and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (place, context) = (Place::new(), context(&[]));
    let vertex = vertex(&format!("git://{address}/x.git"), &[("git.fullurl", &format!("http://{address}/x.git"))]);
    let cancel = context.cancel.clone();
    let canceller = std::thread::spawn(move || {
        let connection = listener.accept().unwrap();
        cancel.cancel("enough");
        connection
    });
    let fault = place.key(&vertex, 0, &context).await.unwrap_err();
    assert_eq!(
        (fault.kind(), fault.to_string().as_str()),
        (
            fault::Kind::Canceled,
            "error fetching default branch for repository \
        http://ADDRESS/x.git: enough"
                .replace("ADDRESS", &address.to_string())
                .as_str()
        )
    );
    drop(canceller.join().unwrap());
}

/// A client that has the bundle which a build of `vertex` made, and the attributes that lead to it.
async fn with_bundle(place: &Place, vertex: &llb::Vertex, context: &sources::Context) -> (Arc<Client>, String) {
    let layer = place.fetch(vertex, context).await.unwrap().unwrap();
    let snapshot::MountSpec::Overlay { lowers, .. } = layer.mount_spec().unwrap() else { panic!("an overlay") };
    let bundle = std::fs::read(lowers[0].join("bundle")).unwrap();
    let digest = Digest::of(&bundle);
    let client = Client::new("c");
    client.blobs.lock().unwrap().insert(format!("oci:s/{digest}"), bundle.into());
    (Arc::new(client), format!("oci-layout+blob://not/real@{digest}"))
}

#[tokio::test]
async fn a_bundle_stands_for_its_remote() {
    let remote = Remote::new();
    remote.git(&["commit", "-q", "--allow-empty", "-m", "second"]);
    remote.publish();
    let head = remote.git(&["rev-parse", "HEAD"]);
    let (first, alone) = (Place::new(), context(&[]));
    // A shallow copy of the repository is there already.
    first.fetch(&remote.vertex("#main", &[]), &alone).await.unwrap();
    let vertex = remote.vertex("#main", &[("git.checksum", &head), ("git.checkoutbundle", "true")]);
    let key = first.key(&vertex, 0, &alone).await.unwrap();
    assert_eq!(key.digest, Digest::of(format!("buildkit.source.v0:{head}(bundle)")));
    let (client, bundle) = with_bundle(&first, &vertex, &alone).await;
    // From here on the remote itself is gone.
    let unreachable = ("git.fullurl", "http://127.0.0.1:1/x.git");
    for (fragment, reference) in [("#main", "refs/heads/main"), ("", head.as_str()), (&format!("#{head}"), head.as_str())] {
        let (place, context) = (Place::new(), context(std::slice::from_ref(&client)));
        let attrs = [unreachable, ("git.bundle", &bundle), ("git.checksum", &head), ("oci.store", "s"), ("git.keepgitdir", "true")];
        let vertex = support::vertex(&format!("git://127.0.0.1:1/x.git{fragment}"), &attrs);
        let key = place.key(&vertex, 0, &context).await.unwrap();
        assert_eq!(key.digest, Digest::of(format!("buildkit.source.v0:{head}.git#{reference}")), "{fragment}");
        let layer = place.fetch(&vertex, &context).await.unwrap().unwrap();
        let view = place.files(&layer, &context).await;
        assert_eq!(read(&view, "file"), "one", "{fragment}");
        assert_eq!(std::fs::read_dir(place.root.path().join("scratch")).unwrap().count(), 0, "nothing is left behind");
    }
    let (place, context) = (Place::new(), context(&[client]));
    let other = "0".repeat(40);
    let attrs = [unreachable, ("git.bundle", bundle.as_str()), ("git.checksum", &other), ("oci.store", "s")];
    let fault = place.fetch(&support::vertex("git://127.0.0.1:1/x.git", &attrs), &context).await.unwrap_err();
    assert!(fault.to_string().starts_with(&format!("commit {other} not found in bundle")), "{fault}");
}
