//! What a container sees of the kernel: `/proc`, `/sys` and its cgroups, and what of them is hidden or frozen.
//!
//! That happens as soon as they are mounted, before anything of the user's is, and within the mount itself, with nothing of the image in the
//! way: a link under a path that is to be masked, or in the place of what masks it, would open what must stay closed.
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::Builder;
use crate::defaults::{MASKED, READONLY};
use crate::helper::mount::{NODEV, NOEXEC, NOSUID, RDONLY, clone, clone_fd, new, put, set};
use crate::helper::path::{is_dir, open_in};
use crate::helper::{Failed, Outcome, Try as _};

const HIDDEN: MountAttrFlags = NOSUID.union(NODEV).union(NOEXEC);
/// What to do where a process may not have a `/proc` of its own.
const NO_PROC: &str = ": parts of this container's own /proc are masked, so the kernel allows no new one; start the daemon with \
    --oci-worker-no-process-sandbox, or its container with --security-opt systempaths=unconfined (procMount: Unmasked in Kubernetes)";

impl Builder<'_> {
    pub(super) fn mount_proc(&mut self, dest: &str) -> Outcome<()> {
        let action = || format!("mount {dest}");
        let mount = if self.spec.host_proc {
            clone(Path::new("/proc"), true).and_then(|proc| set(&proc, HIDDEN, false).map(|()| proc)).tried(action)?
        } else {
            new("proc", &[], HIDDEN).map_err(|errno| {
                let mut failed = Failed::new(action(), errno);
                if errno == Errno::PERM {
                    failed.message += NO_PROC;
                }
                failed
            })?
        };
        self.attach(&mount, dest, false)?;
        self.hide(&mount, "/proc/")
    }

    pub(super) fn mount_sys(&mut self, dest: &str) -> Outcome<()> {
        let attributes = self.of_the_kernel();
        let mount = match new("sysfs", &[], attributes) {
            // Only who owns the network namespace may have a new one.
            Err(Errno::PERM) => clone(Path::new("/sys"), true).and_then(|sys| set(&sys, attributes, true).map(|()| sys)),
            outcome => outcome,
        };
        let mount = mount.tried(|| format!("mount {dest}"))?;
        self.attach(&mount, dest, false)?;
        self.hide(&mount, "/sys/")
    }

    pub(super) fn mount_cgroups(&mut self, dest: &str) -> Outcome<()> {
        let attributes = self.of_the_kernel();
        if !self.cgroups.is_v2() {
            return self.mount_cgroups_v1(dest, attributes);
        }
        match new("cgroup2", &[], attributes) {
            // What /sys shows of it must do.
            Err(Errno::PERM) => Ok(()),
            outcome => {
                let mount = outcome.tried(|| format!("mount {dest}"))?;
                self.attach(&mount, dest, false)
            }
        }
    }

    /// Attributes of mounts through which the kernel is set up.
    fn of_the_kernel(&self) -> MountAttrFlags {
        if self.spec.insecure { HIDDEN } else { HIDDEN | RDONLY }
    }

    /// Every hierarchy's directory of this container, in a tmpfs.
    fn mount_cgroups_v1(&mut self, dest: &str, attributes: MountAttrFlags) -> Outcome<()> {
        let top = new("tmpfs", &[("mode", "755")], NOSUID | NODEV | NOEXEC).tried(|| format!("mount {dest}"))?;
        self.attach(&top, dest, false)?;
        for hierarchy in &self.cgroups.hierarchies {
            let Some(name) = hierarchy.mount.file_name().and_then(|name| name.to_str()) else { continue };
            let place = self.group.places.iter().find(|(mount, _)| *mount == hierarchy.mount).map(|(_, dir)| dir.clone());
            let own = || hierarchy.mount.join(hierarchy.own.trim_start_matches('/'));
            let place = place.unwrap_or_else(own);
            let make = || -> std::io::Result<()> {
                // The daemon may see its hierarchy from the inside.
                let tree = clone(&place, false).or_else(|_| clone(&hierarchy.mount, false))?;
                set(&tree, attributes, false)?;
                rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(0o755))?;
                put(&tree, &rustix::fs::openat(&top, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
                if hierarchy.controllers.len() > 1 {
                    hierarchy.controllers.iter().try_for_each(|controller| rustix::fs::symlinkat(name, &top, controller.as_str()))?;
                }
                Ok(())
            };
            make().tried(|| format!("mount {dest}/{name}"))?;
        }
        if attributes.contains(RDONLY) {
            set(&top, RDONLY, false).tried(|| format!("make {dest} read-only"))?;
        }
        Ok(())
    }

    /// Masks and freezes what a sandboxed process must not see or change of the kernel in `mount`, which begins at `prefix`.
    fn hide(&mut self, mount: &OwnedFd, prefix: &str) -> Outcome<()> {
        if self.spec.insecure {
            return Ok(());
        }
        for path in MASKED {
            let Some(place) = path.strip_prefix(prefix).and_then(|path| open_in(mount.as_fd(), path, OFlags::PATH).ok()) else { continue };
            self.covers.put_over(&place).tried(|| format!("mask {path}"))?;
        }
        for path in READONLY {
            let Some(place) = path.strip_prefix(prefix).and_then(|path| open_in(mount.as_fd(), path, OFlags::PATH).ok()) else { continue };
            let freeze = || -> Result<(), Errno> {
                let tree = clone_fd(place.as_fd())?;
                set(&tree, RDONLY, true)?;
                put(&tree, &place)
            };
            freeze().tried(|| format!("make {path} read-only"))?;
        }
        Ok(())
    }
}

/// What masks: the host's null device, and one empty directory for all, since a file system each would cost more than the mounts.
#[derive(Default)]
pub(super) struct Covers {
    /// In its first place, where the kernel lets it be cloned from.
    directory: Option<OwnedFd>,
}

impl Covers {
    fn put_over(&mut self, place: &OwnedFd) -> Result<(), Errno> {
        if !is_dir(place.as_fd()) {
            return put(&null()?, place);
        }
        if let Some(first) = &self.directory {
            return put(&clone_fd(first.as_fd())?, place);
        }
        let cover = new("tmpfs", &[("mode", "755")], HIDDEN | RDONLY)?;
        put(&cover, place)?;
        self.directory = Some(cover);
        Ok(())
    }
}

/// Not the container's: that one lies where a user may mount something else.
fn null() -> Result<OwnedFd, Errno> {
    let null = clone(Path::new("/dev/null"), false)?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null = FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null { Ok(null) } else { Err(Errno::NODEV) }
}
