//! Whole trees, as layers leave them.
#![allow(clippy::unwrap_used)]
use std::io::Write as _;

use oci::Timestamp;
use sbom::{Document, Found, purl, scan};
use snapshot::{Options, Store, View};

struct Place {
    _dir: tempfile::TempDir,
    view: View,
}

/// One tree for each list of files, each on top of the one before; a path that ends with `*` is a program.
fn place(layers: &[&[(&str, &[u8])]]) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
    let mut trees = Vec::new();
    for files in layers {
        let mut draft = store.create().unwrap();
        let mut editor = store.edit(&trees, &mut draft).unwrap();
        for (path, content) in *files {
            let (path, mode) = path.strip_suffix('*').map_or((*path, 0o644), |path| (path, 0o755));
            for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
                if editor.view().lookup(&path[..at], snapshot::Follow::No).unwrap().is_none() {
                    editor.mkdir(&path[..at], 0o755).unwrap();
                }
            }
            editor.write_file(path, mode).unwrap().write_all(content).unwrap();
        }
        drop(editor);
        trees.push(store.commit(draft).unwrap());
    }
    let view = store.view(&trees).unwrap();
    Place { _dir: dir, view }
}

fn urls(found: &Found) -> Vec<(&str, Vec<String>)> {
    found.evidence.iter().map(|evidence| (evidence.path.as_str(), evidence.packages.iter().map(purl).collect())).collect()
}

#[test]
fn systems_languages_and_what_upper_layers_changed() {
    let place = place(&[
        &[
            ("/etc/os-release", b"ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian 12\"\n"),
            ("/var/lib/dpkg/status", b"Package: a\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n"),
            ("/app/package-lock.json", b"not json"),
        ],
        &[
            ("/var/lib/dpkg/status", b"Package: a\nStatus: install ok installed\nVersion: 2\nArchitecture: amd64\n"),
            ("/app/Cargo.lock", b"[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\n"),
            ("/usr/lib/python3/site-packages/x-1.dist-info/METADATA", b"Name: x\nVersion: 1\n"),
            ("/usr/share/METADATA", b"Name: no package\nVersion: 1\n"),
            ("/var/lib/rpm/rpmdb.sqlite", b"SQLite format 3\0"),
            ("/var/lib/rpm/rpmdb.sqlite-wal", b"x"),
            ("/usr/bin/script*", b"#!/bin/sh\n"),
        ],
    ]);
    let found = scan(&place.view).unwrap();
    let one = |url: &str| vec![url.to_owned()];
    assert_eq!(
        urls(&found),
        [
            ("/app/Cargo.lock", one("pkg:cargo/serde@1.0.0")),
            ("/usr/lib/python3/site-packages/x-1.dist-info/METADATA", one("pkg:pypi/x@1")),
            ("/var/lib/dpkg/status", one("pkg:deb/debian/a@2?arch=amd64&distro=debian-12")),
        ]
    );
    assert_eq!(found.system, "Debian 12");
    let [json, rpm, log] = found.notes.as_slice() else { panic!("{:?}", found.notes) };
    assert!(json.starts_with("/app/package-lock.json was not read: not JSON"), "{json}");
    assert_eq!(rpm, "/var/lib/rpm/rpmdb.sqlite was not read: it ends early");
    assert!(log.starts_with("/var/lib/rpm/rpmdb.sqlite-wal was not read, so packages"), "{log}");
    assert_eq!(found.evidence[0].sha1, "f9e4ed2cb52a265b78a35fde5b4e5bb0b94dd132");
}

/// Packages with short and long headers, which Debian's RPM builds and writes into a database as Fedora's does.
#[test]
fn the_database_that_rpm_itself_makes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let mut spec = "Name: tiny\nEpoch: 3\nVersion: 1.0\nRelease: 2\nSummary: s\nLicense: MIT\nVendor: V\nBuildArch: noarch\n".to_owned();
    spec += "%define _build_id_links none\n%description\nd\n%files\n";
    for number in 0..12 {
        let lines = "a long description\n".repeat(number * 200);
        spec += &format!("%package -n part{number}\nSummary: s\n%description -n part{number}\n{lines}.\n%files -n part{number}\n");
    }
    std::fs::write(path("tiny.spec"), spec).unwrap();
    run("rpmbuild", &["-bb", "--quiet", "--define", &format!("_topdir {}", path("top")), "--target", "noarch", &path("tiny.spec")]);
    let built = std::fs::read_dir(path("top/RPMS/noarch")).unwrap();
    let built: Vec<String> = built.map(|entry| entry.unwrap().path().display().to_string()).collect();
    let database = path("database");
    let install = ["--dbpath", &database, "--define", "_db_backend sqlite", "--install", "--justdb", "--nodeps", "--ignorearch"];
    run("rpm", &[&install[..], &built.iter().map(String::as_str).collect::<Vec<_>>()].concat());
    run("rpm", &["--dbpath", &database, "--define", "_db_backend sqlite", "--erase", "--justdb", "part7"]);

    let bytes = std::fs::read(path("database/rpmdb.sqlite")).unwrap();
    let release: &[u8] = b"ID=rhel\nVERSION_ID=9.2\n";
    let place = place(&[&[("/etc/os-release", release), ("/usr/lib/sysimage/rpm/rpmdb.sqlite", &bytes)]]);
    let found = scan(&place.view).unwrap();
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    let mut want: Vec<String> =
        (0..12).filter(|number| *number != 7).map(|number| format!("part{number}")).chain(["tiny".into()]).collect();
    for name in &mut want {
        *name = format!("pkg:rpm/redhat/{name}@1.0-2?arch=noarch&distro=rhel-9.2&epoch=3&upstream=tiny-1.0-2.src.rpm");
    }
    let mut urls: Vec<String> = found.evidence[0].packages.iter().map(purl).collect();
    urls.sort_unstable();
    want.sort_unstable();
    assert_eq!(urls, want);
    let document = Document { name: "x", created: Timestamp::from_unix(0, 0), found: &found }.to_json();
    let document = String::from_utf8(document).unwrap();
    assert!(document.contains(r#""versionInfo":"3:1.0-2","supplier":"Organization: V""#), "{document}");
}

#[test]
fn distroless_images_have_an_entry_in_a_file_of_its_own() {
    let place = place(&[&[
        ("/usr/lib/os-release", b"ID=debian\nVERSION_ID=12\n"),
        ("/var/lib/dpkg/status.d/tzdata", b"Package: tzdata\nVersion: 2024a\nArchitecture: all\n"),
        ("/var/lib/dpkg/status.d/tzdata.md5sums", b"Package: wrong\nVersion: 1\n"),
        ("/lib/apk/db/installed", b"P:musl\nV:1.2\nA:x86_64\n\n"),
    ]]);
    let found = scan(&place.view).unwrap();
    let apk = "pkg:apk/debian/musl@1.2?arch=x86_64&distro=debian-12".to_owned();
    let deb = "pkg:deb/debian/tzdata@2024a?arch=all&distro=debian-12".to_owned();
    assert_eq!(urls(&found), [("/lib/apk/db/installed", vec![apk]), ("/var/lib/dpkg/status.d/tzdata", vec![deb])]);
}

#[test]
fn the_same_tree_gives_the_same_document() {
    let files: &[(&str, &[u8])] = &[("/a/Gemfile.lock", b"GEM\n  specs:\n    rack (3)\n"), ("/b/go.mod", b"require x.org/y v1\n")];
    let write = |place: &Place| {
        let found = scan(&place.view).unwrap();
        Document { name: "x", created: Timestamp::from_unix(0, 0), found: &found }.to_json()
    };
    assert_eq!(write(&place(&[files])), write(&place(&[&files[1..], &files[..1]])));
    assert!(scan(&View::empty()).unwrap().evidence.is_empty());
}
