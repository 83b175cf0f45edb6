//! `golden/answers.txt` is what BuildKit v0.32 says about the tree in `golden/tree.txt`, one question a line:
//! path | flags (f: follow links, w: wildcard) | include | exclude | required | digest or error.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use treehash::{ChecksumError, Kind, Loaded, Options, Put, Records, Stat, Tree};

#[derive(Default)]
struct Memory(BTreeMap<PathBuf, Node>);

struct Node {
    stat: Stat,
    content: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Memory {
    fn load(text: &str) -> Self {
        let mut tree = Self::default();
        tree.add("/", "d|.|0755|0:0|");
        for line in text.lines() {
            tree.add(line.split('|').nth(1).unwrap(), line);
        }
        tree
    }

    fn add(&mut self, path: &str, line: &str) {
        let fields: Vec<&str> = line.split('|').collect();
        let kind = match fields[0] {
            "f" => Kind::File,
            "d" => Kind::Dir,
            "l" => Kind::Symlink,
            "p" => Kind::Fifo,
            "s" => Kind::Socket,
            "c" => Kind::CharDevice,
            "b" => Kind::BlockDevice,
            other => panic!("{other}"),
        };
        let (uid, gid) = fields[3].split_once(':').unwrap();
        let stat = Stat {
            kind,
            permissions: u32::from_str_radix(fields[2], 8).unwrap(),
            uid: uid.parse().unwrap(),
            gid: gid.parse().unwrap(),
            size: fields[4].len() as u64,
            hint: 0,
        };
        let xattrs = fields[5..].iter().map(|pair| pair.split_once('=').unwrap());
        let xattrs = xattrs.map(|(name, value)| (name.into(), value.into())).collect();
        self.0.insert(Path::new("/").join(path), Node { stat, content: fields[4].into(), xattrs });
    }

    fn get(&self, path: &Path) -> io::Result<&Node> {
        assert!(path.is_absolute());
        self.0.get(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Tree for Memory {
    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        Ok(self.0.get(path).map(|node| node.stat))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(Vec<u8>, Stat)>> {
        assert_eq!(self.get(path)?.stat.kind, Kind::Dir);
        let inside = self.0.iter().filter(|(child, _)| child.parent() == Some(path));
        Ok(inside.map(|(child, node)| (child.file_name().unwrap().as_bytes().to_vec(), node.stat)).collect())
    }

    fn read_link(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(self.get(path)?.content.clone())
    }

    fn load(&self, path: &Path, stat: &Stat) -> io::Result<Loaded> {
        let node = self.get(path)?;
        assert_eq!(node.stat, *stat);
        let content: Option<Box<dyn io::Read>> = (stat.kind == Kind::File).then(|| Box::new(io::Cursor::new(node.content.clone())) as _);
        Ok(Loaded { xattrs: node.xattrs.clone(), content })
    }
}

fn tree() -> Memory {
    Memory::load(include_str!("golden/tree.txt"))
}

struct Question {
    line: &'static str,
    path: &'static str,
    options: Options,
    answer: &'static str,
}

fn questions() -> Vec<Question> {
    let list = |text: &str| text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let lines = include_str!("golden/answers.txt").lines();
    lines
        .map(|line| {
            let fields: Vec<&str> = line.splitn(6, '|').collect();
            let options = Options {
                follow_links: fields[1].contains('f'),
                wildcard: fields[1].contains('w'),
                include_patterns: list(fields[2]),
                exclude_patterns: list(fields[3]),
                required_paths: list(fields[4]),
            };
            Question { line, path: fields[0], options, answer: fields[5] }
        })
        .collect()
}

fn text(outcome: Result<oci::Digest, ChecksumError>) -> String {
    match outcome {
        Ok(digest) => digest.to_string(),
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            match error {
                ChecksumError::Wildcard(_) => format!("error: {error}"),
                _ => format!("error: {error}{source}"),
            }
        }
    }
}

fn check(question: &Question, outcome: Result<oci::Digest, ChecksumError>) {
    // A file in the place of a directory: upstream tells where it has the tree mounted.
    if question.answer.starts_with("error: lstat ROOT") {
        assert!(matches!(outcome, Err(ChecksumError::NotFound { .. })), "{}", question.line);
        return;
    }
    assert_eq!(text(outcome), question.answer, "{}", question.line);
}

#[test]
fn upstream_gives_the_same_digests() {
    let (tree, questions) = (tree(), questions());
    assert!(questions.len() > 1500);
    for question in &questions {
        check(question, Records::new().checksum(&tree, question.path, &question.options));
    }
}

#[test]
fn what_was_asked_before_changes_nothing() {
    let (tree, questions) = (tree(), questions());
    let mut records = Records::new();
    for (number, question) in questions.iter().rev().chain(&questions).enumerate() {
        check(question, records.checksum(&tree, question.path, &question.options));
        if number % 400 == 0 {
            records = Records::decode(&records.encode()).unwrap();
        }
    }
}

#[test]
fn received_files_need_no_tree() {
    struct Nothing;
    impl Tree for Nothing {
        fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
            panic!("asked for {}", path.display())
        }
        fn read_dir(&self, path: &Path) -> io::Result<Vec<(Vec<u8>, Stat)>> {
            panic!("asked for {}", path.display())
        }
        fn read_link(&self, path: &Path) -> io::Result<Vec<u8>> {
            panic!("asked for {}", path.display())
        }
        fn load(&self, path: &Path, _: &Stat) -> io::Result<Loaded> {
            panic!("asked for {}", path.display())
        }
    }
    let tree = tree();
    let mut scanned = Records::new();
    scanned.checksum(&tree, "/", &Options::default()).unwrap();
    let mut received = Records::received();
    received.put(Path::new("/wild/gone"), Put::Dir, oci::Digest::of("1"));
    received.put(Path::new("/wild/gone/too"), Put::File, oci::Digest::of("2"));
    received.put(Path::new("/wild/a1"), Put::File, oci::Digest::of("old"));
    received.checksum(&Nothing, "/", &Options::default()).unwrap();
    for (path, node) in &tree.0 {
        let what = match node.stat.kind {
            Kind::Dir => Put::Dir,
            Kind::Symlink => Put::Symlink { target: node.content.clone() },
            _ => Put::File,
        };
        received.put(path, what, scanned.digest_of(path).unwrap().clone());
    }
    received.remove(Path::new("/wild/gone"));
    for question in questions() {
        check(&question, received.checksum(&Nothing, question.path, &question.options));
    }
}
