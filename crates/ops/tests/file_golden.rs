//! `golden/fileop.txt` is what BuildKit v0.32's own file actions make of the trees in `golden/src.txt` and `golden/base.txt`: for each script
//! (`>`) the resulting tree, or the error (`!`). Of what begins with `base.txt` only the differences are written down (`-`: gone).
//! Needs root; fails without.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::Path;

use bytes::Bytes;
use llb::{Copy, FileAction, FileActionKind, FileOp, Owner, Who};
use ops::file::{self, Workspace};
use snapshot::{Draft, Editor, Entry, FileType, Follow, PathError, Store, Time, TreeId, View};

/// Where times end that a script or a fixture gave.
const NOW: i64 = 1_700_000_000;

struct Trees(Store);

impl Workspace for Trees {
    type Stack = Vec<TreeId>;
    type Draft = (Vec<TreeId>, Draft);

    fn view(&self, stack: &Vec<TreeId>) -> fault::Result<View> {
        self.0.view(stack).map_err(|error| fault::Fault::of(fault::Kind::Internal, error))
    }

    fn draft(&self, base: Option<&Vec<TreeId>>) -> fault::Result<Self::Draft> {
        let draft = self.0.create().map_err(|error| fault::Fault::of(fault::Kind::Internal, error))?;
        Ok((base.cloned().unwrap_or_default(), draft))
    }

    fn edit<'d>(&self, (stack, draft): &'d mut Self::Draft) -> fault::Result<Editor<'d>> {
        self.0.edit(stack, draft).map_err(|error| fault::Fault::of(fault::Kind::Internal, error))
    }

    fn commit(&self, (mut stack, draft): Self::Draft) -> fault::Result<Vec<TreeId>> {
        stack.push(self.0.commit(draft).map_err(|error| fault::Fault::of(fault::Kind::Internal, error))?);
        Ok(stack)
    }
}

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn archive(name: &str) -> Vec<u8> {
    if name != "t.tar" {
        return golden(name);
    }
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(golden("t.tar.gz").as_slice()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn fixture(store: &Store, name: &str) -> TreeId {
    let text = String::from_utf8(golden(name)).unwrap();
    let mut draft = store.create().unwrap();
    let mut editor = store.edit(&[], &mut draft).unwrap();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let path = Path::new(fields[1]);
        let mode = u32::from_str_radix(fields[2], 8).unwrap();
        match fields[0] {
            "f" => editor.create_file(path, mode).unwrap().write_all(fields[4].replace('~', "\n").as_bytes()).unwrap(),
            "x" => editor.create_file(path, mode).unwrap().write_all(&archive(fields[1])).unwrap(),
            "d" => editor.mkdir(path, mode).unwrap(),
            "l" => editor.symlink(fields[4], path).unwrap(),
            "p" => editor.mknod(path, 0o010_000 | mode, 0).unwrap(),
            "s" => editor.mknod(path, 0o140_000 | mode, 0).unwrap(),
            "c" => editor.mknod(path, 0o020_000 | mode, rustix::fs::makedev(1, 3)).unwrap(),
            "h" => {
                editor.hard_link(fields[4], path).unwrap();
                continue;
            }
            other => panic!("{other}"),
        }
        let (uid, gid) = fields[3].split_once(':').unwrap();
        editor.set_owner(path, uid.parse().unwrap(), gid.parse().unwrap()).unwrap();
        editor.set_mode(path, mode).unwrap();
        for (name, value) in fields[5..].iter().filter_map(|pair| pair.split_once('=')) {
            editor.set_xattr(path, name, value.as_bytes()).unwrap();
        }
    }
    for (number, line) in text.lines().enumerate() {
        let time = Time { seconds: 1_000_000_000 + number as i64, nanos: number as u32 * 1000 };
        editor.set_times(line.split('|').nth(1).unwrap(), time, time).unwrap();
    }
    let time = Time { seconds: 900_000_000, nanos: 0 };
    editor.set_times("/", time, time).unwrap();
    drop(editor);
    store.commit(draft).unwrap()
}

fn dump(view: &View) -> Vec<String> {
    let mut entries = vec![view.require("/", Follow::No).unwrap()];
    view.walk::<PathError>("/", &mut |entry| {
        entries.push(entry.clone());
        Ok(true)
    })
    .unwrap();
    let mut first: BTreeMap<(TreeId, u64), String> = BTreeMap::new();
    for entry in &entries {
        let path = entry.path().display().to_string();
        let slot = first.entry((entry.tree(), entry.metadata().ino)).or_insert_with(|| path.clone());
        *slot = path.min(slot.clone());
    }
    let mut lines: Vec<String> = entries.iter().map(|entry| line(view, entry, &first[&(entry.tree(), entry.metadata().ino)])).collect();
    lines.sort();
    lines
}

fn line(view: &View, entry: &Entry, first: &str) -> String {
    let metadata = entry.metadata();
    let path = entry.path().display().to_string();
    let (kind, mut content) = match metadata.file_type() {
        FileType::RegularFile => {
            let mut bytes = Vec::new();
            view.open(entry.path()).unwrap().read_to_end(&mut bytes).unwrap();
            ("f", if bytes.len() > 60 { format!("len={}", bytes.len()) } else { String::from_utf8(bytes).unwrap() })
        }
        FileType::Symlink => ("l", view.read_link(entry.path()).unwrap().display().to_string()),
        FileType::Directory => ("d", String::new()),
        FileType::Fifo => ("p", String::new()),
        FileType::CharacterDevice => ("c", String::new()),
        FileType::Socket => ("s", String::new()),
        other => panic!("{other:?}"),
    };
    content = content.replace('\n', "\\n");
    let Time { seconds, nanos } = metadata.mtime;
    let time = if seconds < NOW { format!("{seconds}.{nanos}") } else { "now".into() };
    let mut line = format!("{kind} {path} {:o} {}:{} {time} \"{content}\"", metadata.permissions(), metadata.uid, metadata.gid);
    if kind == "c" {
        let (major, minor) = metadata.device();
        write!(line, " dev={major},{minor}").unwrap();
    }
    if kind != "d" && first != path {
        write!(line, " link={first}").unwrap();
    }
    for (name, value) in view.xattrs(entry.path()).unwrap() {
        write!(line, " {}={}", name.display(), String::from_utf8_lossy(&value)).unwrap();
    }
    line
}

fn parse(text: &str) -> FileActionKind {
    let mut words = text.split(' ');
    let kind = words.next().unwrap();
    let values: BTreeMap<&str, &str> =
        words.filter(|word| !word.is_empty()).map(|word| word.split_once('=').unwrap_or((word, "1"))).collect();
    let get = |key: &str| values.get(key).copied().unwrap_or_default();
    let text = |key: &str| get(key).to_owned();
    let flag = |key: &str| !get(key).is_empty();
    let list = |key: &str| get(key).split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let number = |key: &str, default: i64| match get(key) {
        "" => default,
        octal if octal.starts_with('0') => i64::from_str_radix(octal, 8).unwrap(),
        decimal => decimal.parse().unwrap(),
    };
    let owner = get("owner")
        .split_once(':')
        .map(|(uid, gid)| Owner { user: Some(Who::Id(uid.parse().unwrap())), group: Some(Who::Id(gid.parse().unwrap())) });
    let timestamp = number("ts", -1);
    match kind {
        "mkdir" => FileActionKind::Mkdir {
            path: text("path"),
            mode: number("mode", 0o755) as i32,
            make_parents: flag("parents"),
            owner,
            timestamp,
        },
        "mkfile" => FileActionKind::Mkfile {
            path: text("path"),
            mode: number("mode", 0o644) as i32,
            data: Bytes::from(text("data")),
            owner,
            timestamp,
        },
        "symlink" => FileActionKind::Symlink { oldpath: text("old"), newpath: text("new"), owner, timestamp },
        "rm" => FileActionKind::Rm { path: text("path"), allow_not_found: flag("notfound"), allow_wildcard: flag("wild") },
        "copy" => FileActionKind::Copy(Box::new(Copy {
            src: text("src"),
            dest: text("dest"),
            owner,
            mode: number("mode", -1) as i32,
            mode_str: text("modestr"),
            follow_symlink: flag("follow"),
            dir_copy_contents: flag("contents"),
            attempt_unpack: flag("unpack"),
            create_dest_path: flag("create"),
            allow_wildcard: flag("wild"),
            allow_empty_wildcard: flag("empty"),
            timestamp,
            include_patterns: list("inc"),
            exclude_patterns: list("exc"),
            always_replace_existing_dest_paths: flag("replace"),
            required_paths: Vec::new(),
        })),
        other => panic!("{other}"),
    }
}

#[test]
fn scripts_end_as_upstream_ends_them() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees(Store::open(&dir.path().join("store"), Default::default()).unwrap());
    let (src, base) = (fixture(&trees.0, "src.txt"), fixture(&trees.0, "base.txt"));
    let before = dump(&trees.0.view(&[base]).unwrap());
    let untouched = dump(&trees.0.view(&[src]).unwrap());
    let text = String::from_utf8(golden("fileop.txt")).unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for scenario in text.split("> ").skip(1) {
        let (script, answer) = scenario.split_once('\n').unwrap();
        let mut steps = script.split(" ; ");
        let (inputs, answer) = match steps.next().unwrap() {
            "base" => ([Some(vec![base]), Some(vec![src])], patched(&before, answer.trim_end())),
            _ => ([None, Some(vec![src])], answer.trim_end().to_owned()),
        };
        let kinds: Vec<FileActionKind> = steps.map(parse).collect();
        let last = kinds.len() as u32 - 1;
        let actions = kinds.into_iter().zip(0..).map(|(kind, number)| FileAction {
            input: Some(if number == 0 { 0 } else { number + 1 }),
            secondary_input: matches!(kind, FileActionKind::Copy(_)).then_some(1),
            output: (number == last).then_some(0),
            kind,
        });
        let op = FileOp { actions: actions.collect() };
        let outcome = match file::apply(&op, &inputs, &trees, &task::Cancel::new()) {
            Ok(outputs) => dump(&trees.0.view(&outputs[0]).unwrap()).join("\n"),
            Err(error) => format!("! {error}"),
        };
        count += 1;
        let difference = difference(&answer, &outcome);
        if !difference.is_empty() && !known(script, &difference) {
            wrong.push(format!("> {script}\n{difference}"));
        }
    }
    assert_eq!(dump(&trees.0.view(&[src]).unwrap()), untouched, "the source was changed");
    if !wrong.is_empty() {
        let shown = wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
        panic!("{} of {count} scripts differ (-: upstream, +: here)\n{shown}", wrong.len());
    }
}

/// A whole answer from its differences to what was there before.
fn patched(before: &[String], answer: &str) -> String {
    if answer.starts_with('!') {
        return answer.to_owned();
    }
    let path = |line: &str| line.split(' ').nth(1).unwrap().to_owned();
    let changed: Vec<String> = answer.lines().map(path).collect();
    let kept = before.iter().filter(|line| !changed.contains(&path(line))).map(String::as_str);
    kept.chain(answer.lines().filter(|line| !line.starts_with("- "))).collect::<Vec<_>>().join("\n")
}

/// Where this differs on purpose.
fn known(script: &str, difference: &str) -> bool {
    // A link that leads nowhere can be removed.
    let dangling = difference.starts_with("- ! stat /dangling: no such file");
    // What a new file in the place of one with two names does to the other: upstream's answer is without an overlay.
    let linked = script.contains("mkfile path=/file ") && difference.contains("/hard");
    // Which component of a looping path is told of.
    let looping = difference.starts_with("- ! lstat /loop/x: too many levels") && difference.ends_with("+ ! too many links");
    dangling || linked || looping
}

fn difference(want: &str, have: &str) -> String {
    // The time of the last change of a directory is mere circumstance; here it is often the source's time, or that of a new layer.
    let loose = |line: &str| match line.strip_prefix("d ").map(|rest| rest.split(' ').collect::<Vec<_>>()) {
        Some(mut fields) if fields[3] == "now" || fields[0] == "/" => {
            fields[3] = "?";
            fields.join(" ")
        }
        _ => line.to_owned(),
    };
    let mut theirs: Vec<(&str, String)> = want.lines().map(|line| (line, loose(line))).collect();
    let mut extra = Vec::new();
    for line in have.lines() {
        let untimed = line.strip_prefix("d ").map(|rest| {
            let mut fields: Vec<&str> = rest.split(' ').collect();
            fields[3] = "?";
            fields.join(" ")
        });
        match theirs.iter().position(|(_, want)| want == line || Some(want) == untimed.as_ref()) {
            Some(at) => _ = theirs.remove(at),
            None => extra.push(format!("+ {line}")),
        }
    }
    theirs.iter().map(|(line, _)| format!("- {line}")).chain(extra).collect::<Vec<_>>().join("\n")
}
