//! The kernel is the model: random edits go through an [`Editor`] and through a real overlay mount, and all ways to look at the results must
//! agree. Needs root and overlayfs; fails without.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;
use snapshot::{Backend, Entry, Follow, Metadata, Options, PathError, Store, Time, Top, TreeId, View};

/// Everything about a file that must agree; times only where they come from the same tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    content: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    mtime: Option<Time>,
}

type Tree = BTreeMap<PathBuf, Seen>;

fn without_times(tree: &Tree) -> Tree {
    tree.iter().map(|(path, seen)| (path.clone(), Seen { mtime: None, ..seen.clone() })).collect()
}

fn seen_by_view(view: &View) -> Tree {
    let mut all = Tree::new();
    let root = view.require("/", Follow::No).unwrap();
    all.insert("/".into(), seen_entry(view, &root));
    view.walk::<PathError>("/", &mut |entry| {
        let again = view.lookup(entry.path(), Follow::No).unwrap().expect("listed, so there");
        // Reading a link is an access.
        let untouched = |entry: &Entry| Metadata { atime: Time::default(), ..*entry.metadata() };
        assert_eq!((untouched(&again), again.tree()), (untouched(entry), entry.tree()), "{}", entry.path().display());
        all.insert(entry.path().to_owned(), seen_entry(view, entry));
        Ok(true)
    })
    .unwrap();
    all
}

fn seen_entry(view: &View, entry: &Entry) -> Seen {
    let metadata = entry.metadata();
    let mut content = Vec::new();
    if metadata.is_file() {
        view.open(entry.path()).unwrap().read_to_end(&mut content).unwrap();
        if let Some(mut known) = view.open_known(entry.path()) {
            let mut same = Vec::new();
            known.read_to_end(&mut same).unwrap();
            assert_eq!(same, content, "{}", entry.path().display());
        }
    } else if metadata.is_symlink() {
        assert!(view.open_known(entry.path()).is_none(), "{}", entry.path().display());
        content = view.read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes();
    }
    let rdev = if matches!(metadata.file_type(), FileType::CharacterDevice | FileType::BlockDevice) { metadata.rdev } else { 0 };
    let owner = (metadata.uid, metadata.gid);
    Seen { mode: metadata.mode, owner, rdev, content, xattrs: view.xattrs(entry.path()).unwrap(), mtime: Some(metadata.mtime) }
}

fn seen_by_kernel(root: &Path) -> Tree {
    let mut all = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(rel) = pending.pop() {
        let path = root.join(&rel);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let content = match () {
            () if kind.is_file() => fs::read(&path).unwrap(),
            () if kind.is_symlink() => fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
            () => Vec::new(),
        };
        if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| rel.join(entry.unwrap().file_name())));
        }
        let rdev = if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 };
        let mtime = Some(Time { seconds: metadata.mtime(), nanos: metadata.mtime_nsec() as u32 });
        let seen =
            Seen { mode: metadata.mode(), owner: (metadata.uid(), metadata.gid()), rdev, content, xattrs: kernel_xattrs(&path), mtime };
        all.insert(Path::new("/").join(rel), seen);
    }
    all
}

fn kernel_xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let split = names[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    split
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (OsString::from_vec(name.to_vec()), value[..length].to_vec())
        })
        .collect()
}

/// A generator, and the paths that were there last.
struct Random(u64, Vec<PathBuf>);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn path(&mut self) -> PathBuf {
        if !self.1.is_empty() && self.below(2) == 0 {
            let known = self.below(self.1.len());
            return self.1[known].clone();
        }
        let mut path = PathBuf::from("/");
        for _ in 0..=self.below(3) {
            path.push(["a", "b", "c", "d", "e\u{301}", ".."][self.below(if path == Path::new("/") { 5 } else { 6 })]);
        }
        if path.ends_with("..") { path.join("a") } else { path }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Mkdir(PathBuf, u32),
    Write(PathBuf, u32, usize),
    Symlink(PathBuf, PathBuf),
    Fifo(PathBuf),
    Device(PathBuf, u64),
    Remove(PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32, u32),
    Times(PathBuf, i64),
    SetXattr(PathBuf, String, Vec<u8>),
    RemoveXattr(PathBuf, String),
    Link(PathBuf, PathBuf),
    /// Take a file of the donor tree.
    Place(PathBuf, PathBuf, bool),
}

fn random_op(random: &mut Random, donor: &[PathBuf]) -> Op {
    let path = random.path();
    match random.below(22) {
        0..=3 => Op::Mkdir(path, [0o755, 0o700, 0o1777, 0o2775][random.below(4)]),
        4..=7 => Op::Write(path, [0o644, 0o600, 0o4755][random.below(3)], random.below(3) * 5000 + random.below(3)),
        8 => Op::Symlink([random.path(), "a".into(), "../b".into(), "../../c/a".into()][random.below(4)].clone(), path),
        9 => Op::Fifo(path),
        10 => Op::Device(path, rustix::fs::makedev(1, 3)),
        11..=13 => Op::Remove(path),
        14 => Op::Chmod(path, [0o755, 0o640, 0o4711, 0][random.below(4)]),
        15 => Op::Chown(path, random.below(3) as u32, random.below(3) as u32),
        16 => Op::Times(path, random.below(1_000_000) as i64),
        17 => Op::SetXattr(path, ["user.one", "trusted.two"][random.below(2)].into(), vec![b'v'; random.below(300)]),
        18 => Op::RemoveXattr(path, ["user.one", "trusted.two"][random.below(2)].into()),
        19 => Op::Link(random.path(), path),
        _ => Op::Place(donor[random.below(donor.len())].clone(), path, random.below(3) > 0),
    }
}

fn edit(editor: &mut snapshot::Editor<'_>, op: &Op, donor: &View) -> Result<(), PathError> {
    match op {
        Op::Mkdir(path, mode) => editor.mkdir(path, *mode),
        Op::Write(path, mode, content) => {
            editor.write_file(path, *mode)?.write_all(&vec![b'x'; *content]).unwrap();
            Ok(())
        }
        Op::Symlink(target, path) => editor.symlink(target, path),
        Op::Fifo(path) => editor.mknod(path, 0o010_640, 0),
        Op::Device(path, rdev) => editor.mknod(path, 0o020_660, *rdev),
        Op::Remove(path) => editor.remove(path),
        Op::Chmod(path, mode) => editor.set_mode(path, *mode),
        Op::Chown(path, uid, gid) => editor.set_owner(path, *uid, *gid),
        Op::Times(path, nanos) => editor.set_times(path, Time::from_unix_nanos(*nanos), Time::from_unix_nanos(*nanos)),
        Op::SetXattr(path, name, value) => editor.set_xattr(path, name, value),
        Op::RemoveXattr(path, name) => editor.remove_xattr(path, name),
        Op::Link(existing, path) => editor.hard_link(existing, path),
        Op::Place(from, path, link) => {
            let entry = donor.require(from, Follow::No).unwrap();
            if *link { editor.link_file(&entry, path) } else { editor.copy_file(&entry, path, &Default::default()) }.map(drop)
        }
    }
}

/// Opens the parent within the root, as a chroot would.
fn parent(root: &OwnedFd, path: &Path) -> Result<(OwnedFd, OsString), Errno> {
    let (dir, name) = (path.parent().unwrap(), path.file_name().unwrap());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat2(root, dir, flags, Mode::empty(), ResolveFlags::IN_ROOT)?, name.to_owned()))
}

fn model(root: &OwnedFd, op: &Op, donor: &Path) -> Result<(), Errno> {
    match op {
        Op::Mkdir(path, mode) => {
            let (dir, name) = parent(root, path)?;
            rustix::fs::mkdirat(&dir, &name, Mode::from_raw_mode(*mode))?;
            let inherited = rustix::fs::statat(&dir, &name, AtFlags::empty())?.st_mode & 0o2000;
            rustix::fs::chmodat(&dir, &name, Mode::from_raw_mode(mode | inherited), AtFlags::empty())
        }
        Op::Write(path, mode, content) => {
            let (dir, name) = parent(root, path)?;
            let existed = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let kind = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode));
            if matches!(kind, Ok(FileType::CharacterDevice)) {
                return Err(Errno::NXIO);
            }
            let file = rustix::fs::openat(&dir, &name, flags, Mode::from_raw_mode(*mode))?;
            if !existed {
                rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode))?;
            }
            fs::File::from(file).write_all(&vec![b'x'; *content]).unwrap();
            Ok(())
        }
        Op::Symlink(target, path) => {
            let (dir, name) = parent(root, path)?;
            rustix::fs::symlinkat(target, &dir, &name)
        }
        Op::Fifo(path) => node(root, path, FileType::Fifo, 0o640, 0),
        Op::Device(path, rdev) => node(root, path, FileType::CharacterDevice, 0o660, *rdev),
        Op::Remove(path) => {
            let (dir, name) = parent(root, path)?;
            let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return rustix::fs::unlinkat(&dir, &name, AtFlags::empty());
            }
            let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
            fs::remove_dir_all(Path::new(&path).join(name)).map_err(|error| Errno::from_io_error(&error).unwrap())
        }
        Op::Chmod(path, mode) => {
            let (dir, name) = parent(root, path)?;
            let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                return Ok(());
            }
            rustix::fs::chmodat(&dir, &name, Mode::from_raw_mode(*mode), AtFlags::empty())
        }
        Op::Chown(path, uid, gid) => {
            let (dir, name) = parent(root, path)?;
            rustix::fs::chownat(&dir, &name, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)), AtFlags::SYMLINK_NOFOLLOW)
        }
        Op::Times(path, nanos) => {
            let (dir, name) = parent(root, path)?;
            let time = rustix::fs::Timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(&dir, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
        Op::SetXattr(path, key, value) => {
            let (dir, name) = parent(root, path)?;
            rustix::fs::lsetxattr(by_proc(&dir, &name), key.as_str(), value, XattrFlags::empty())
        }
        Op::RemoveXattr(path, key) => {
            let (dir, name) = parent(root, path)?;
            rustix::fs::lremovexattr(by_proc(&dir, &name), key.as_str())
        }
        Op::Link(existing, path) => {
            let (from, from_name) = parent(root, existing)?;
            rustix::fs::statat(&from, &from_name, AtFlags::SYMLINK_NOFOLLOW)?;
            let (dir, name) = parent(root, path)?;
            rustix::fs::linkat(&from, &from_name, &dir, &name, AtFlags::empty())
        }
        Op::Place(from, path, _) => {
            let (dir, name) = parent(root, path)?;
            if rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                return Err(Errno::EXIST);
            }
            let from = donor.join(from.strip_prefix("/").unwrap());
            let copied = std::process::Command::new("cp").args(["-a", "--"]).arg(from).arg(by_proc(&dir, &name)).status().unwrap();
            assert!(copied.success());
            Ok(())
        }
    }
}

fn node(root: &OwnedFd, path: &Path, kind: FileType, mode: u32, rdev: u64) -> Result<(), Errno> {
    let (dir, name) = parent(root, path)?;
    rustix::fs::mknodat(&dir, &name, kind, Mode::empty(), rdev)?;
    rustix::fs::chmodat(&dir, &name, Mode::from_raw_mode(mode), AtFlags::empty())
}

fn by_proc(dir: &OwnedFd, name: &OsString) -> PathBuf {
    Path::new(&format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd())).join(name)
}

fn donor(store: &Store) -> (TreeId, Vec<PathBuf>) {
    let mut draft = store.create().unwrap();
    let mut editor = store.edit(&[], &mut draft).unwrap();
    editor.mkdir("/d", 0o755).unwrap();
    for (path, size) in [("/small", 3), ("/d/big", 70_000), ("/d/empty", 0)] {
        editor.write_file(path, 0o640).unwrap().write_all(&vec![b'd'; size]).unwrap();
        editor.set_xattr(path, "user.donor", b"1").unwrap();
        editor.set_owner(path, 7, 8).unwrap();
    }
    editor.create_file("/sparse", 0o600).unwrap().set_len(1 << 20).unwrap();
    editor.symlink("d/big", "/link").unwrap();
    editor.mknod("/fifo", 0o010_600, 0).unwrap();
    let names = ["/small", "/d/big", "/d/empty", "/sparse", "/link", "/fifo"].map(PathBuf::from).to_vec();
    drop(editor);
    (store.commit(draft).unwrap(), names)
}

/// A child process, between fork and exec, holds what another thread has open and would keep its mount busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn run(seed: u64, layers: usize, ops: usize) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), Options { backend: Backend::Overlay, ..Options::default() })
        .expect("needs root and overlayfs");
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    let (donor, names) = donor(&store);
    let donor_view = store.view(&[donor]).unwrap();
    let donor_before = seen_by_view(&donor_view);
    let donor_path = donor_view.require("/", Follow::No).unwrap().real_path();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, Vec::new());
    let (mut edited, mut modelled) = (Vec::new(), Vec::new());
    for _ in 0..layers {
        let script: Vec<Op> = (0..ops).map(|_| random_op(&mut random, &names)).collect();
        let mut draft = store.create().unwrap();
        let mut editor = store.edit(&edited, &mut draft).unwrap();
        let outcomes: Vec<_> = script.iter().map(|op| edit(&mut editor, op, &donor_view)).collect();
        let live = seen_by_view(&editor);
        drop(editor);
        edited.push(store.commit(draft).unwrap());

        let draft = store.create().unwrap();
        // The first layer would be a plain bind mount: an empty tree below makes it an overlay too.
        if modelled.is_empty() {
            modelled.push(store.commit(store.create().unwrap()).unwrap());
        }
        let mounted = store.mount_spec(&modelled, Top::Draft(&draft)).unwrap().mount_at(&target).unwrap();
        let root: OwnedFd = fs::File::open(&target).unwrap().into();
        for (op, outcome) in script.iter().zip(&outcomes) {
            // openat2 gives up on `..` when anything on the machine is renamed meanwhile, before it has done anything.
            let expected =
                std::iter::repeat_with(|| model(&root, op, &donor_path)).find(|r| !matches!(r, Err(Errno::AGAIN))).expect("endless");
            let code = outcome.as_ref().err().map(|error| error.errno().unwrap());
            assert_eq!(code, expected.err().map(Errno::raw_os_error), "seed {seed}: {op:?} of {script:?}");
        }
        drop(root);
        mounted.unmount().unwrap();
        modelled.push(store.commit(draft).unwrap());

        let mount = |stack: &[TreeId]| {
            let mounted = store.mount_spec(stack, Top::ReadOnly).unwrap().mount_at(&target).unwrap();
            let tree = seen_by_kernel(&target);
            mounted.unmount().unwrap();
            tree
        };
        random.1 = live.keys().filter(|path| path.parent().is_some()).cloned().collect();
        let (by_view, by_mount) = (seen_by_view(&store.view(&edited).unwrap()), mount(&edited));
        assert_eq!(live, by_view, "seed {seed}: an editor's own view");
        assert_eq!(by_view, by_mount, "seed {seed}: the editor's trees");
        let model = mount(&modelled);
        assert_eq!(seen_by_view(&store.view(&modelled).unwrap()), model, "seed {seed}: the kernel's trees");
        assert_eq!(without_times(&by_mount), without_times(&model), "seed {seed}: editor and kernel");
        for (stack, tree) in [(&edited, &by_mount), (&modelled, &model)] {
            let end = 1 + random.below(stack.len());
            let start = random.below(end);
            let squashed = store.squash(&stack[start..end], &stack[..start]).unwrap();
            let stack = [&stack[..start], &[squashed], &stack[end..]].concat();
            assert_eq!(seen_by_view(&store.view(&stack).unwrap()), *tree, "seed {seed}: {start}..{end} squashed");
            assert_eq!(mount(&stack), *tree, "seed {seed}: {start}..{end} squashed and mounted");
        }
    }
    assert_eq!(seen_by_view(&donor_view), donor_before, "seed {seed}: a committed tree was changed through a link");
}

#[test]
fn random_edits_are_what_the_kernel_would_have_made() {
    for seed in 0..12 {
        run(seed, 4, 30);
    }
}

#[test]
fn deep_stacks_with_indexed_directories_too() {
    for seed in 1000..1002 {
        run(seed, 30, 8);
    }
}
