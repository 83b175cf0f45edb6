//! The container's file system, built in a mount namespace of its own so that the host never sees any of it.
mod dev;
mod kernel;
mod sources;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};

use super::cgroup::{Cgroups, Group};
use super::mount::{NODEV, NOEXEC, NOSUID, RDONLY, clone, mount_id, new, put, set};
use super::path::{Want, ensure, is_dir, open_dir, open_in};
use super::user::{self, User};
use super::{Outcome, Try as _, confine};
use crate::defaults::DEV_SIZE;
use crate::link::{Spec, SpecMount};

pub(crate) use dev::loop_devices;

/// A root with everything mounted below it, not yet entered.
pub(crate) struct Root {
    pub fd: OwnedFd,
    pub user: User,
    /// Mount points that were made for the user's mounts, to be removed if still empty; children before parents.
    pub stubs: Vec<PathBuf>,
}

/// Where a mount of a container comes from.
enum Origin<'a> {
    Proc,
    Dev,
    Pts,
    Shm,
    Mqueue,
    Sys,
    Cgroup,
    /// Of ours: resolv.conf, hosts.
    File(&'a Path),
    User(&'a SpecMount),
}

struct Builder<'a> {
    spec: &'a Spec,
    blobs: &'a [u8],
    cgroups: &'a Cgroups,
    group: &'a Group,
    root: OwnedFd,
    root_mount: u64,
    stubs: Vec<PathBuf>,
    /// Places that were made in the root for the default mounts.
    made: Vec<PathBuf>,
    memory: Option<OwnedFd>,
    secrets: usize,
    covers: kernel::Covers,
}

/// Mounts everything. The caller is in a mount namespace of its own.
pub(crate) fn build(spec: &Spec, blobs: &[u8], cgroups: &Cgroups, group: &Group) -> Outcome<Root> {
    private()?;
    let (mut builder, user) = Builder::new(spec, blobs, cgroups, group)?;
    for (dest, origin) in plan(spec) {
        builder.mount(&dest, &origin)?;
    }
    builder.add_devices()?;
    if spec.root_readonly {
        set(&builder.root, RDONLY, false).tried(|| "make the root read-only")?;
    }
    let (fd, stubs) = builder.finish();
    Ok(Root { fd, user, stubs })
}

/// A root and the sources of the user's mounts, where an OCI runtime finds them.
pub(crate) struct Staged {
    pub user: User,
    pub stubs: Vec<PathBuf>,
    /// Destination, source, whether read-only.
    pub sources: Vec<(String, PathBuf, bool)>,
}

/// Mounts the root on the stage and everything else below `bundle`, in this process's own mount namespace.
pub(crate) fn stage(spec: &Spec, blobs: &[u8], bundle: &Path, cgroups: &Cgroups) -> Outcome<Staged> {
    private()?;
    // Some runtimes refuse to work with both versions of cgroups in sight. All that counts is in the first then.
    for unified in cgroups.hierarchies.iter().filter(|h| h.controllers.is_empty() && !cgroups.is_v2()) {
        if rustix::mount::unmount(&unified.mount, UnmountFlags::DETACH).is_err() {
            // In a user namespace what came from outside can be covered only.
            let _ = new("tmpfs", &[], NOSUID | NODEV | NOEXEC).and_then(|cover| put(&cover, &open_dir(&unified.mount)?));
        }
    }
    let open = |path: &Path| open_dir(path).tried(|| format!("open {}", path.display()));
    // The runtime must see itself in the pid namespace that it is in.
    let proc = new("proc", &[], NOSUID | NODEV | NOEXEC).tried(|| "mount /proc")?;
    put(&proc, &open(Path::new("/proc"))?).tried(|| "mount /proc")?;
    let mut options = vec![("mode", "700")];
    options.extend(spec.labels.mount.as_deref().map(|label| ("context", label)));
    let memory = new("tmpfs", &options, NOSUID | NODEV | NOEXEC).tried(|| "mount a tmpfs for the bundle")?;
    put(&memory, &open(bundle)?).tried(|| "mount a tmpfs for the bundle")?;
    let (cgroups, group) = (Cgroups::default(), Group::guarded());
    let (mut builder, user) = Builder::new(spec, blobs, &cgroups, &group)?;
    let mut sources: Vec<(String, PathBuf, bool)> = Vec::new();
    for path in ["/etc/resolv.conf", "/etc/hosts"] {
        builder.make_place(path, Want::File)?;
    }
    for (number, mount) in spec.mounts.iter().enumerate() {
        let (tree, dest) = (builder.source(mount)?, clean(&mount.dest));
        let (place, want) = (bundle.join(format!("mount-{number}")), want(&tree));
        let bundle = open(bundle)?;
        let name = format!("/mount-{number}");
        let made = ensure(bundle.as_fd(), Path::new(&name), want).tried(|| format!("create {}", place.display()))?;
        put(&tree, &made.fd).tried(|| format!("mount {}", place.display()))?;
        builder.make_place(&dest, want)?;
        sources.retain(|(earlier, ..)| *earlier != dest);
        sources.push((dest, place, mount.readonly));
    }
    Ok(Staged { user, stubs: builder.finish().1, sources })
}

/// Makes `root` the root of this process and drops the host's.
pub(crate) fn enter(root: BorrowedFd<'_>) -> Outcome<()> {
    rustix::process::fchdir(root).tried(|| "enter the root")?;
    rustix::process::pivot_root(".", ".").tried(|| "make the root the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).tried(|| "leave the host's root")?;
    rustix::process::chdir("/").tried(|| "enter the root")
}

/// No mount made here shows anywhere else.
pub(crate) fn private() -> Outcome<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).tried(|| "detach from the host's mounts")
}

/// Default mounts, then the user's; of two with one destination the later takes the earlier's place.
fn plan(spec: &Spec) -> Vec<(String, Origin<'_>)> {
    let mut plan: Vec<(String, Origin<'_>)> = [
        ("/proc", Origin::Proc),
        ("/dev", Origin::Dev),
        ("/dev/pts", Origin::Pts),
        ("/dev/shm", Origin::Shm),
        ("/dev/mqueue", Origin::Mqueue),
        ("/sys", Origin::Sys),
        ("/etc/resolv.conf", Origin::File(&spec.resolv)),
        ("/etc/hosts", Origin::File(&spec.hosts)),
        ("/sys/fs/cgroup", Origin::Cgroup),
    ]
    .into_iter()
    .map(|(dest, origin)| (dest.to_owned(), origin))
    .collect();
    for mount in &spec.mounts {
        let dest = clean(&mount.dest);
        match plan.iter_mut().find(|(planned, _)| *planned == dest) {
            Some(planned) => planned.1 = Origin::User(mount),
            None => plan.push((dest, Origin::User(mount))),
        }
    }
    plan
}

/// Absolute, without `.`, `..` or doubled slashes; for comparison only.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

impl<'a> Builder<'a> {
    /// Mounts the root, and makes its user's working directory in it.
    fn new(spec: &'a Spec, blobs: &'a [u8], cgroups: &'a Cgroups, group: &'a Group) -> Outcome<(Self, User)> {
        confine::mount(&spec.root, &spec.stage_root, spec.labels.mount.as_deref()).map_err(|mut failed| {
            failed.message = format!("failed to mount the root: {}", failed.message);
            failed
        })?;
        let root = open_dir(&spec.stage_root).tried(|| "open the root")?;
        if !spec.insecure && !group.guards_devices {
            set(&root, NODEV, false).tried(|| "forbid devices in the root")?;
        }
        let user = user::find(root.as_fd(), &spec.process.user)?.in_groups(&spec.process.groups);
        make_cwd(root.as_fd(), &spec.process.cwd, &user)?;
        let root_mount = mount_id(root.as_fd());
        Ok((
            Self {
                spec,
                blobs,
                cgroups,
                group,
                root,
                root_mount,
                stubs: Vec::new(),
                made: Vec::new(),
                memory: None,
                secrets: 0,
                covers: kernel::Covers::default(),
            },
            user,
        ))
    }

    /// The root, and the mount points that were made, children before parents.
    fn finish(mut self) -> (OwnedFd, Vec<PathBuf>) {
        self.stubs.reverse();
        (self.root, self.stubs)
    }

    /// A mount point of the user, which is reported if it has to be made in the root.
    fn make_place(&mut self, dest: &str, want: Want) -> Outcome<OwnedFd> {
        let place = ensure(self.root.as_fd(), Path::new(dest), want).tried(|| format!("create mount point {dest}"))?;
        if !place.created.is_empty() && mount_id(place.fd.as_fd()) == self.root_mount {
            let reported = if self.spec.recursive_stubs { 0 } else { place.created.len() - 1 };
            self.stubs.extend_from_slice(&place.created[reported..]);
        }
        if self.spec.recursive_stubs {
            // A default mount hides that its place is one of the parents that were missing.
            self.stubs.extend(self.made.extract_if(.., |made| Path::new(dest).starts_with(made)));
        }
        Ok(place.fd)
    }

    fn mount(&mut self, dest: &str, origin: &Origin<'_>) -> Outcome<()> {
        let hidden = NOSUID | NODEV | NOEXEC;
        let mount = match origin {
            Origin::Proc => return self.mount_proc(dest),
            Origin::Sys => return self.mount_sys(dest),
            Origin::Cgroup => return self.mount_cgroups(dest),
            Origin::Dev => return self.mount_dev(dest),
            Origin::Pts => match self.labelled("devpts", &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")], NOSUID | NOEXEC) {
                // This user namespace has no group 5.
                Err(Errno::INVAL) => self.labelled("devpts", &[("ptmxmode", "0666"), ("mode", "0620")], NOSUID | NOEXEC),
                outcome => outcome,
            },
            Origin::Shm => self.labelled("tmpfs", &[("mode", "1777"), ("size", DEV_SIZE)], hidden),
            Origin::Mqueue => new("mqueue", &[], hidden).and_then(|mount| {
                // It takes no label when it is mounted.
                self.spec.labels.mount.as_deref().map_or(Ok(()), |label| confine::label(&mount, label)).map(|()| mount)
            }),
            // Not with a label of the host's.
            Origin::File(path) if self.spec.labels.mount.is_some() => {
                let data = std::fs::read(path).tried(|| format!("read {}", path.display()))?;
                let mount = self.in_memory(&data, 0, 0, 0o644)?;
                set(&mount, hidden | RDONLY, false).map(|()| mount)
            }
            Origin::File(path) => clone(path, false).and_then(|mount| set(&mount, hidden | RDONLY, false).map(|()| mount)),
            Origin::User(mount) => {
                let tree = self.source(mount).map_err(|mut failed| {
                    failed.message = format!("failed to mount {dest}: {}", failed.message);
                    failed
                })?;
                return self.attach(&tree, dest, true);
            }
        };
        let mount = mount.tried(|| format!("mount {dest}"))?;
        self.attach(&mount, dest, matches!(origin, Origin::File(_)))
    }

    /// A new file system with the container's label, attached to nothing.
    fn labelled(&self, kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
        let label = self.spec.labels.mount.as_deref().map(|label| ("context", label));
        let options: Vec<(&str, &str)> = options.iter().copied().chain(label).collect();
        new(kind, &options, attributes)
    }

    /// Puts a detached mount in its place, which is made if it is missing.
    fn attach(&mut self, mount: &OwnedFd, dest: &str, stub: bool) -> Outcome<()> {
        let place = if stub {
            self.make_place(dest, want(mount))?
        } else {
            let place = ensure(self.root.as_fd(), Path::new(dest), want(mount)).tried(|| format!("create mount point {dest}"))?;
            self.made.extend(place.created);
            place.fd
        };
        put(mount, &place).tried(|| format!("mount {dest}"))
    }
}

fn want(mount: &OwnedFd) -> Want {
    if is_dir(mount.as_fd()) { Want::Directory } else { Want::File }
}

/// Makes the working directory in the root itself, for the user.
fn make_cwd(root: BorrowedFd<'_>, cwd: &str, user: &User) -> Outcome<()> {
    if cwd.is_empty() || open_in(root, cwd, OFlags::PATH).is_ok() {
        return Ok(());
    }
    let action = || format!("create working directory {cwd}");
    let made = ensure(root, Path::new(cwd), Want::Directory).tried(action)?;
    for path in &made.created {
        let dir = open_in(root, path, OFlags::RDONLY | OFlags::DIRECTORY).tried(action)?;
        rustix::fs::fchown(&dir, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid))).tried(action)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn paths_are_compared_clean() {
        assert_eq!(clean("etc//hosts/"), "/etc/hosts");
        assert_eq!(clean("/a/../../b/./c"), "/b/c");
        assert_eq!(clean(""), "/");
    }
}
