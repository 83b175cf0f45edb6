//! What is hashed through a view of a stack is what the same files give in one tree.
use std::io::Write as _;

use snapshot::{Editor, Options, Store};
use treehash::Records;

#[test]
fn a_stack_hashes_as_its_merge() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
    let file =
        |editor: &mut Editor<'_>, path: &str, content: &str| editor.write_file(path, 0o644).unwrap().write_all(content.as_bytes()).unwrap();

    let mut draft = store.create().unwrap();
    let mut editor = store.edit(&[], &mut draft).unwrap();
    editor.mkdir("/d", 0o755).unwrap();
    file(&mut editor, "/d/old", "to go");
    file(&mut editor, "/d/stays", "1");
    file(&mut editor, "/e", "");
    editor.set_xattr("/d/stays", "user.x", b"y").unwrap();
    let lower = store.commit(draft).unwrap();

    let mut draft = store.create().unwrap();
    let mut editor = store.edit(&[lower], &mut draft).unwrap();
    editor.remove("/d/old").unwrap();
    file(&mut editor, "/d/new", "2");
    editor.symlink("d/new", "/link").unwrap();
    let upper = store.commit(draft).unwrap();

    let mut draft = store.create().unwrap();
    let mut editor = store.edit(&[], &mut draft).unwrap();
    editor.mkdir("/d", 0o755).unwrap();
    file(&mut editor, "/d/stays", "1");
    file(&mut editor, "/d/new", "2");
    file(&mut editor, "/e", "");
    editor.set_xattr("/d/stays", "user.x", b"y").unwrap();
    editor.symlink("d/new", "/link").unwrap();
    let merge = store.commit(draft).unwrap();

    let (stack, merge) = (store.view(&[lower, upper]).unwrap(), store.view(&[merge]).unwrap());
    let options = |follow_links| treehash::Options { follow_links, ..Default::default() };
    for path in ["/", "/d", "/d/stays", "/link", "/e"] {
        for follow in [false, true] {
            let digest = |view| Records::new().checksum(view, path, &options(follow)).unwrap();
            assert_eq!(digest(&stack), digest(&merge), "{path}");
        }
    }
    let missing = Records::new().checksum(&stack, "/d/old", &options(false)).unwrap_err();
    assert_eq!(missing.to_string(), "\"/d/old\": not found");
}
