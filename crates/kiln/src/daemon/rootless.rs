//! A daemon that an ordinary user starts.
use rustix::process::{geteuid, getuid};

use super::config::USER_OUTSIDE;

/// Makes sure that this process is root, of the machine or of a user namespace. Where it is neither, it is executed again in a namespace of
/// its own, as the same process.
pub fn settle() -> Result<(), String> {
    if geteuid().is_root() {
        return Ok(());
    }
    let args: Vec<_> = std::env::args_os().collect();
    let user = getuid().as_raw().to_string();
    match sandbox::rootless::enter(&args, &[(USER_OUTSIDE, user.into())]) {
        Ok(never) => match never {},
        Err(error) => Err(fault::chain(&error)),
    }
}
