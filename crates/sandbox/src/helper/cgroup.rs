//! One cgroup per container, in whatever hierarchies this machine has: v1, v2, or v1 with an empty v2 beside it.
//!
//! Moving a process between cgroups makes the kernel wait for all CPUs, which takes longer than all the rest. So in v2 the process is born
//! in its cgroup, and in v1 it moves itself through `tasks`, while it has one thread, which takes no such wait.
mod limits;

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};

use limits::{v1_controllers, v1_settings, v2_settings};

use super::{Failed, Outcome, Try as _, devices};
use crate::container::{DeviceNode, Resources};
use crate::link::Spec;
use crate::sys;

/// The v1 devices cgroup that all sandboxed containers share: it holds rules and no account of anybody.
const SHARED_DEVICES: &str = "buildkit/kiln-sandbox";

const ACCOUNTS_V1: [(&str, &[&str]); 3] = [
    ("memory", &["memory.stat", "memory.max_usage_in_bytes"]),
    ("cpuacct", &["cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"]),
    ("pids", &["pids.current"]),
];
const ACCOUNTS_V2: [&str; 10] = [
    "cpu.stat",
    "cpu.pressure",
    "memory.stat",
    "memory.pressure",
    "memory.events",
    "memory.peak",
    "memory.swap.current",
    "io.stat",
    "io.pressure",
    "pids.current",
];

/// In a cgroup that was delegated: where its processes go, since one with children that have limits has no processes.
const OWN: &str = "kiln-daemon";
const NOT_DELEGATED: &str =
    "; limits on steps need cgroup v2 and a cgroup of the user's, as from: systemd-run --user --scope -p Delegate=yes kiln daemon";

/// What the machine has.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    layout: Layout,
    /// v2: decides over devices.
    program: Option<OwnedFd>,
    /// v1: where sandboxed containers' devices are decided.
    devices: Option<PathBuf>,
    pub hierarchies: Vec<Hierarchy>,
}

/// Which devices a container may use.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Openness<'a> {
    All,
    /// Those of every container, and these.
    Few(&'a [DeviceNode]),
}

impl<'a> Openness<'a> {
    pub fn of(spec: &'a Spec) -> Self {
        if spec.insecure { Self::All } else { Self::Few(&spec.devices) }
    }
}

#[derive(Debug, Default)]
enum Layout {
    V1,
    V2 {
        /// What we may make cgroups in: all of it, or the one that was delegated to the daemon's user.
        top: PathBuf,
    },
    #[default]
    None,
}

/// A mounted v1 hierarchy, or the v2 one.
#[derive(Debug, Clone)]
pub(crate) struct Hierarchy {
    pub mount: PathBuf,
    /// As in the mount options, such as `cpu,cpuacct` or `name=systemd`; empty for v2.
    pub controllers: Vec<String>,
    /// Where the daemon is in it.
    pub own: String,
}

/// A container's cgroup. Removed by [`Group::remove`], once it is empty.
#[derive(Debug, Default)]
pub(crate) struct Group {
    dirs: Vec<PathBuf>,
    tasks: Vec<PathBuf>,
    born_in: Option<OwnedFd>,
    memory: Option<(PathBuf, &'static str)>,
    /// Whether the kernel keeps the container from opening devices it makes.
    pub guards_devices: bool,
    /// For each v1 hierarchy that it is in: the mount point and the directory.
    pub places: Vec<(PathBuf, PathBuf)>,
}

impl Cgroups {
    /// Looks at the mounts of this process. What cannot be used is left out.
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let hierarchies = hierarchies(&mounts, &own);
        let v2 = hierarchies.iter().find(|h| h.controllers.is_empty() && h.mount == Path::new("/sys/fs/cgroup"));
        let layout = match v2 {
            Some(h) => Layout::V2 { top: delegated(h).unwrap_or_else(|| h.mount.clone()) },
            None if hierarchies.iter().any(|h| !h.controllers.is_empty()) => Layout::V1,
            None => Layout::None,
        };
        let mut cgroups = Self { layout, program: None, devices: None, hierarchies };
        match cgroups.layout {
            Layout::V2 { .. } => cgroups.program = devices::program(&[]).ok(),
            Layout::V1 => cgroups.devices = cgroups.shared_devices().ok().flatten(),
            Layout::None => {}
        }
        cgroups
    }

    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2 { .. })
    }

    fn shared_devices(&self) -> io::Result<Option<PathBuf>> {
        let Some(hierarchy) = self.with("devices") else { return Ok(None) };
        let dir = hierarchy.mount.join(SHARED_DEVICES);
        make_all(&dir)?;
        // Of daemons that start at once one makes the rules, and no container of another runs while they are not whole.
        let _held = fs::File::open(&dir).and_then(|held| held.lock().map(|()| held));
        devices::restrict(&dir, &[])?;
        Ok(Some(dir))
    }

    fn with(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == controller))
    }

    /// Makes the cgroup `path`. Where cgroups cannot be written the container runs without, unless it asks for limits.
    pub fn create(&self, path: &str, resources: &Resources, openness: Openness<'_>, warn: &mut dyn FnMut(String)) -> Outcome<Group> {
        let path = path.trim_start_matches('/');
        let outcome = match &self.layout {
            Layout::V1 => self.create_v1(path, resources, openness),
            Layout::V2 { top } => self.create_v2(top, path, resources, openness),
            Layout::None => Err(Failed::plain("no cgroup hierarchy is mounted")),
        };
        match outcome {
            Err(failed) if *resources == Resources::default() => {
                let help = if crate::rootless::in_user_namespace() { NOT_DELEGATED } else { "" };
                warn(format!("steps run without a cgroup: {}{help}", failed.into_failure().message));
                Ok(Group::default())
            }
            outcome => outcome,
        }
    }

    /// Where a cgroup of any maker counts its OOM kills, and under which name.
    pub fn memory_events(&self, path: &str) -> Option<(PathBuf, &'static str)> {
        let path = path.trim_start_matches('/');
        match &self.layout {
            Layout::V1 => Some((self.with("memory")?.mount.join(path).join("memory.oom_control"), "oom_kill ")),
            Layout::V2 { top } => Some((top.join(path).join("memory.events"), "oom_kill ")),
            Layout::None => None,
        }
    }

    /// The files in which a cgroup of any maker counts what it uses, as far as it does.
    pub fn accounts(&self, path: &str) -> Vec<PathBuf> {
        let path = path.trim_start_matches('/');
        match &self.layout {
            Layout::V1 => {
                let files = |controller: &str, names: &'static [&str]| {
                    let dir = self.with(controller).map(|hierarchy| hierarchy.mount.join(path));
                    names.iter().filter_map(move |name| Some(dir.as_ref()?.join(name))).collect::<Vec<_>>()
                };
                ACCOUNTS_V1.iter().flat_map(|(controller, names)| files(controller, names)).collect()
            }
            Layout::V2 { top } => ACCOUNTS_V2.iter().map(|name| top.join(path).join(name)).collect(),
            Layout::None => Vec::new(),
        }
    }

    /// Removes the cgroup `path` from all hierarchies.
    pub fn remove_all(&self, path: &str) {
        let path = path.trim_start_matches('/');
        if let Layout::V2 { top } = &self.layout {
            remove(&top.join(path));
        }
        for hierarchy in &self.hierarchies {
            remove(&hierarchy.mount.join(path));
        }
    }

    fn create_v1(&self, path: &str, resources: &Resources, openness: Openness<'_>) -> Outcome<Group> {
        let mut group = Group::default();
        for controller in v1_controllers(resources) {
            let Some(hierarchy) = self.with(controller) else {
                if v1_settings(controller, resources).is_empty() {
                    continue;
                }
                return Err(Failed::plain(format!("a limit needs the cgroup controller {controller}, which is not mounted")));
            };
            let dir = hierarchy.mount.join(path);
            if !group.dirs.contains(&dir) {
                if let Some(parent) = dir.parent() {
                    make_all(parent).tried(|| format!("create cgroup {}", parent.display()))?;
                }
                make(&dir).tried(|| format!("create cgroup {}", dir.display()))?;
                group.dirs.push(dir.clone());
                group.tasks.push(dir.join("tasks"));
                group.places.push((hierarchy.mount.clone(), dir.clone()));
            }
            if controller == "cpuset" {
                inherit_cpuset(&dir).tried(|| format!("set up cgroup {}", dir.display()))?;
            }
            for (file, value) in v1_settings(controller, resources) {
                fs::write(dir.join(file), &value).tried(|| format!("set {file} to {value}"))?;
            }
            if controller == "memory" {
                group.memory = Some((dir.join("memory.oom_control"), "oom_kill "));
            }
        }
        match (openness, &self.devices) {
            (Openness::All, _) => self.own_places(path, &mut group),
            (Openness::Few([]), Some(shared)) => {
                group.tasks.push(shared.join("tasks"));
                group.guards_devices = true;
            }
            (Openness::Few(more), Some(_)) => self.own_devices(path, more, &mut group)?,
            (Openness::Few(_), None) => {}
        }
        Ok(group)
    }

    /// Which devices a container may use that somebody else made, with the cgroup `path`.
    pub fn guard_devices(&self, path: &str, more: &[DeviceNode]) -> Outcome<()> {
        let (path, action) = (path.trim_start_matches('/'), || format!("decide over the devices of cgroup {path}"));
        match (&self.layout, self.with("devices")) {
            (Layout::V1, Some(hierarchy)) => devices::restrict(&hierarchy.mount.join(path), more).tried(action),
            (Layout::V2 { .. }, _) => {
                let Some(unified) = self.hierarchies.first() else { return Ok(()) };
                let dir = super::path::open_dir(&unified.mount.join(path)).tried(action)?;
                let program = devices::program(more).tried(action)?;
                // Theirs stays: a device must please both.
                sys::attach_device_program(dir.as_fd(), program.as_fd()).tried(action)
            }
            _ => Ok(()),
        }
    }

    /// A devices cgroup for one container, which may use more than others.
    fn own_devices(&self, path: &str, more: &[DeviceNode], group: &mut Group) -> Outcome<()> {
        let Some(hierarchy) = self.with("devices") else { return Ok(()) };
        let dir = hierarchy.mount.join(path);
        let action = || format!("create cgroup {}", dir.display());
        make_all(&dir).tried(action)?;
        group.dirs.push(dir.clone());
        devices::restrict(&dir, more).tried(action)?;
        group.tasks.push(dir.join("tasks"));
        group.guards_devices = true;
        Ok(())
    }

    /// A directory in each hierarchy: who may write there shall find a place of its own, which goes with it.
    fn own_places(&self, path: &str, group: &mut Group) {
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.mount.join(path);
            if group.dirs.contains(&dir) || make_all(&dir).is_err() {
                continue;
            }
            group.dirs.push(dir.clone());
            let has = |controller: &str| hierarchy.controllers.iter().any(|c| c == controller);
            // Nobody can join a set of no CPUs; in v2 the join would wait for all of them.
            if !hierarchy.controllers.is_empty() && (!has("cpuset") || inherit_cpuset(&dir).is_ok()) {
                group.tasks.push(dir.join("tasks"));
            }
            group.places.push((hierarchy.mount.clone(), dir));
        }
    }

    fn create_v2(&self, top: &Path, path: &str, resources: &Resources, openness: Openness<'_>) -> Outcome<Group> {
        let dir = top.join(path);
        let parent = dir.parent().unwrap_or(top);
        make_all(parent).tried(|| format!("create cgroup {}", parent.display()))?;
        for level in parent.ancestors().take_while(|level| level.starts_with(top)).collect::<Vec<_>>().into_iter().rev() {
            for controller in ["+memory", "+cpu", "+cpuset", "+pids", "+io"] {
                let _ = fs::write(level.join("cgroup.subtree_control"), controller);
            }
        }
        make(&dir).tried(|| format!("create cgroup {}", dir.display()))?;
        let mut group = Group { dirs: vec![dir.clone()], ..Group::default() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, &dir, flags, Mode::empty()).tried(|| format!("open cgroup {}", dir.display()))?;
        let settings = v2_settings(resources);
        for (file, value) in settings {
            fs::write(dir.join(file), &value).tried(|| format!("set {file} to {value}"))?;
        }
        let own = match openness {
            Openness::Few(more) if !more.is_empty() && self.program.is_some() => {
                Some(devices::program(more).tried(|| "load a device program")?)
            }
            _ => None,
        };
        if let (Some(program), Openness::Few(_)) = (own.as_ref().or(self.program.as_ref()), openness) {
            group.guards_devices = sys::attach_device_program(fd.as_fd(), program.as_fd()).is_ok();
        }
        group.memory = Some((dir.join("memory.events"), "oom_kill "));
        group.born_in = Some(fd);
        Ok(group)
    }
}

impl Group {
    /// No cgroup of ours, but somebody else guards devices.
    pub fn guarded() -> Self {
        Self { guards_devices: true, ..Self::default() }
    }

    /// For a process that is about to be cloned.
    pub fn born_in(&self) -> Option<BorrowedFd<'_>> {
        self.born_in.as_ref().map(|fd| fd.as_fd())
    }

    /// For this process, while it has one thread.
    pub fn join(&self) -> Outcome<()> {
        self.tasks.iter().try_for_each(|tasks| fs::write(tasks, "0").tried(|| format!("join cgroup {}", tasks.display())))
    }

    /// Whether the kernel killed a member for want of memory.
    pub fn oom_killed(&self) -> bool {
        self.memory.as_ref().is_some_and(|(file, key)| oom_killed(file, key))
    }

    /// Removes it.
    pub fn remove(self) {
        self.dirs.iter().for_each(|dir| remove(dir));
    }
}

/// For root alone, whatever mask the helper has: who may make cgroups below ours could leave his limits for them.
fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(dir)
}

fn make_all(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).recursive(true).create(dir)
}

pub(super) fn oom_killed(file: &Path, key: &str) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(key)).is_some_and(|count| count.trim() != "0")
}

/// The kernel may take a moment to see that the last process is gone. What the container made inside goes first.
fn remove(dir: &Path) {
    for attempt in 0..200 {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            _ => break,
        }
        if attempt == 0 {
            let children = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
            children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())).for_each(|child| remove(&child.path()));
        }
        std::thread::sleep(Duration::from_millis(1 + attempt / 10));
    }
}

/// The cgroup that we are in, if it is ours to divide while the whole is not. Who is in it moves into a child.
fn delegated(hierarchy: &Hierarchy) -> Option<PathBuf> {
    let writable = |dir: &Path| rustix::fs::access(dir.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok();
    if writable(&hierarchy.mount) {
        return None;
    }
    let mut place = hierarchy.own.trim_matches('/');
    // Of a helper that was here before us.
    place = place.strip_suffix(OWN).map_or(place, |above| above.trim_end_matches('/'));
    let top = hierarchy.mount.join(place);
    if place.is_empty() || !writable(&top) || rustix::fs::access(&top, rustix::fs::Access::WRITE_OK).is_err() {
        return None;
    }
    let own = top.join(OWN);
    let _ = make(&own);
    for pid in fs::read_to_string(top.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = fs::write(own.join("cgroup.procs"), pid);
    }
    Some(top)
}

/// Parses `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn hierarchies(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        const FLAGS: [&str; 8] = ["rw", "ro", "xattr", "clone_children", "noprefix", "favordynmods", "release_agent", "cpuset_v2_mode"];
        let controllers: Vec<String> = match kind {
            "cgroup2" => Vec::new(),
            "cgroup" => {
                options.split(',').filter(|o| !FLAGS.contains(&o.split('=').next().unwrap_or_default())).map(str::to_owned).collect()
            }
            _ => continue,
        };
        let place = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            let same = if controllers.is_empty() { names.is_empty() } else { names.split(',').any(|name| name == controllers[0]) };
            same.then(|| path.to_owned())
        });
        let mount = PathBuf::from(mount.replace("\\040", " "));
        if found.iter().all(|h| h.controllers != controllers) {
            found.push(Hierarchy { mount, controllers, own: place.unwrap_or_else(|| "/".to_owned()) });
        }
    }
    found
}

/// A new v1 cpuset is empty, and takes no process until it is filled; so for all levels above it.
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut empty = Vec::new();
        for level in dir.ancestors() {
            let value = fs::read_to_string(level.join(file))?;
            if !value.trim().is_empty() {
                empty.iter().rev().try_for_each(|level: &&Path| fs::write(level.join(file), value.trim()))?;
                break;
            }
            empty.push(level);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
                      31 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = hierarchies(mounts, "4:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c\n");
        let view: Vec<_> = found.iter().map(|h| (h.controllers.join("+"), h.own.as_str())).collect();
        assert_eq!(view, [("cpu+cpuacct".to_owned(), "/a"), ("name=systemd".to_owned(), "/b"), (String::new(), "/c")]);
    }

    /// Needs root and cgroups that can be written.
    #[test]
    fn what_an_insecure_process_makes_goes_with_it() {
        let cgroups = Cgroups::find();
        let path = format!("/buildkit/unit-nest-{}", std::process::id());
        let group = cgroups.create(&path, &Resources::default(), Openness::All, &mut |warning| panic!("{warning}")).unwrap();
        let dirs = group.dirs.clone();
        assert!(cgroups.is_v2() || dirs.len() > 1, "{dirs:?}");
        dirs.iter().for_each(|dir| fs::create_dir_all(dir.join("made/deep")).unwrap());
        group.remove();
        assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    }

    /// Needs root, and the second version of cgroups mounted somewhere.
    #[test]
    fn in_v2_a_program_guards_devices() {
        let found = Cgroups::find();
        let mount = found.hierarchies.iter().find(|h| h.controllers.is_empty()).expect("cgroup2 is mounted").mount.clone();
        let layout = Layout::V2 { top: mount.clone() };
        let cgroups = Cgroups { layout, program: Some(devices::program(&[]).unwrap()), ..Cgroups::default() };
        let path = format!("/buildkit/unit-{}", std::process::id());
        let mut warnings = Vec::new();
        for insecure in [false, true] {
            let openness = if insecure { Openness::All } else { Openness::Few(&[]) };
            let group = cgroups.create(&path, &Resources::default(), openness, &mut |warning| warnings.push(warning)).unwrap();
            assert!(group.born_in().is_some() && group.guards_devices != insecure);
            let script = format!("echo $$ > {}{path}/cgroup.procs && : < /dev/zero && : < /dev/kmsg", mount.display());
            let allowed = std::process::Command::new("sh").args(["-c", &script]).stderr(std::process::Stdio::null()).status().unwrap();
            assert_eq!(allowed.success(), insecure);
            assert!(!group.oom_killed());
            group.remove();
            assert!(!mount.join(path.trim_start_matches('/')).exists());
        }
        assert_eq!(warnings, [] as [String; 0]);
    }
}
