//! `local` and `tar` exports of real layers.
#![allow(clippy::unwrap_used)]
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use bytes::Bytes;
use export::{Predicate, Statement};
use layers::Layer;
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use session::go_mode;
use support::{Home, map, single};
use testkit::read_tar;

const NANOS: i64 = 1_600_000_000_500_000_000;

fn set_time(path: &Path) {
    let time = Timespec { tv_sec: NANOS / 1_000_000_000, tv_nsec: NANOS % 1_000_000_000 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Every kind of file, over two layers.
fn everything(home: &Home) -> Layer {
    let base = home.layer(None, "base", |root| {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/old"), "old").unwrap();
        fs::write(root.join("gone"), "").unwrap();
    });
    home.layer(Some(&base), "top", |root| {
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("dir/file"), "content").unwrap();
        fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(root.join("dir/file"), root.join("dir.link")).unwrap();
        rustix::fs::setxattr(root.join("dir/file"), "user.a", b"\0b", XattrFlags::empty()).unwrap();
        std::os::unix::fs::chown(root.join("dir/file"), Some(1000), Some(70000)).unwrap();
        fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        symlink("/dir/file", root.join("absolute")).unwrap();
        rustix::fs::mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), device).unwrap();
        rustix::fs::mknodat(CWD, root.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        for path in ["dir/file", "absolute", "pipe", "null", "dir"] {
            set_time(&root.join(path));
        }
    })
}

const ALL: [&str; 7] = ["absolute", "dir", "dir/file", "dir/old", "dir.link", "null", "pipe"];

#[tokio::test]
async fn a_directory_gets_every_kind_of_file() {
    let home = Home::new();
    let source = single(Some(everything(&home)));
    home.export("local", &[], &source).await.unwrap();
    let tree = home.client.tree();
    assert_eq!((tree.paths(), tree.exporter, tree.multi_platform), (ALL.map(str::to_owned).to_vec(), 3, false));
    assert_eq!(home.rows(), ["copying files"]);
    let (file, data) = tree.get("dir/file");
    assert_eq!(data, b"content");
    assert_eq!((file.mode, file.uid, file.gid, file.size, file.mod_time), (go_mode::SETUID | 0o751, 1000, 70000, 7, NANOS));
    assert_eq!(file.xattrs["user.a"], b"\0b"[..]);
    let (link, data) = tree.get("dir.link");
    assert_eq!((link.linkname.as_str(), link.size, data.len()), ("dir/file", 7, 0));
    assert_eq!(tree.get("absolute").0.linkname, "/dir/file");
    let (null, _) = tree.get("null");
    assert_eq!((null.mode & go_mode::CHAR_DEVICE != 0, null.devmajor, null.devminor), (true, 1, 3));
    assert_eq!(tree.get("dir/old").1, b"old");
}

#[tokio::test]
async fn a_tar_gets_every_kind_of_file() {
    let home = Home::new();
    let source = single(Some(everything(&home)));
    home.export("tar", &[], &source).await.unwrap();
    assert_eq!(home.rows(), ["sending tarball"]);
    let entries = read_tar(&home.client.file());
    let names: Vec<&str> = entries.keys().map(String::as_str).collect();
    assert_eq!(names, ["absolute", "dir", "dir.link", "dir/file", "dir/old", "null", "pipe"]);
    let file = &entries["dir/file"];
    assert_eq!((file.kind, file.mode, file.uid, file.gid, file.data.as_slice()), (b'0', 0o4751, 1000, 70000, b"content".as_slice()));
    assert_eq!((entries["dir.link"].kind, entries["dir.link"].link.as_str()), (b'1', "dir/file"));
    assert_eq!((entries["absolute"].kind, entries["absolute"].link.as_str()), (b'2', "/dir/file"));
    assert_eq!([entries["dir"].kind, entries["null"].kind, entries["pipe"].kind], *b"536");
}

#[tokio::test]
async fn platforms_have_directories_or_share_one() {
    let home = Home::new();
    let layer = |name: &'static str| home.layer(None, name, |root| fs::write(root.join(name), name).unwrap());
    let (amd, arm) = (layer("amd"), layer("arm"));
    let source = map([("linux/arm64", Some(arm.clone())), ("linux/amd64", Some(amd.clone()))]);

    home.export("local", &[("source-date-epoch", "9")], &source).await.unwrap();
    let mut trees = home.client.trees.lock().unwrap().split_off(0);
    trees.sort_by_key(support::Tree::paths);
    assert_eq!(trees[0].paths(), ["linux_amd64", "linux_amd64/amd"]);
    assert_eq!(trees[1].paths(), ["linux_arm64", "linux_arm64/arm"]);
    assert!(trees[1].received.lock().unwrap().iter().all(|(stat, _)| stat.mod_time == 9_000_000_000));
    assert_eq!(home.rows(), ["copying files linux/arm64", "copying files linux/amd64"]);

    home.export("local", &[("mode", "delete")], &source).await.unwrap();
    let tree = home.client.tree();
    assert_eq!(tree.paths(), ["linux_amd64", "linux_amd64/amd", "linux_arm64", "linux_arm64/arm"]);
    assert!(tree.multi_platform);
    assert_eq!(tree.get("linux_arm64").0.mode, go_mode::DIR | 0o755);

    home.export("local", &[("mode", "delete"), ("platform-split", "false")], &source).await.unwrap();
    let tree = home.client.tree();
    assert_eq!((tree.paths(), tree.get("arm").1), (vec!["amd".to_owned(), "arm".into()], b"arm".to_vec()));

    let clash = map([("linux/arm64", Some(amd.clone())), ("linux/amd64", Some(amd))]);
    let failure = home.export("local", &[("platform-split", "false")], &clash).await.unwrap_err();
    assert_eq!(failure.to_string(), "cannot overwrite amd from linux/arm64 with linux/amd64 when split option is disabled");

    home.export("tar", &[("platform-split", "false")], &source).await.unwrap();
    let entries = read_tar(&home.client.file());
    assert_eq!(
        entries.keys().map(String::as_str).collect::<Vec<_>>(),
        ["linux_amd64", "linux_amd64/amd", "linux_arm64", "linux_arm64/arm"]
    );
}

#[tokio::test]
async fn statements_lie_beside_the_files() {
    let home = Home::new();
    let layer = home.layer(None, "a", |root| fs::write(root.join("a"), "1").unwrap());
    let mut source = single(Some(layer));
    let statement = |path: &str, inline_only| Statement {
        predicate_type: "https://slsa.dev/provenance/v1".into(),
        predicate: Predicate::Given(Bytes::from_static(b"{}")),
        path: path.into(),
        inline_only,
        subjects: Vec::new(),
        sbom_core: None,
    };
    source.attestations.insert("linux/amd64".into(), vec![statement("/provenance.json", false), statement("inline.json", true)]);
    home.export("local", &[("attestation-prefix", "x-"), ("platform-split", "true")], &source).await.unwrap();
    let tree = home.client.tree();
    assert_eq!(tree.paths(), ["linux_amd64", "linux_amd64/a", "linux_amd64/x-provenance.json"]);
    let (stat, json) = tree.get("linux_amd64/x-provenance.json");
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((stat.mode, json["subject"][0]["name"].as_str()), (0o600, Some("a")));
}

#[tokio::test]
async fn nothing_is_a_result_too() {
    let home = Home::new();
    home.export("local", &[], &single(None)).await.unwrap();
    assert!(home.client.tree().paths().is_empty());
    home.export("tar", &[], &single(None)).await.unwrap();
    assert_eq!(home.client.file(), [0; 1024]);
}

#[tokio::test]
async fn without_a_client_there_is_nowhere_to_go() {
    let home = Home::new();
    let mut context = home.context();
    context.session = None;
    for kind in ["local", "tar", "oci", "docker"] {
        let exporter = home.exporters.resolve(kind, &Default::default(), 30).unwrap();
        let failure = exporter.export(&single(None), &context).await.err().unwrap();
        assert!(failure.to_string().starts_with("no active session"), "{kind}: {failure}");
    }
    let failure = home.exporters.resolve("moby", &Default::default(), 30).err().unwrap();
    assert_eq!(failure.to_string(), "exporter \"moby\" could not be found");
}
