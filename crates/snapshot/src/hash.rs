//! Views can be hashed.
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use rustix::fs::FileType;
use treehash::{Kind, Loaded, Stat, Tree};

use crate::metadata::{Follow, Metadata};
use crate::{Entry, PathError, View, layer, rel, xattr};

impl Tree for View {
    fn stat(&self, path: &Path) -> io::Result<Option<Stat>> {
        Ok(self.lookup(path, Follow::No).map_err(plain)?.map(|entry| stat(&entry)))
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<(Vec<u8>, Stat)>> {
        let entries = View::read_dir(self, path).map_err(plain)?;
        Ok(entries.iter().map(|entry| (entry.name().as_bytes().to_vec(), stat(entry))).collect())
    }

    fn read_link(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(View::read_link(self, path).map_err(plain)?.into_os_string().into_vec())
    }

    /// The hint is the tree that has the file.
    fn load(&self, path: &Path, stat: &Stat) -> io::Result<Loaded> {
        let rel = &path.as_os_str().as_bytes()[1..];
        let number = self.merged.layers.iter().position(|layer| layer.id.number() == stat.hint);
        let (Some(number), Some((dir, name))) = (number, rel::split(rel)) else {
            let xattrs = self.xattrs(path).map_err(plain)?;
            let content = if stat.kind == Kind::File { Some(Box::new(self.open(path).map_err(plain)?) as Box<dyn Read>) } else { None };
            return Ok(Loaded { xattrs: list(xattrs), content });
        };
        let dir = self.merged.open_dir(number as u32, dir)?;
        if stat.kind != Kind::File {
            return Ok(Loaded { xattrs: list(xattr::read(&layer::proc_path(&*dir, name))?), content: None });
        }
        let file = layer::open_in(&*dir, name)?;
        let xattrs = list(xattr::read_open(&file)?);
        Ok(Loaded { xattrs, content: (stat.size > 0).then(|| Box::new(file) as Box<dyn Read>) })
    }
}

fn list(xattrs: xattr::Xattrs) -> Vec<(Vec<u8>, Vec<u8>)> {
    xattrs.into_iter().map(|(name, value)| (name.into_vec(), value)).collect()
}

fn stat(entry: &Entry) -> Stat {
    let Metadata { uid, gid, size, .. } = *entry.metadata();
    let kind = match entry.metadata().file_type() {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        _ => Kind::File,
    };
    Stat { kind, permissions: entry.metadata().permissions(), uid, gid, size, hint: entry.tree().number() }
}

/// The path is the caller's business here.
fn plain(error: PathError) -> io::Error {
    error.source
}
