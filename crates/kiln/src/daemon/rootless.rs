//! A daemon that an ordinary user starts, or a root that may not mount.
use rustix::process::{geteuid, getuid};

use super::config::USER_OUTSIDE;

/// Makes sure that this process is root, of the machine or of a user namespace, and may do what that takes. Where it is not, it is executed
/// again in a namespace of its own, as the same process.
pub fn settle() -> Result<(), String> {
    if sandbox::rootless::is_privileged() {
        return Ok(());
    }
    let args: Vec<_> = std::env::args_os().collect();
    // Root's files are where root's always are.
    let user = (!geteuid().is_root()).then(|| (USER_OUTSIDE, getuid().as_raw().to_string().into()));
    match sandbox::rootless::enter(&args, user.as_slice()) {
        Ok(never) => match never {},
        Err(error) => Err(fault::chain(&error)),
    }
}
