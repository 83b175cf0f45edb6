//! Extended attributes, without overlay's own.
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Name -> value.
pub type Xattrs = BTreeMap<OsString, Vec<u8>>;

pub(crate) const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

pub(crate) fn opaque_name(userxattr: bool) -> &'static str {
    OPAQUE[usize::from(userxattr)]
}

/// Attributes that are how overlay stores a tree, not what is in it.
pub(crate) fn is_internal(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// All attributes of the file itself (a symbolic link is not followed). `path` must be a path that is safe up to its last part.
pub(crate) fn read(path: &[u8]) -> Result<Xattrs, Errno> {
    let mut all = Xattrs::new();
    for name in list(path)?.split(|b| *b == 0).filter(|name| !name.is_empty() && !is_internal(name)) {
        if let Some(value) = get(path, name)? {
            all.insert(OsString::from_vec(name.to_vec()), value);
        }
    }
    Ok(all)
}

fn list(path: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 512];
    loop {
        match rustix::fs::llistxattr(path, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => buffer.resize(rustix::fs::llistxattr_query(path)? + 256, 0),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
    }
}

fn get(path: &[u8], name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let mut buffer = vec![0; 512];
    loop {
        match rustix::fs::lgetxattr(path, name, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(Some(buffer));
            }
            Err(Errno::RANGE) => buffer.resize(rustix::fs::lgetxattr_query(path, name)? + 256, 0),
            Err(Errno::NODATA) => return Ok(None),
            Err(errno) => return Err(errno),
        }
    }
}

pub(crate) fn set(path: &[u8], name: &[u8], value: &[u8]) -> Result<(), Errno> {
    if is_internal(name) {
        return Err(Errno::PERM);
    }
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}
