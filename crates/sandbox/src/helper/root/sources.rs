//! What the user wants mounted.
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::MountAttrFlags;

use super::Builder;
use crate::helper::mount::{NODEV, NOEXEC, NOSUID, RDONLY, clone, clone_fd, put, set};
use crate::helper::path::{open_dir, open_in};
use crate::helper::{Failed, Outcome, Try as _, confine, unmapped};
use crate::link::{Source, SpecMount};

impl Builder<'_> {
    /// What the user wants mounted, attached to nothing.
    pub(super) fn source(&mut self, mount: &SpecMount) -> Outcome<OwnedFd> {
        let tree = match &mount.source {
            Source::Tree { spec, selector } => self.tree(spec, selector)?,
            Source::Bind { path } => clone(path, true).tried(|| format!("open {}", path.display()))?,
            Source::Tmpfs { size } => {
                let mut options = Vec::new();
                let size = size.map(|size| size.to_string());
                options.extend(size.as_deref().map(|size| ("size", size)));
                // An existing directory keeps its mode.
                let mode = open_in(self.root.as_fd(), &mount.dest, OFlags::PATH | OFlags::DIRECTORY)
                    .and_then(rustix::fs::fstat)
                    .map(|stat| format!("{:o}", stat.st_mode & 0o7777));
                options.extend(mode.as_deref().ok().map(|mode| ("mode", mode)));
                self.labelled("tmpfs", &options, NOSUID).tried(|| "create a tmpfs")?
            }
            Source::Secret { offset, len, uid, gid, mode } => {
                let data = self.blobs.get(*offset..offset + len).ok_or_else(|| Failed::plain("a secret is not in the message"))?;
                self.in_memory(data, *uid, *gid, *mode)?
            }
            Source::Socket { path, uid, gid, mode } => {
                rustix::fs::chownat(CWD, path, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)), AtFlags::SYMLINK_NOFOLLOW)
                    .and_then(|()| rustix::fs::chmod(path, Mode::from_raw_mode(*mode)))
                    .map_err(|errno| Failed::new(format!("hand a socket over to {uid}:{gid}{}", unmapped(errno)), errno))?;
                clone(path, false).tried(|| format!("open socket {}", path.display()))?
            }
        };
        let mut attributes = MountAttrFlags::empty();
        attributes.set(RDONLY, mount.readonly);
        attributes.set(NODEV, !self.spec.insecure && !self.group.guards_devices);
        if !attributes.is_empty() {
            set(&tree, attributes, true).tried(|| "restrict it")?;
        }
        Ok(tree)
    }

    fn tree(&self, spec: &snapshot::MountSpec, selector: &str) -> Outcome<OwnedFd> {
        // A bind needs no stage; others are mounted there, one upon the other, and vanish with the host's root.
        let (place, readonly) = match spec {
            snapshot::MountSpec::Bind { path, readonly } => (path.as_path(), *readonly),
            other => {
                let stage = self.spec.stage_tree.as_path();
                confine::mount(other, stage, self.spec.labels.mount.as_deref())?;
                (stage, false)
            }
        };
        let part = open_dir(place).and_then(|top| open_in(top.as_fd(), selector, OFlags::PATH)).tried(|| {
            let shown = if selector.is_empty() { place.display().to_string() } else { selector.to_owned() };
            format!("open {shown}")
        })?;
        if let (snapshot::MountSpec::Bind { .. }, Some(label)) = (spec, &self.spec.labels.mount) {
            confine::share(&part, label).tried(|| "label it")?;
        }
        let tree = clone_fd(part.as_fd()).tried(|| format!("open {selector}"))?;
        if readonly {
            set(&tree, RDONLY, false).tried(|| "make it read-only")?;
        }
        Ok(tree)
    }

    /// A file that exists in memory only.
    pub(super) fn in_memory(&mut self, data: &[u8], uid: u32, gid: u32, mode: u32) -> Outcome<OwnedFd> {
        use std::io::Write as _;
        let memory = match self.memory.take() {
            Some(memory) => memory,
            None => {
                let memory = self.labelled("tmpfs", &[("mode", "700")], NOSUID | NODEV | NOEXEC).tried(|| "create a tmpfs for secrets")?;
                let stage = open_dir(&self.spec.stage_tree).tried(|| "open the stage")?;
                put(&memory, &stage).tried(|| "mount a tmpfs for secrets")?;
                memory
            }
        };
        let name = self.secrets.to_string();
        self.secrets += 1;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::from(rustix::fs::openat(&memory, name.as_str(), flags, Mode::from_raw_mode(0o600))?);
            file.write_all(data)?;
            Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?)
        };
        write().tried(|| "write a secret")?;
        rustix::fs::chownat(&memory, name.as_str(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| Failed::new(format!("give a secret to {uid}:{gid}{}", unmapped(errno)), errno))?;
        let file = open_in(memory.as_fd(), &name, OFlags::PATH).and_then(|file| clone_fd(file.as_fd())).tried(|| "open a secret")?;
        self.memory = Some(memory);
        Ok(file)
    }
}
