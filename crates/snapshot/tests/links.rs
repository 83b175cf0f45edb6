//! Hard links between trees: made where no one can tell, undone where someone could. Needs root and overlayfs; fails without.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use snapshot::{Backend, Follow, Options, Placed, Store, Top, TreeId};

struct World {
    dir: tempfile::TempDir,
    store: Store,
    source: TreeId,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { backend: Backend::Overlay, ..Options::default() };
        let store = Store::open(&dir.path().join("store"), options).expect("needs root and overlayfs");
        fs::create_dir(dir.path().join("target")).unwrap();
        let mut draft = store.create().unwrap();
        let mut editor = store.edit(&[], &mut draft).unwrap();
        editor.mkdir("/d", 0o755).unwrap();
        editor.create_file("/d/f", 0o644).unwrap().write_all(&vec![b'x'; 100_000]).unwrap();
        drop(editor);
        let source = store.commit(draft).unwrap();
        Self { dir, store, source }
    }

    /// A tree over `stack` with `/d/f` of tree `from` at each of `paths`.
    fn copy(&self, stack: &[TreeId], from: TreeId, file: &str, paths: &[&str]) -> (TreeId, Vec<Placed>) {
        let entry = self.store.view(&[from]).unwrap().require(file, Follow::No).unwrap();
        let mut draft = self.store.create().unwrap();
        let mut editor = self.store.edit(stack, &mut draft).unwrap();
        let mut placed = Vec::new();
        for path in paths {
            editor.mkdir_all(Path::new(path).parent().unwrap(), 0o755).unwrap();
            if editor.lookup(path, Follow::No).unwrap().is_some() {
                editor.remove(path).unwrap();
            }
            placed.push(editor.link_file(&entry, path).unwrap());
        }
        drop(editor);
        (self.store.commit(draft).unwrap(), placed)
    }

    fn inodes(&self, stack: &[TreeId], paths: &[&str]) -> Vec<u64> {
        let target = self.dir.path().join("target");
        let mounted = self.store.mount_spec(stack, Top::ReadOnly).unwrap().mount_at(&target).unwrap();
        let inodes = paths.iter().map(|path| {
            let path = target.join(&path[1..]);
            assert_eq!(fs::read(&path).unwrap(), vec![b'x'; 100_000]);
            path.metadata().unwrap().ino()
        });
        let inodes = inodes.collect();
        mounted.unmount().unwrap();
        inodes
    }
}

#[test]
fn one_inode_has_one_name_in_a_stack() {
    let world = World::new();
    let (first, placed) = world.copy(&[], world.source, "/d/f", &["/a", "/b"]);
    assert_eq!(placed, [Placed::Linked, Placed::Copied], "twice in one tree");
    let (second, placed) = world.copy(&[first], world.source, "/d/f", &["/c", "/a"]);
    assert_eq!(placed, [Placed::Copied, Placed::Linked], "/a is replaced by itself, /c would be its twin");
    let (third, placed) = world.copy(&[first, second], first, "/a", &["/e"]);
    assert_eq!(placed, [Placed::Copied], "from the stack itself");
    let (other, placed) = world.copy(&[], second, "/a", &["/x/y"]);
    assert_eq!(placed, [Placed::Linked], "into another stack");
    let inodes = world.inodes(&[first, second, third], &["/a", "/b", "/c", "/e"]);
    assert_eq!(inodes.iter().collect::<std::collections::HashSet<_>>().len(), 4);
    // A merge brings the twins together; the mount parts them, for good.
    for _ in 0..2 {
        let inodes = world.inodes(&[first, other], &["/a", "/x/y"]);
        assert_ne!(inodes[0], inodes[1]);
        let inodes = world.inodes(&[other, world.source], &["/d/f", "/x/y"]);
        assert_ne!(inodes[0], inodes[1]);
    }
    assert_eq!(world.store.usage(&other).unwrap().inodes, 4);
}

#[test]
fn what_a_walk_showed_is_opened_at_once_where_one_tree_has_it() {
    let world = World::new();
    let (other, _) = world.copy(&[world.source], world.source, "/d/f", &["/d/g"]);
    for (stack, at_once) in [(vec![world.source], true), (vec![world.source, other], false)] {
        let view = world.store.view(&stack).unwrap();
        assert!(view.open_known("/d/f").is_none(), "no walk was there yet");
        view.walk::<snapshot::PathError>("/", &mut |_| Ok(true)).unwrap();
        assert_eq!(view.open_known("/d/f").is_some(), at_once);
        assert!(view.open_known("/d/missing").is_none());
    }
}

#[test]
fn the_order_in_a_merge_does_not_matter() {
    let world = World::new();
    let (linked, _) = world.copy(&[], world.source, "/d/f", &["/l"]);
    for stack in [[linked, world.source], [world.source, linked]] {
        let inodes = world.inodes(&stack, &["/l", "/d/f"]);
        assert_ne!(inodes[0], inodes[1]);
    }
}

#[test]
fn shared_blocks_are_counted_once() {
    let world = World::new();
    let whole = world.store.usage(&world.source).unwrap();
    assert!(whole.bytes >= 100_000);
    let (one, _) = world.copy(&[], world.source, "/d/f", &["/1"]);
    let (two, _) = world.copy(&[], one, "/1", &["/2"]);
    assert_eq!(world.store.usage(&world.source).unwrap(), whole);
    assert!(world.store.usage(&one).unwrap().bytes < 20_000);
    assert!(world.store.usage(&two).unwrap().bytes < 20_000);
    world.store.remove(&world.source).unwrap();
    world.store.empty_trash().unwrap();
    let (one, two) = (world.store.usage(&one).unwrap(), world.store.usage(&two).unwrap());
    let file = 100_352;
    assert_eq!(one, two);
    assert!((file..file + 40_000).contains(&(one.bytes + two.bytes)), "{one:?}");
}

#[test]
fn a_draft_with_links_is_safe_to_mount() {
    let world = World::new();
    let entry = world.store.view(&[world.source]).unwrap().require("/d/f", Follow::No).unwrap();
    let mut draft = world.store.create().unwrap();
    let mut editor = world.store.edit(&[], &mut draft).unwrap();
    assert_eq!(editor.link_file(&entry, "/f").unwrap(), Placed::Linked);
    editor.hard_link("/f", "/g").unwrap();
    drop(editor);
    let target = world.dir.path().join("target");
    {
        let _mounted = world.store.mount_spec(&[], Top::Draft(&draft)).unwrap().mount_at(&target).unwrap();
        fs::write(target.join("f"), "changed").unwrap();
        assert_eq!(fs::read_to_string(target.join("g")).unwrap(), "changed", "still one file");
    }
    assert_eq!(fs::read(entry.real_path()).unwrap().len(), 100_000);

    // A kept draft whose files were linked into a tree, reopened by another process.
    let cell = world.store.keep(draft).unwrap();
    let view = world.store.view(&[cell.id()]).unwrap();
    let (tree, placed) = world.copy(&[], cell.id(), "/f", &["/from-cell"]);
    assert_eq!(placed, [Placed::Linked]);
    drop(view);
    let reopened = world.store.reopen(&cell.id()).unwrap();
    {
        let _mounted = world.store.mount_spec(&[], Top::Draft(&reopened)).unwrap().mount_at(&target).unwrap();
        fs::write(target.join("f"), "changed again").unwrap();
    }
    let entry = world.store.view(&[tree]).unwrap().require("/from-cell", Follow::No).unwrap();
    assert_eq!(fs::read_to_string(entry.real_path()).unwrap(), "changed");
}
