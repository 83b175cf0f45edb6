//! Whole trees, as layers leave them.
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
    let [json, rpm] = found.notes.as_slice() else { panic!("{:?}", found.notes) };
    assert!(json.starts_with("/app/package-lock.json was not read: not JSON"), "{json}");
    assert!(rpm.starts_with("/var/lib/rpm/rpmdb.sqlite: RPM databases are not read"), "{rpm}");
    assert_eq!(found.evidence[0].sha1, "f9e4ed2cb52a265b78a35fde5b4e5bb0b94dd132");
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
