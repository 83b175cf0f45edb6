use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

/// How to mount a stack; plain data, so that another process (the sandbox's helper, in its own mount namespace) can do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSpec {
    Overlay {
        /// Topmost first; at least two where there is no upper.
        lowers: Vec<PathBuf>,
        /// The upper and the work directory of a writable mount.
        upper_work: Option<(PathBuf, PathBuf)>,
        userxattr: bool,
    },
    Bind {
        path: PathBuf,
        readonly: bool,
    },
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct MountError {
    action: String,
    #[source]
    source: io::Error,
}

/// A live mount; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    target: Option<PathBuf>,
}

impl MountSpec {
    pub fn is_readonly(&self) -> bool {
        match self {
            Self::Overlay { upper_work, .. } => upper_work.is_none(),
            Self::Bind { readonly, .. } => *readonly,
        }
    }

    /// Mounts on the directory `target` in the caller's mount namespace.
    pub fn mount_at(&self, target: &Path) -> Result<Mounted, MountError> {
        self.mount_labelled(target, None)
    }

    /// The same; to SELinux, everything in it has the label `context`. A bind shows the labels that its files have.
    pub fn mount_labelled(&self, target: &Path, context: Option<&str>) -> Result<Mounted, MountError> {
        match self {
            Self::Overlay { lowers, upper_work, userxattr } => {
                let upper_work = upper_work.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
                Overlay { lowers, upper_work, userxattr: *userxattr, context }.mount(target)?;
                Ok(Mounted { target: Some(target.to_owned()) })
            }
            Self::Bind { path, readonly } => {
                rustix::mount::mount_bind(path, target).map_err(failed(|| format!("bind {} to {}", path.display(), target.display())))?;
                let mounted = Mounted { target: Some(target.to_owned()) };
                if *readonly {
                    // A remount must repeat the flags that the source's own mount locks in a user namespace.
                    let locked = locked_flags(target);
                    rustix::mount::mount_remount(target, MountFlags::BIND | MountFlags::RDONLY | locked, c"")
                        .map_err(failed(|| format!("make {} read-only", target.display())))?;
                }
                Ok(mounted)
            }
        }
    }
}

impl Mounted {
    /// Leaves the mount in place for good (for a helper whose mount namespace goes away with it).
    pub fn leak(mut self) {
        self.target = None;
    }

    /// Unmounts now; on failure falls back to a detached unmount and reports the first error.
    pub fn unmount(mut self) -> Result<(), MountError> {
        let target = self.target.take().expect("a mount is unmounted once");
        release(&target)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(target) = self.target.take()
            && let Err(error) = release(&target)
        {
            tracing::warn!(target = %target.display(), %error, "unmounted lazily");
        }
    }
}

fn release(target: &Path) -> Result<(), MountError> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW).map_err(|errno| {
        // Lazily, so that nothing of the mount stays in sight whoever still has a file open in it.
        let _ = rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        failed(|| format!("unmount {}", target.display()))(errno)
    })
}

/// Tries one overlay mount with upper and work directories under `root`, attached to nothing.
pub(crate) fn probe_overlay(root: &Path, userxattr: bool) -> Result<(), MountError> {
    let probe = root.join("probe");
    let dirs = [probe.join("lower"), probe.join("upper"), probe.join("work")];
    let outcome = (|| {
        for dir in &dirs {
            fs::create_dir_all(dir).map_err(|source| MountError { action: format!("create {}", dir.display()), source })?;
        }
        let [lower, upper, work] = &dirs;
        let overlay = Overlay { lowers: std::slice::from_ref(lower), upper_work: Some((upper, work)), userxattr, context: None };
        if overlay.unless_too_old()?.is_some() {
            return Ok(());
        }
        overlay.classic(lower)?;
        release(lower)
    })();
    let _ = fs::remove_dir_all(&probe);
    outcome
}

/// Neither follow nor make what would tie a tree to others (redirects, metadata-only copies), and keep no state between mounts.
const PLAIN: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

#[derive(Clone, Copy)]
struct Overlay<'a> {
    lowers: &'a [PathBuf],
    upper_work: Option<(&'a Path, &'a Path)>,
    userxattr: bool,
    context: Option<&'a str>,
}

impl Overlay<'_> {
    fn mount(self, target: &Path) -> Result<(), MountError> {
        match self.unless_too_old()? {
            Some(mount) => attach(&mount, target),
            None => self.classic(target),
        }
    }

    /// Attached to nothing; `None` if this takes a newer kernel.
    fn unless_too_old(self) -> Result<Option<OwnedFd>, MountError> {
        // Without `lowerdir+` it would refuse, and say so in its log at each mount.
        if !knows_single_lowers(rustix::system::uname().release()) {
            return Ok(None);
        }
        match self.detached() {
            Ok(mount) => Ok(Some(mount)),
            Err(MountError { source, .. }) if matches!(Errno::from_io_error(&source), Some(Errno::NOSYS | Errno::INVAL)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn detached(self) -> Result<OwnedFd, MountError> {
        let Self { lowers, upper_work, userxattr, context: label } = self;
        let context =
            rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed(|| "open an overlay context".to_owned()))?;
        let context = context.as_fd();
        let set = |key: &'static str, value: &Path| {
            rustix::mount::fsconfig_set_string(context, key, value)
                .map_err(failed(|| format!("set overlay option {key}={}", value.display())))
        };
        let flag =
            |key: &'static str| rustix::mount::fsconfig_set_flag(context, key).map_err(failed(|| format!("set overlay option {key}")));
        for lower in lowers {
            set("lowerdir+", lower)?;
        }
        if let Some((upper, work)) = upper_work {
            clear_volatile_mark(work);
            set("upperdir", upper)?;
            set("workdir", work)?;
            // Without it every unmount syncs the whole disk.
            flag("volatile")?;
        }
        for (key, value) in PLAIN {
            set_unless_unknown(context, key, value)?;
        }
        if userxattr {
            flag("userxattr")?;
        }
        if let Some(label) = label {
            set("context", Path::new(label))?;
        }
        rustix::mount::fsconfig_create(context).map_err(failed(|| format!("create an overlay of {} directories", lowers.len())))?;
        let attributes = if upper_work.is_none() { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed(|| "mount an overlay".to_owned()))
    }

    /// mount(2) takes one page of options. Shared leading directories go into the working directory of a thread of its own.
    fn classic(self, target: &Path) -> Result<(), MountError> {
        let Self { lowers, upper_work, userxattr, context } = self;
        let base = common_parent(lowers);
        let relative: Vec<String> = lowers.iter().map(|path| path.strip_prefix(&base).unwrap_or(path).display().to_string()).collect();
        let mut options = format!("lowerdir={}", relative.join(":"));
        if let Some((upper, work)) = upper_work {
            clear_volatile_mark(work);
            options += &format!(",upperdir={},workdir={},volatile", upper.display(), work.display());
        }
        options += if userxattr { ",userxattr" } else { ",redirect_dir=nofollow,metacopy=off,index=off" };
        if let Some(context) = context {
            // Quoted, for the comma between two categories.
            options += &format!(",context=\"{context}\"");
        }
        let flags = if upper_work.is_none() { MountFlags::RDONLY } else { MountFlags::empty() };
        let options = std::ffi::CString::new(options)
            .map_err(|e| MountError { action: "pass overlay options".to_owned(), source: io::Error::other(e) })?;
        let outcome = std::thread::scope(|scope| {
            let mount = || {
                crate::sys::unshare_fs()?;
                rustix::process::chdir(&base)?;
                rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())
            };
            scope.spawn(mount).join().expect("mounting does not panic")
        });
        outcome.map_err(failed(|| {
            format!("mount an overlay of {} directories at {} with the classic interface", lowers.len(), target.display())
        }))
    }
}

/// Linux 6.5 and later. What a distribution took into an older one is not used.
fn knows_single_lowers(release: &std::ffi::CStr) -> bool {
    let mut numbers =
        release.to_bytes().split(|byte| !byte.is_ascii_digit()).map(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    (numbers.next().flatten(), numbers.next().flatten()) >= (Some(6), Some(5))
}

/// An overlay module built without a feature does not know the option that turns it off.
fn set_unless_unknown(context: std::os::fd::BorrowedFd<'_>, key: &str, value: &str) -> Result<(), MountError> {
    match rustix::mount::fsconfig_set_string(context, key, value) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(failed(|| format!("set overlay option {key}={value}"))(errno)),
    }
}

/// A volatile mount leaves a mark in its work directory that forbids the next mount, for fear of a power cut in between. Drafts do not
/// survive a power cut as committed trees (see the durability watermark), so the mark says nothing here.
fn clear_volatile_mark(work: &Path) {
    let _ = fs::remove_dir_all(work.join("work/incompat"));
}

fn attach(mount: &OwnedFd, target: &Path) -> Result<(), MountError> {
    rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed(|| format!("attach the mount to {}", target.display())))
}

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let mut base = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new("/")).to_owned();
    while !paths.iter().all(|path| path.starts_with(&base)) {
        base.pop();
    }
    base
}

fn locked_flags(target: &Path) -> MountFlags {
    use rustix::fs::StatVfsMountFlags as Vfs;
    let Ok(stat) = rustix::fs::statvfs(target) else { return MountFlags::empty() };
    let pairs = [
        (Vfs::NOSUID, MountFlags::NOSUID),
        (Vfs::NODEV, MountFlags::NODEV),
        (Vfs::NOEXEC, MountFlags::NOEXEC),
        (Vfs::NOATIME, MountFlags::NOATIME),
    ];
    pairs.into_iter().filter(|(vfs, _)| stat.f_flag.contains(*vfs)).fold(MountFlags::empty(), |all, (_, flag)| all | flag)
}

fn failed(action: impl FnOnce() -> String) -> impl FnOnce(Errno) -> MountError {
    move |errno| MountError { action: action(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::knows_single_lowers;

    #[test]
    fn kernels_are_told_apart_by_number() {
        let known = [c"6.5.0", c"6.18.44-fc", c"7.0-rc1"];
        let unknown = [c"6.1.0-56-cloud-amd64", c"5.10.0", c"6.4.16", c"unheard-of"];
        assert!(known.into_iter().all(knows_single_lowers) && !unknown.into_iter().any(knows_single_lowers));
    }
}
