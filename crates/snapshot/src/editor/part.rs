//! Work on a draft's directory as a whole.
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::inode::{self, Inode, errno};
use super::keeping_times;
use crate::layer::{self, Layer};
use crate::metadata::Metadata;
use crate::xattr;

/// Gives the directory `to` the metadata of `top`'s root.
pub(crate) fn copy_root(top: &Layer, to: &Path) -> Result<(), Errno> {
    let to: OwnedFd = File::open(to).map_err(errno)?.into();
    dress_dir(&top.open_dir(b"")?, &to, b".")
}

/// Gives the directory `name` in `to` the metadata of the directory `from`.
pub(crate) fn dress_dir(from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let metadata = Metadata::of(&rustix::fs::fstat(from)?);
    let xattrs = xattr::read(&layer::proc_path(from, b""))?;
    inode::dress(to, name, &metadata, &xattrs)
}

/// Copies what is no directory, with all that belongs to it, under the same name.
pub(crate) fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &[u8], metadata: Metadata) -> Result<(), Errno> {
    Inode::load(from, name, metadata)?.store(to, name).map(drop)
}

/// Replaces every inode with more than one name by a copy; names within `root` that were one file stay one file.
pub(crate) fn part(root: &Path) -> Result<(), Errno> {
    let layer = Layer::at(root);
    let mut copies: HashMap<u64, PathBuf> = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let handle = layer.open_dir(dir.as_os_str().as_bytes())?;
        let names: Vec<_> = fs::read_dir(root.join(&dir)).and_then(Iterator::collect).map_err(errno)?;
        for name in names.iter().map(fs::DirEntry::file_name) {
            let path = dir.join(&name);
            let Some(stat) = layer::stat(&handle, name.as_bytes())? else { continue };
            let metadata = Metadata::of(&stat);
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.nlink > 1 && !metadata.is_whiteout() {
                keeping_times(&handle, || part_one(&layer, &handle, &name, path, metadata, &mut copies))?;
            }
        }
    }
    Ok(())
}

fn part_one(
    layer: &Layer,
    dir: &OwnedFd,
    name: &OsStr,
    path: PathBuf,
    metadata: Metadata,
    copies: &mut HashMap<u64, PathBuf>,
) -> Result<(), Errno> {
    match copies.entry(metadata.ino) {
        Entry::Occupied(copy) => {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            rustix::fs::linkat(rustix::fs::CWD, layer.fs.join(copy.get()), dir, name, AtFlags::empty())
        }
        Entry::Vacant(slot) => {
            let original = Inode::load(dir, name.as_bytes(), metadata)?;
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            original.store(dir, name.as_bytes())?;
            slot.insert(path);
            Ok(())
        }
    }
}

/// Replaces the files of a committed tree that are among `inodes` by copies, one at a time and each at once: nothing that a reader sees
/// changes but the inode number.
pub(crate) fn separate(root: &Path, inodes: &HashSet<u64>) -> Result<(), Errno> {
    let layer = Layer::at(root);
    let aside = root.with_file_name("aside");
    fs::create_dir_all(&aside).map_err(errno)?;
    let aside_dir: OwnedFd = File::open(&aside).map_err(errno)?.into();
    let mut copies: HashMap<u64, PathBuf> = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let handle = layer.open_dir(dir.as_os_str().as_bytes())?;
        let names: Vec<_> = fs::read_dir(root.join(&dir)).and_then(Iterator::collect).map_err(errno)?;
        for name in names.iter().map(fs::DirEntry::file_name) {
            let path = dir.join(&name);
            let Some(stat) = layer::stat(&handle, name.as_bytes())? else { continue };
            let metadata = Metadata::of(&stat);
            if metadata.is_dir() {
                pending.push(path);
            } else if inodes.contains(&metadata.ino) {
                let temporary = format!("{}", metadata.ino);
                match copies.get(&metadata.ino) {
                    Some(copy) => {
                        rustix::fs::linkat(rustix::fs::CWD, layer.fs.join(copy), &aside_dir, temporary.as_str(), AtFlags::empty())?
                    }
                    None => _ = Inode::load(&handle, name.as_bytes(), metadata)?.store(&aside_dir, temporary.as_bytes())?,
                }
                keeping_times(&handle, || rustix::fs::renameat(&aside_dir, temporary.as_str(), &handle, &name))?;
                copies.entry(metadata.ino).or_insert(path);
            }
        }
    }
    fs::remove_dir_all(&aside).map_err(errno)
}
