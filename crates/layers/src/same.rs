//! Whether two files count as unchanged, by the rules of containerd's continuity, which image builders share.
use std::fs::File;
use std::io::{self, Read};

use rustix::io::Errno;
use snapshot::{Entry, FileType};

use crate::error::{Error, Result};

/// Equal type, mode, owner, device and capabilities. Of what is no directory also equal size and modification time; where both times are
/// whole seconds they may have been cut off by an archive, so the content decides.
pub(crate) fn unchanged(before: &Entry, after: &Entry) -> Result<bool> {
    let (a, b) = (before.metadata(), after.metadata());
    if a.dev == b.dev && a.ino == b.ino {
        return Ok(true);
    }
    if (a.mode, a.uid, a.gid, a.rdev) != (b.mode, b.uid, b.gid, b.rdev) || capabilities(before)? != capabilities(after)? {
        return Ok(false);
    }
    if a.is_dir() {
        return Ok(true);
    }
    if a.size != b.size || a.mtime.seconds != b.mtime.seconds {
        return Ok(false);
    }
    if a.mtime.nanos != 0 || b.mtime.nanos != 0 {
        return Ok(a.mtime.nanos == b.mtime.nanos);
    }
    match a.file_type() {
        FileType::Symlink => Ok(target(before)? == target(after)?),
        FileType::RegularFile if a.size > 0 => same_content(before, after),
        _ => Ok(true),
    }
}

/// The `security.capability` attribute; empty if there is none.
pub(crate) fn capabilities(entry: &Entry) -> Result<Vec<u8>> {
    // Nothing else can have it.
    if entry.metadata().file_type() != FileType::RegularFile {
        return Ok(Vec::new());
    }
    let path = entry.real_path();
    let mut buffer = vec![0; 64];
    loop {
        match rustix::fs::lgetxattr(&path, "security.capability", &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(Vec::new()),
            Err(Errno::RANGE) => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(Error::io("read attributes of", &path)(errno.into())),
        }
    }
}

pub(crate) fn target(entry: &Entry) -> Result<Vec<u8>> {
    let path = entry.real_path();
    let target = rustix::fs::readlink(&path, Vec::new()).map_err(|e| Error::io("read link", &path)(e.into()))?;
    Ok(target.into_bytes())
}

fn same_content(before: &Entry, after: &Entry) -> Result<bool> {
    let open = |entry: &Entry| entry.open().map_err(Error::io("open", &entry.real_path()));
    let (mut a, mut b) = (open(before)?, open(after)?);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = fill(&mut a, &mut left).map_err(Error::io("read", &before.real_path()))?;
        let m = fill(&mut b, &mut right).map_err(Error::io("read", &after.real_path()))?;
        if left[..n] != right[..m] {
            return Ok(false);
        }
        if n < left.len() {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read(&mut out[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
