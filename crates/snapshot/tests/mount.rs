//! Real mounts of stacks. Needs root and overlayfs; fails without.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::path::Path;

use snapshot::{Backend, MountSpec, Options, Store, Top, TreeId};

fn store(dir: &Path) -> Store {
    Store::open(&dir.join("store"), Options { backend: Backend::Overlay, ..Options::default() }).expect("needs root and overlayfs")
}

fn tree(store: &Store, files: &[(&str, &str)]) -> TreeId {
    let draft = store.create().unwrap();
    for (path, content) in files {
        let path = draft.fs().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    store.commit(draft).unwrap()
}

#[test]
fn a_deep_stack_mounts_and_collects_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let stack: Vec<TreeId> = (0..300).map(|n| tree(&store, &[("dir/last", &n.to_string()), (&format!("file{n}"), "x")])).collect();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();

    let mounted = store.mount_spec(&stack, Top::ReadOnly).unwrap().mount_at(&target).unwrap();
    assert_eq!(fs::read_to_string(target.join("dir/last")).unwrap(), "299");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 301);
    assert!(fs::write(target.join("new"), "").is_err());
    mounted.unmount().unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);

    let draft = store.create().unwrap();
    let spec = store.mount_spec(&stack, Top::Draft(&draft)).unwrap();
    for round in 0..2 {
        let mounted = spec.mount_at(&target).unwrap();
        fs::write(target.join("new"), round.to_string()).unwrap();
        mounted.unmount().unwrap();
    }
    let id = store.commit(draft).unwrap();
    let all: Vec<TreeId> = stack.iter().copied().chain([id]).collect();
    let _mounted = store.mount_spec(&all, Top::ReadOnly).unwrap().mount_at(&target).unwrap();
    assert_eq!(fs::read_to_string(target.join("new")).unwrap(), "1");
}

#[test]
fn small_stacks_mount_too_and_specs_travel_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let one = tree(&store, &[("a", "1")]);
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();

    for stack in [vec![], vec![one], vec![one, one]] {
        let spec = store.mount_spec(&stack, Top::ReadOnly).unwrap();
        let spec: MountSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        let _mounted = spec.mount_at(&target).unwrap();
        assert_eq!(target.join("a").exists(), !stack.is_empty());
        assert!(fs::write(target.join("b"), "").is_err());
    }
    let draft = store.create().unwrap();
    {
        let _mounted = store.mount_spec(&[], Top::Draft(&draft)).unwrap().mount_at(&target).unwrap();
        fs::write(target.join("b"), "2").unwrap();
    }
    assert_eq!(fs::read_to_string(draft.fs().join("b")).unwrap(), "2");
}

#[test]
fn drafts_go_away_unless_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (dropped, kept, tree) = {
        let store = store(dir.path());
        assert!(matches!(Store::open(store.root(), Options::default()), Err(snapshot::OpenError::Locked { .. })));
        let dropped = store.create().unwrap();
        let dropped_id = dropped.id();
        drop(dropped);
        let kept = store.keep(store.create().unwrap()).unwrap();
        fs::write(kept.fs().join("cached"), "x").unwrap();
        let lost = store.create().unwrap();
        std::mem::forget(lost);
        (dropped_id, kept.id(), tree(&store, &[("a", "1")]))
    };
    // `forget` above also leaks its handle of the store, so the lock is still held: give it a copy of the directory, as after a crash.
    let copy = dir.path().join("copy");
    assert!(std::process::Command::new("cp").arg("-a").arg(dir.path().join("store")).arg(&copy).status().unwrap().success());
    let store = Store::open(&copy, Options::default()).unwrap();
    assert!(!store.contains(&dropped));
    assert_eq!((store.trees().unwrap(), store.cells().unwrap()), (vec![tree], vec![kept]));
    assert_eq!(fs::read_dir(copy.join("drafts")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(store.reopen(&kept).unwrap().fs().join("cached")).unwrap(), "x");

    assert!(store.usage(&tree).unwrap().bytes > 0);
    assert_eq!(store.usage(&tree).unwrap().inodes, 3);
    store.remove(&tree).unwrap();
    assert!(store.usage(&tree).is_err());
    assert!(store.empty_trash().unwrap() >= 1);
    assert_eq!(fs::read_dir(copy.join("trash")).unwrap().count(), 0);
}
