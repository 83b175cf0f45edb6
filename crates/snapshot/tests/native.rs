//! The backend without overlay must leave the same trees behind. Needs root (bind mounts); fails without.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use snapshot::{Backend, Follow, Options, PathError, Store, Top, TreeId, View};

fn world() -> (tempfile::TempDir, Store, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), Options { backend: Backend::Native, ..Options::default() }).unwrap();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    (dir, store, target)
}

/// Path -> mode, owner, content or target, whether the draft on top has it.
fn listing(view: &View) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>, TreeId)> {
    let mut all = BTreeMap::new();
    view.walk::<PathError>("/", &mut |entry| {
        let metadata = entry.metadata();
        let content = match () {
            () if metadata.is_file() => fs::read(entry.real_path()).unwrap(),
            () if metadata.is_symlink() => view.read_link(entry.path())?.into_os_string().into_encoded_bytes(),
            () => Vec::new(),
        };
        all.insert(entry.path().to_owned(), (metadata.mode, metadata.uid, content, entry.tree()));
        Ok(true)
    })
    .unwrap();
    all
}

fn base(store: &Store) -> TreeId {
    let draft = store.create().unwrap();
    let root = draft.fs();
    for dir in ["keep/deep", "gone", "replaced", "meta"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (path, content) in
        [("keep/same", "1"), ("keep/deep/same", "2"), ("changed", "old"), ("gone/x", ""), ("replaced/y", ""), ("meta/z", "")]
    {
        fs::write(root.join(path), content).unwrap();
    }
    fs::hard_link(root.join("keep/same"), root.join("keep/twin")).unwrap();
    symlink("keep", root.join("link")).unwrap();
    store.commit(draft).unwrap()
}

#[test]
fn a_writable_mount_ends_as_a_diff() {
    let (_dir, store, target) = world();
    let base = base(&store);
    let before = listing(&store.view(&[base]).unwrap());
    let draft = store.create().unwrap();
    let id = draft.id();
    for round in 0..2 {
        // The second mount of the same draft goes on where the first ended.
        let mounted = store.mount_spec(&[base], Top::Draft(&draft)).unwrap().mount_at(&target).unwrap();
        if round == 0 {
            assert_eq!(fs::metadata(target.join("keep/twin")).unwrap().nlink(), 2);
            fs::write(target.join("changed"), "new").unwrap();
            fs::remove_dir_all(target.join("gone")).unwrap();
            fs::remove_dir_all(target.join("replaced")).unwrap();
            fs::write(target.join("replaced"), "a file now").unwrap();
        } else {
            assert_eq!(fs::read_to_string(target.join("changed")).unwrap(), "new");
            fs::create_dir(target.join("made")).unwrap();
            fs::write(target.join("made/a"), "a").unwrap();
            fs::hard_link(target.join("made/a"), target.join("made/b")).unwrap();
            fs::set_permissions(target.join("meta"), fs::Permissions::from_mode(0o700)).unwrap();
        }
        mounted.unmount().unwrap();
    }
    assert_eq!(store.commit(draft).unwrap(), id);
    assert_eq!(listing(&store.view(&[base]).unwrap()), before, "the stack below is as it was");

    let view = store.view(&[base, id]).unwrap();
    let after = listing(&view);
    let of_draft: Vec<&str> = after.iter().filter(|(_, (.., tree))| *tree == id).map(|(path, _)| path.to_str().unwrap()).collect();
    assert_eq!(of_draft, ["/changed", "/made", "/made/a", "/made/b", "/meta", "/replaced"]);
    assert_eq!(after[Path::new("/changed")].2, b"new");
    assert_eq!(after[Path::new("/replaced")].2, b"a file now");
    assert_eq!(after[Path::new("/meta")].0, 0o040_700);
    assert!(!after.contains_key(Path::new("/gone")));
    let ino = |path| view.require(path, Follow::No).unwrap().metadata().ino;
    assert_eq!(ino("/made/a"), ino("/made/b"));
}

#[test]
fn read_only_mounts_share_one_copy_until_a_tree_goes() {
    let (_dir, store, target) = world();
    let base = base(&store);
    let mut draft = store.create().unwrap();
    store.edit(&[base], &mut draft).unwrap().remove("/gone").unwrap();
    let upper = store.commit(draft).unwrap();
    let spec = store.mount_spec(&[base, upper], Top::ReadOnly).unwrap();
    assert_eq!(store.mount_spec(&[base, upper], Top::ReadOnly).unwrap(), spec);
    {
        let _mounted = spec.mount_at(&target).unwrap();
        assert!(!target.join("gone").exists());
        assert_eq!(fs::read_to_string(target.join("keep/deep/same")).unwrap(), "2");
        assert!(fs::write(target.join("changed"), "").is_err());
    }
    let trees = store.trees().unwrap();
    assert_eq!(trees.len(), 3);
    store.remove(&upper).unwrap();
    assert_eq!(store.trees().unwrap(), [base]);
}
