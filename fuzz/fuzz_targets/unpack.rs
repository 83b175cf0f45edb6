//! Layers as archives: header checksums are mended, and nothing may appear outside of the tree.
#![no_main]
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let home = tempfile::tempdir_in(scratch()).expect("a temporary directory can be made");
    let tree = home.path().join("inner/tree");
    fs::create_dir_all(&tree).expect("directories can be made");
    let canaries = [home.path().join("canary"), home.path().join("inner/canary")];
    for canary in &canaries {
        fs::write(canary, "alive").expect("files can be written");
    }
    let _ = layers::fuzzing::unpack(&mend(data), &tree);
    for canary in &canaries {
        let meta = fs::symlink_metadata(canary).expect("the canary is still there");
        assert!(meta.is_file() && meta.nlink() == 1 && meta.uid() == 0 && meta.mode() & 0o7777 == 0o644, "the canary was touched");
        assert_eq!(fs::read(canary).expect("the canary can be read"), b"alive");
    }
    assert_eq!((children(home.path()), children(&home.path().join("inner"))), (2, 2), "something was made outside of the tree");
});

/// In memory where there is such a place: every input makes files.
fn scratch() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

fn children(dir: &Path) -> usize {
    fs::read_dir(dir).expect("the directory is still there").count()
}

/// Gives every block that looks like a header the checksum that it should have.
fn mend(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    data
}
