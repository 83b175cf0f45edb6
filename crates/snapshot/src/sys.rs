//! The only unsafe code of this room.
#![allow(unsafe_code)]
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

/// Gives the calling thread a working directory of its own.
pub(crate) fn unshare_fs() -> Result<(), Errno> {
    // SAFETY: CLONE_FS only detaches the thread's working directory, root and umask; no memory or descriptor becomes invalid.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
}
