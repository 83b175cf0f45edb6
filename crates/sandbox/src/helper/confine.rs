//! AppArmor and SELinux, as the helper applies them: the profile or label that the program gets, and labels of files.
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use snapshot::{MountSpec, Mounted};

use super::{Failed, Outcome, Try as _};
use crate::link::Labels;

const LABEL: &str = "security.selinux";

/// What this process, or a child that it has after this, executes next is confined by `labels`. To be called while `/proc` is the host's:
/// in the container anything may be mounted there.
pub(crate) fn at_exec(labels: &Labels) -> Outcome<()> {
    if let Some(profile) = &labels.apparmor {
        let command = format!("exec {profile}");
        // Before Linux 5.8 it has no directory of its own.
        let told = tell("apparmor/exec", &command).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => tell("exec", &command),
            _ => Err(error),
        });
        told.map_err(|error| {
            let unloaded = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL));
            let help = if unloaded { ": is it loaded? (apparmor_parser -r FILE)" } else { "" };
            let mut failed = Failed::new(format!("enter AppArmor profile {profile:?}"), error);
            failed.message += help;
            failed
        })?;
    }
    if let Some(label) = &labels.process {
        tell("exec", label).tried(|| format!("take SELinux label {label}"))?;
    }
    Ok(())
}

fn tell(attribute: &str, value: &str) -> io::Result<()> {
    const PROC: i64 = 0x9fa0;
    let path = format!("/proc/thread-self/attr/{attribute}");
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&file)?.f_type != PROC {
        return Err(io::Error::other("/proc is something else"));
    }
    // In one piece.
    let written = rustix::io::write(&file, value.as_bytes())?;
    if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Labels the root of a mount, unless the policy labels nothing on such a file system.
pub(super) fn label(mount: &OwnedFd, label: &str) -> Result<(), Errno> {
    match rustix::fs::setxattr(format!("/proc/self/fd/{}", mount.as_raw_fd()), LABEL, label.as_bytes(), XattrFlags::empty()) {
        Err(Errno::NOTSUP) => Ok(()),
        outcome => outcome,
    }
}

/// Mounts a tree of ours. Whatever is made in it is for all containers: it will be a layer of others. The kernel also looks at the files that
/// an overlay is made of when a program maps them, so these are labelled too.
pub(super) fn mount(spec: &MountSpec, at: &Path, mount: Option<&str>) -> Outcome<()> {
    let label_tree = |path: &Path, label: &str| {
        super::path::open_dir(path).and_then(|tree| share(&tree, label)).tried(|| format!("label {}", path.display()))
    };
    let label = mount.map(shared);
    match (spec, mount) {
        (MountSpec::Overlay { lowers, upper_work, .. }, Some(mount)) => {
            let upper = upper_work.iter().map(|(upper, _)| upper);
            lowers.iter().chain(upper).try_for_each(|tree| label_tree(tree, mount))?;
        }
        (MountSpec::Bind { path, .. }, Some(mount)) => label_tree(path, mount)?,
        (_, None) => {}
    }
    spec.mount_labelled(at, label.as_deref()).map(Mounted::leak).map_err(|error| Failed::plain(fault::chain(&error)))
}

/// Labels a tree of ours for all containers with the type of `mount`, unless its top has it: by then, so has all that was made in it.
pub(super) fn share(tree: &OwnedFd, mount: &str) -> Result<(), Errno> {
    let shared = shared(mount);
    let mut present = [0; 512];
    let top = format!("/proc/self/fd/{}", tree.as_raw_fd());
    let length = rustix::fs::getxattr(&top, LABEL, &mut present[..]).unwrap_or(0);
    if present[..length].strip_suffix(b"\0").unwrap_or(&present[..length]) == shared.as_bytes() {
        return Ok(());
    }
    if FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode).is_dir() {
        below(&rustix::fs::openat(tree, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?, &shared)?;
    }
    label(tree, &shared)
}

/// By descriptors: another container may be at work in the same tree.
fn below(dir: &OwnedFd, shared: &str) -> Result<(), Errno> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir.as_fd(), name, flags, Mode::empty()) {
            Ok(child) => {
                below(&child, shared)?;
                label(&child, shared)?;
            }
            Err(Errno::NOENT) => {}
            Err(_) => {
                let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), name.to_string_lossy());
                match rustix::fs::lsetxattr(path, LABEL, shared.as_bytes(), XattrFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT | Errno::NOTSUP) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
    }
    Ok(())
}

/// The label without the categories of one container.
fn shared(label: &str) -> String {
    let parts: Vec<&str> = label.splitn(4, ':').collect();
    if parts.len() == 4 { format!("{}:s0", parts[..3].join(":")) } else { label.to_owned() }
}

/// A copy of a file of the host's in `dir`, which has its label from its mount.
pub(super) fn copy_into(dir: &Path, name: &str, from: &Path) -> Outcome<PathBuf> {
    let copy = dir.join(name);
    fs::copy(from, &copy).tried(|| format!("copy {}", from.display()))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::shared;

    #[test]
    fn shared_labels_have_no_categories() {
        assert_eq!(shared("system_u:object_r:container_file_t:s0:c1,c2"), "system_u:object_r:container_file_t:s0");
        assert_eq!(shared("u:r:t"), "u:r:t");
    }
}
