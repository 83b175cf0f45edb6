use std::io::{Cursor, Write as _};
use std::process::{Command, Stdio};

use super::*;
use crate::package::purl;

/// A header with these values, as RPM writes it: texts and one number.
fn header(texts: &[(u32, &str)], epoch: Option<u32>) -> Vec<u8> {
    let (mut entries, mut values) = (Vec::new(), Vec::new());
    let mut entry = |tag: u32, kind: u32, value: &[u8]| {
        for word in [tag, kind, values.len() as u32, 1] {
            entries.extend_from_slice(&word.to_be_bytes());
        }
        values.extend_from_slice(value);
    };
    if let Some(epoch) = epoch {
        entry(header::EPOCH, 4, &epoch.to_be_bytes());
    }
    for (tag, text) in texts {
        entry(*tag, 6, &[text.as_bytes(), b"\0"].concat());
    }
    let count = (entries.len() / 16) as u32;
    [&count.to_be_bytes()[..], &(values.len() as u32).to_be_bytes(), &entries, &values].concat()
}

/// One that fits into a small page of a database, and one that takes several.
fn headers() -> [Vec<u8>; 2] {
    let texts = |name, long| {
        [
            (header::NAME, name),
            (header::VERSION, "5.2.15"),
            (header::RELEASE, "5.fc39"),
            (header::LICENSE, "GPL-3.0-or-later"),
            (header::ARCH, "x86_64"),
            (header::VENDOR, "Fedora Project"),
            (header::SOURCE, "bash-5.2.15-5.fc39.src.rpm"),
            (1005, long),
        ]
    };
    [header(&texts("bash", ""), None), header(&texts("libstdc++", &"x".repeat(3000)), Some(1))]
}

const URLS: [&str; 2] = [
    "pkg:rpm/fedora/bash@5.2.15-5.fc39?arch=x86_64&distro=fedora-39&upstream=bash-5.2.15-5.fc39.src.rpm",
    "pkg:rpm/fedora/libstdc%2B%2B@5.2.15-5.fc39?arch=x86_64&distro=fedora-39&epoch=1&upstream=bash-5.2.15-5.fc39.src.rpm",
];

fn read(database: &[u8]) -> Result<Vec<Package>, RpmError> {
    parse(&mut Cursor::new(database), &Release::parse("ID=fedora\nVERSION_ID=39"))
}

/// RPM's own form: a page of slots, the headers, and slots of a package that was removed.
fn native(headers: &[Vec<u8>]) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let magic = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    let mut blobs = Vec::new();
    let mut slots = words(&[magic(b"RpmP"), 0, 7, 1, 4, 0, 0, 0]);
    slots.extend(words(&[magic(b"Slot"), 0, 0, 0]));
    for (number, header) in headers.iter().enumerate() {
        let (place, number) = (256 + blobs.len() as u32 / 16, number as u32 + 1);
        slots.extend(words(&[magic(b"Slot"), number, place, 0]));
        blobs.extend(words(&[magic(b"BlbS"), number, 7, header.len() as u32]));
        blobs.extend_from_slice(header);
        blobs.resize(blobs.len().next_multiple_of(16), 0);
    }
    while slots.len() < 4096 {
        slots.extend(words(&[magic(b"Slot"), 0, 0, 0]));
    }
    [slots, blobs].concat()
}

/// A database that Berkeley DB's own tool writes.
fn berkeley(headers: &[Vec<u8>], settings: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("Packages");
    let hex = |bytes: &[u8]| format!(" {}\n", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let mut dump = format!("VERSION=3\nformat=bytevalue\ntype=hash\n{settings}HEADER=END\n{}{}", hex(&[0; 4]), hex(&[9, 0, 0, 0]));
    for (number, header) in (1u32..).zip(headers) {
        dump += &(hex(&number.to_le_bytes()) + &hex(header));
    }
    let program = "db5.3_load";
    let mut child = Command::new(program).arg(&path).stdin(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().unwrap().write_all((dump + "DATA=END\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    std::fs::read(path).unwrap()
}

/// What SQLite made of the same headers, in small pages, and with a package that was removed.
const SQLITE: &[u8] = include_bytes!("../../tests/data/rpmdb.sqlite");

fn urls(database: &[u8]) -> Vec<String> {
    let mut urls: Vec<String> = read(database).unwrap().iter().map(purl).collect();
    urls.sort_unstable();
    urls
}

#[test]
fn every_form_tells_the_same() {
    let headers = headers();
    assert_eq!((urls(&native(&headers)), urls(SQLITE)), (URLS.map(str::to_owned).into(), URLS.map(str::to_owned).into()));
    for settings in ["db_pagesize=4096\n", "db_pagesize=512\ndb_lorder=4321\n", "db_pagesize=65536\n"] {
        assert_eq!(urls(&berkeley(&headers, settings)), URLS, "{settings}");
    }
    let found = read(&native(&headers)).unwrap();
    assert_eq!((found[1].full_version().as_str(), found[1].license.as_str()), ("1:5.2.15-5.fc39", "GPL-3.0-or-later"));
    assert_eq!(found[1].supplier, "Fedora Project");
}

#[test]
fn makers_are_named_as_package_urls_name_them() {
    for (system, want) in [("rhel", "redhat"), ("opensuse-leap", "opensuse"), ("sles", "sles"), ("", "")] {
        assert_eq!(namespace(system), want);
    }
}

#[test]
fn damage_is_noticed_and_goes_nowhere() {
    let headers = headers();
    for whole in [native(&headers), berkeley(&headers, "db_pagesize=512\n"), SQLITE.to_vec()] {
        for length in (0..whole.len()).step_by(13) {
            assert!(read(&whole[..length]).map_or(true, |found| found.len() <= 2));
        }
        for at in (0..whole.len()).step_by(3) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            let _ = read(&damaged);
        }
    }
    assert!(matches!(read(b"nothing of the kind"), Err(RpmError::Form)));
    // A slot that says that its header is longer than the file.
    let mut long = native(&headers);
    long[4096 + 12..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(read(&long), Err(RpmError::Damaged("a package's header is too long"))));
}
