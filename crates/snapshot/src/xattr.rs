//! Extended attributes, without overlay's own.
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt as _;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Name -> value.
pub type Xattrs = BTreeMap<OsString, Vec<u8>>;

pub(crate) const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

pub(crate) fn opaque_name(userxattr: bool) -> &'static str {
    OPAQUE[usize::from(userxattr)]
}

/// Attributes that are how overlay stores a tree, and what SELinux has this machine's files labelled with: not what is in the tree.
pub(crate) fn is_internal(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") || name == b"security.selinux"
}

/// All attributes of the file itself (a symbolic link is not followed). `path` must be a path that is safe up to its last part.
pub(crate) fn read(path: &[u8]) -> Result<Xattrs, Errno> {
    collect(|buffer| rustix::fs::llistxattr(path, buffer), |name, buffer| rustix::fs::lgetxattr(path, name, buffer))
}

/// All attributes of an open file.
pub(crate) fn read_open(file: impl AsFd) -> Result<Xattrs, Errno> {
    collect(|buffer| rustix::fs::flistxattr(&file, buffer), |name, buffer| rustix::fs::fgetxattr(&file, name, buffer))
}

fn collect(
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    let mut all = Xattrs::new();
    let names = match grown(&list) {
        Ok(names) => names,
        Err(Errno::NOTSUP) => return Ok(all),
        Err(errno) => return Err(errno),
    };
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty() && !is_internal(name)) {
        match grown(&|buffer: &mut [u8]| get(name, buffer)) {
            Ok(value) => _ = all.insert(OsString::from_vec(name.to_vec()), value),
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(all)
}

/// Calls with a buffer that is large enough; the kernel's limit is 64 KiB.
fn grown(call: &dyn Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut small = [0; 256];
    match call(&mut small) {
        Ok(length) => return Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut large = vec![0; 64 * 1024];
    let length = call(&mut large)?;
    large.truncate(length);
    Ok(large)
}

pub(crate) fn set(path: &[u8], name: &[u8], value: &[u8]) -> Result<(), Errno> {
    if is_internal(name) {
        return Err(Errno::PERM);
    }
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
}
