//! An emulator for one container: a user namespace around the process, or around the runtime that makes it, with the ids of the one that we are
//! in, and a binfmt_misc of its own with one registration. See [`crate::emulation`].
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::mount::put;
use super::path::{open_dir, open_in};
use super::{Failed, Outcome, Try as _};
use crate::emulation::Emulator;
use crate::link::Spec;
use crate::rootless::same_ids;
use crate::{link, sys};

/// Where the kernel shows what is registered.
const PLACE: &str = "/proc/sys/fs/binfmt_misc";

/// A socket between the two parts, if the container has an emulator.
pub(super) fn pair(spec: &Spec) -> Outcome<(Option<OwnedFd>, Option<OwnedFd>)> {
    match &spec.emulator {
        Some(_) => link::pair().map(|(ours, theirs)| (Some(ours), Some(theirs))).tried(|| "create a socket"),
        None => Ok((None, None)),
    }
}

/// The monitor's part: who stands outside of the new namespace must map its ids. `peer` is the other end of the container's socket.
pub(super) fn map_ids(peer: &OwnedFd, pid: i32) -> Outcome<()> {
    let mut buffer = Vec::new();
    // Without a word the container has failed before, and reports that itself.
    let Ok(Some(((), _))) = link::receive::<()>(peer, &mut buffer) else { return Ok(()) };
    let write = |name: &str| {
        let map = fs::read_to_string(format!("/proc/self/{name}"))?;
        fs::write(format!("/proc/{pid}/{name}"), same_ids(&map))
    };
    write("uid_map").and_then(|()| write("gid_map")).tried(|| "map ids for an emulator")?;
    link::send(peer, &(), &[]).tried(|| "tell of the mapped ids")
}

/// The emulator as a file, to be opened where the host's files are in sight.
pub(super) fn open(emulator: &Emulator) -> Outcome<OwnedFd> {
    rustix::fs::open(&emulator.program, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .tried(|| format!("open emulator {}", emulator.program.display()))
}

/// The container's part, once it stands in its root. `program` is the emulator, opened on the host.
pub(super) fn install(emulator: &Emulator, program: &OwnedFd, monitor: &OwnedFd) -> Outcome<()> {
    let files = surround(emulator, program, monitor)?;
    // It holds as long as it is mounted.
    let action = || format!("mount {PLACE}");
    let top = open_dir(std::path::Path::new("/")).tried(action)?;
    let place = open_in(top.as_fd(), PLACE, OFlags::PATH | OFlags::DIRECTORY).tried(action)?;
    sys::set_mount_attributes(files.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(), false).tried(action)?;
    put(&files, &place).tried(action)
}

/// Puts this process into a user namespace of its own, in which the emulator is registered for as long as the mount that is returned is held.
pub(super) fn surround(emulator: &Emulator, program: &OwnedFd, monitor: &OwnedFd) -> Outcome<OwnedFd> {
    sys::new_user_namespace().tried(|| "create a user namespace for an emulator")?;
    link::send(monitor, &(), &[]).tried(|| "ask for mapped ids")?;
    let answer = link::receive::<()>(monitor, &mut Vec::new()).tried(|| "wait for mapped ids")?;
    if answer.is_none() {
        return Err(Failed::plain("failed to map ids for an emulator"));
    }
    let files = mount().map_err(|errno| {
        let why = match errno {
            Errno::PERM => ": the kernel must be 6.7 or newer; with an older one register emulators with: apt-get install qemu-user-static binfmt-support",
            Errno::NODEV => ": the kernel has no binfmt_misc: modprobe binfmt_misc",
            _ => "",
        };
        let mut failed = Failed::new("mount binfmt_misc for an emulator", errno);
        failed.message += why;
        failed
    })?;
    let action = || format!("register {}", emulator.program.display());
    let line = emulator.registration(&format!("/proc/self/fd/{}", program.as_raw_fd()));
    let line = line.ok_or_else(|| Failed::plain(format!("no emulator is known for {}", emulator.architecture)))?;
    let register = rustix::fs::openat(&files, "register", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).tried(action)?;
    rustix::io::write(&register, line.as_bytes()).tried(action)?;
    // Still open for writing it would keep the mount from becoming read-only.
    drop(register);
    Ok(files)
}

fn mount() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("binfmt_misc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let hidden = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, hidden)
}
