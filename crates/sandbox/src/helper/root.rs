//! The container's file system, built in a mount namespace of its own so that the host never sees any of it.
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, StatxFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::cgroup::{Cgroups, Group};
use super::path::{Want, ensure, is_dir, open_dir, open_in};
use super::user::{self, User};
use super::{Failed, Outcome, Try as _, unmapped};
use crate::defaults::{DEV_LINKS, DEV_SIZE, DEVICES, INSECURE_DEVICES, MASKED, READONLY, SPARE_LOOPS};
use crate::link::{Source, Spec, SpecMount};
use crate::sys;

const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
/// What to do where a process may not have a `/proc` of its own.
const NO_PROC: &str = ": parts of this container's own /proc are masked, so the kernel allows no new one; start the daemon with \
    --oci-worker-no-process-sandbox, or its container with --security-opt systempaths=unconfined (procMount: Unmasked in Kubernetes)";
const STRICTATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_STRICTATIME;

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
    memory: Option<OwnedFd>,
    secrets: usize,
}

/// Mounts everything. The caller is in a mount namespace of its own.
pub(crate) fn build(spec: &Spec, blobs: &[u8], cgroups: &Cgroups, group: &Group) -> Outcome<Root> {
    private()?;
    let (mut builder, user) = Builder::new(spec, blobs, cgroups, group)?;
    for (dest, origin) in plan(spec) {
        builder.mount(&dest, &origin)?;
    }
    builder.hide()?;
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
    let memory = new("tmpfs", &[("mode", "700")], NOSUID | NODEV | NOEXEC).tried(|| "mount a tmpfs for the bundle")?;
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
        spec.root.mount_at(&spec.stage_root).map_err(|e| Failed::plain(format!("failed to mount the root: {}", fault::chain(&e))))?.leak();
        let root = open_dir(&spec.stage_root).tried(|| "open the root")?;
        if !spec.insecure && !group.guards_devices {
            set(&root, NODEV, false).tried(|| "forbid devices in the root")?;
        }
        let user = user::find(root.as_fd(), &spec.process.user)?;
        make_cwd(root.as_fd(), &spec.process.cwd, &user)?;
        let root_mount = mount_id(root.as_fd());
        Ok((Self { spec, blobs, cgroups, group, root, root_mount, stubs: Vec::new(), memory: None, secrets: 0 }, user))
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
        Ok(place.fd)
    }

    fn mount(&mut self, dest: &str, origin: &Origin<'_>) -> Outcome<()> {
        let hidden = NOSUID | NODEV | NOEXEC;
        let writable = if self.spec.insecure { hidden } else { hidden | RDONLY };
        let mut proc_advice = false;
        let mount = match origin {
            Origin::Proc if self.spec.host_proc => {
                clone(Path::new("/proc"), true).and_then(|proc| set(&proc, hidden, false).map(|()| proc))
            }
            Origin::Proc => new("proc", &[], hidden).inspect_err(|errno| proc_advice = *errno == Errno::PERM),
            Origin::Dev => return self.mount_dev(dest),
            Origin::Pts => match new("devpts", &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")], NOSUID | NOEXEC) {
                // This user namespace has no group 5.
                Err(Errno::INVAL) => new("devpts", &[("ptmxmode", "0666"), ("mode", "0620")], NOSUID | NOEXEC),
                outcome => outcome,
            },
            Origin::Shm => new("tmpfs", &[("mode", "1777"), ("size", DEV_SIZE)], hidden),
            Origin::Mqueue => new("mqueue", &[], hidden),
            Origin::Sys => match new("sysfs", &[], writable) {
                // Only who owns the network namespace may have a new one.
                Err(Errno::PERM) => clone(Path::new("/sys"), true).and_then(|sys| set(&sys, writable, true).map(|()| sys)),
                outcome => outcome,
            },
            Origin::Cgroup if self.cgroups.is_v2() => match new("cgroup2", &[], writable) {
                // What /sys shows of it must do.
                Err(Errno::PERM) => return Ok(()),
                outcome => outcome,
            },
            Origin::Cgroup => return self.mount_cgroups_v1(dest, writable),
            Origin::File(path) => clone(path, false).and_then(|mount| set(&mount, hidden | RDONLY, false).map(|()| mount)),
            Origin::User(mount) => {
                let tree = self.source(mount).map_err(|mut failed| {
                    failed.message = format!("failed to mount {dest}: {}", failed.message);
                    failed
                })?;
                return self.attach(&tree, dest, true);
            }
        };
        let mount = mount.tried(|| format!("mount {dest}")).map_err(|mut failed| {
            if proc_advice {
                failed.message += NO_PROC;
            }
            failed
        })?;
        self.attach(&mount, dest, matches!(origin, Origin::File(_)))
    }

    /// Puts a detached mount in its place, which is made if it is missing.
    fn attach(&mut self, mount: &OwnedFd, dest: &str, stub: bool) -> Outcome<()> {
        let place = if stub {
            self.make_place(dest, want(mount))?
        } else {
            ensure(self.root.as_fd(), Path::new(dest), want(mount)).tried(|| format!("create mount point {dest}"))?.fd
        };
        put(mount, &place).tried(|| format!("mount {dest}"))
    }

    /// What the user wants mounted, attached to nothing.
    fn source(&mut self, mount: &SpecMount) -> Outcome<OwnedFd> {
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
                new("tmpfs", &options, NOSUID).tried(|| "create a tmpfs")?
            }
            Source::Secret { offset, len, uid, gid, mode } => {
                let data = self.blobs.get(*offset..offset + len).ok_or_else(|| Failed::plain("a secret is not in the message"))?;
                self.secret(data, *uid, *gid, *mode)?
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
                other.mount_at(stage).map_err(|e| Failed::plain(fault::chain(&e)))?.leak();
                (stage, false)
            }
        };
        let part = open_dir(place).and_then(|top| open_in(top.as_fd(), selector, OFlags::PATH)).tried(|| {
            let shown = if selector.is_empty() { place.display().to_string() } else { selector.to_owned() };
            format!("open {shown}")
        })?;
        let tree = clone_fd(part.as_fd()).tried(|| format!("open {selector}"))?;
        if readonly {
            set(&tree, RDONLY, false).tried(|| "make it read-only")?;
        }
        Ok(tree)
    }

    fn secret(&mut self, data: &[u8], uid: u32, gid: u32, mode: u32) -> Outcome<OwnedFd> {
        use std::io::Write as _;
        let memory = match self.memory.take() {
            Some(memory) => memory,
            None => {
                let memory = new("tmpfs", &[("mode", "700")], NOSUID | NODEV | NOEXEC).tried(|| "create a tmpfs for secrets")?;
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

    fn mount_dev(&mut self, dest: &str) -> Outcome<()> {
        let bind = !self.spec.insecure && !self.group.guards_devices;
        let attributes = if bind { NOSUID | NODEV | STRICTATIME } else { NOSUID | STRICTATIME };
        let dev = new("tmpfs", &[("mode", "755"), ("size", DEV_SIZE)], attributes).tried(|| "mount /dev")?;
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

    /// Masks and freezes what a sandboxed process must not see or change of the kernel.
    fn hide(&self) -> Outcome<()> {
        if self.spec.insecure {
            return Ok(());
        }
        let mut empty: Option<OwnedFd> = None;
        let null = open_in(self.root.as_fd(), "/dev/null", OFlags::PATH);
        for path in MASKED {
            let Ok(place) = open_in(self.root.as_fd(), path, OFlags::PATH) else { continue };
            let mut mask = || -> Result<(), Errno> {
                if !is_dir(place.as_fd()) {
                    let null = null.as_ref().map_err(|errno| *errno)?;
                    return put(&clone_fd(null.as_fd())?, &place);
                }
                // One empty directory for all: a file system each would cost more than the mounts.
                let cover = match &empty {
                    Some(first) => clone_fd(first.as_fd())?,
                    None => new("tmpfs", &[("mode", "755")], NOSUID | NODEV | NOEXEC | RDONLY)?,
                };
                put(&cover, &place)?;
                empty.get_or_insert(cover);
                Ok(())
            };
            mask().tried(|| format!("mask {path}"))?;
        }
        for path in READONLY {
            let Ok(place) = open_in(self.root.as_fd(), path, OFlags::PATH) else { continue };
            let freeze = || -> std::io::Result<()> {
                let tree = clone_fd(place.as_fd())?;
                set(&tree, RDONLY, true)?;
                Ok(put(&tree, &place)?)
            };
            freeze().tried(|| format!("make {path} read-only"))?;
        }
        Ok(())
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

/// A new file system, attached to nothing.
fn new(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let _ = rustix::mount::fsconfig_set_string(context.as_fd(), "source", kind);
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn want(mount: &OwnedFd) -> Want {
    if is_dir(mount.as_fd()) { Want::Directory } else { Want::File }
}

/// Another mount of what `path` names, with what is mounted below if `recursive`.
fn clone(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(CWD, path, flags)
}

pub(super) fn clone_fd(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(fd, "", flags)
}

/// Attaches a detached mount.
pub(super) fn put(mount: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}

fn set(mount: &OwnedFd, attributes: MountAttrFlags, recursive: bool) -> Result<(), Errno> {
    sys::set_mount_attributes(mount.as_fd(), attributes.bits().into(), recursive)
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

/// Tells mounts apart; 0 where the kernel does not say.
fn mount_id(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map_or(0, |stat| stat.stx_mnt_id)
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
