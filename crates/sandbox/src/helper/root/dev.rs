//! `/dev`: a tmpfs with the few devices that every container has.
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::Builder;
use crate::defaults::{DEV_LINKS, DEV_SIZE, DEVICES, INSECURE_DEVICES, SPARE_LOOPS};
use crate::helper::mount::{NODEV, NOEXEC, NOSUID, STRICTATIME, clone, clone_fd, new, put};
use crate::helper::path::{open_dir, open_in};
use crate::helper::{Outcome, Try as _};

impl Builder<'_> {
    pub(super) fn mount_dev(&mut self, dest: &str) -> Outcome<()> {
        let bind = !self.spec.insecure && !self.group.guards_devices;
        let attributes = if bind { NOSUID | NODEV | STRICTATIME } else { NOSUID | STRICTATIME };
        let dev = self.labelled("tmpfs", &[("mode", "755"), ("size", DEV_SIZE)], attributes).tried(|| "mount /dev")?;
        for (target, name) in DEV_LINKS.map(|(name, target)| (target, name)) {
            rustix::fs::symlinkat(target, &dev, name).tried(|| format!("create /dev/{name}"))?;
        }
        for name in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).tried(|| format!("create /dev/{name}"))?;
        }
        self.attach(&dev, dest, false)?;
        for (name, major, minor) in DEVICES {
            device(&dev, name, FileType::CharacterDevice, major, minor, bind).tried(|| format!("create /dev/{name}"))?;
        }
        if self.spec.insecure {
            self.insecure_devices(&dev);
        }
        Ok(())
    }

    /// Devices that this container alone has. Each is made in a place of its own, and mounted where it belongs, which may be anywhere.
    pub(super) fn add_devices(&mut self) -> Outcome<()> {
        let mut made: Option<OwnedFd> = None;
        for (number, node) in self.spec.devices.iter().enumerate() {
            let action = || format!("add device {}", node.path);
            let place = match &made {
                Some(place) => place,
                None => made.insert(self.place_for_devices().tried(action)?),
            };
            let name = number.to_string();
            let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
            let device = rustix::fs::makedev(node.major, node.minor);
            let tree = match rustix::fs::mknodat(place, name.as_str(), kind, Mode::from_raw_mode(node.mode), device) {
                Ok(()) => {
                    let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
                    rustix::fs::chownat(place, name.as_str(), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                        .and_then(|()| open_in(place.as_fd(), &name, OFlags::PATH))
                        .and_then(|file| clone_fd(file.as_fd()))
                }
                Err(Errno::PERM) => clone(&node.host, false),
                Err(errno) => Err(errno),
            };
            self.attach(&tree.tried(action)?, &node.path, true)?;
        }
        Ok(())
    }

    fn place_for_devices(&self) -> Result<OwnedFd, Errno> {
        let place = new("tmpfs", &[("mode", "700")], NOSUID | NOEXEC)?;
        put(&place, &open_dir(&self.spec.stage_tree)?)?;
        Ok(place)
    }

    /// What the kernel does not let us make is left out.
    fn insecure_devices(&self, dev: &OwnedFd) {
        let _ = rustix::fs::mkdirat(dev, "net", Mode::from_raw_mode(0o755));
        for (name, major, minor) in INSECURE_DEVICES {
            let _ = device(dev, name, FileType::CharacterDevice, major, minor, false);
        }
        for number in 0..loop_devices() {
            let _ = device(dev, &format!("loop{number}"), FileType::BlockDevice, 7, number, false);
        }
    }
}

/// How many loop devices an insecure container gets: those in use and some.
pub(crate) fn loop_devices() -> u32 {
    let used = std::fs::read_dir("/sys/block").map_or(0, |blocks| {
        let loops = blocks.flatten().filter_map(|block| block.file_name().to_str()?.strip_prefix("loop")?.parse::<u32>().ok());
        loops.filter(|n| Path::new(&format!("/sys/block/loop{n}/loop")).exists()).map(|n| n + 1).max().unwrap_or(0)
    });
    used + SPARE_LOOPS + 1
}

/// A device node, or where we may not make any, the host's.
fn device(dev: &OwnedFd, name: &str, kind: FileType, major: u32, minor: u32, bind: bool) -> Result<(), Errno> {
    if !bind {
        let number = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(dev, name, kind, Mode::from_raw_mode(0o666), number) {
            Err(Errno::PERM) => {}
            outcome => return outcome,
        }
    }
    let host = clone(&Path::new("/dev").join(name), false)?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666))?;
    put(&host, &rustix::fs::openat(dev, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}
