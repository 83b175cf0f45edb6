use std::io::{self, Read};
use std::path::Path;

/// A file tree to be hashed. Paths are absolute; parents of what is asked for are real directories, and symbolic links are never followed.
pub trait Tree {
    /// What is at `path`; `None` if nothing is.
    fn stat(&self, path: &Path) -> io::Result<Option<Stat>>;

    /// What is in the directory `path`, in any order: name, stat.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<(Vec<u8>, Stat)>>;

    fn read_link(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Extended attributes, and the bytes of a regular file. `stat` is what this tree said before.
    fn load(&self, path: &Path, stat: &Stat) -> io::Result<Loaded>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Anything that makes the next call about this file cheaper for the tree.
    pub hint: u64,
}

pub struct Loaded {
    /// Name, value; in any order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of a regular file that is not empty.
    pub content: Option<Box<dyn Read>>,
}
