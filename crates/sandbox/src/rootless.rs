//! How the daemon of an ordinary user, or of a root that may not mount, becomes root of a user namespace of its own.
//!
//! With subordinate ids (`/etc/subuid`, `/etc/subgid`) and the setuid programs of the uidmap package, the namespace has the user as 0 and its
//! subordinate ids from 1 on. Without them it has one id, which is root inside; files that an image gives to others are root's then.
//!
//! Root without CAP_SYS_ADMIN, as in a container of an engine, has all ids there are for itself, and they stay what they are.
//!
//! The process stays the same one: it enters the namespace, a child that stayed outside writes the maps, and the program is executed
//! again, now with all capabilities over what the namespace owns.
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::MountPropagationFlags;
use rustix::process::{WaitId, WaitIdOptions};

use crate::sys;

/// Why a user namespace cannot be had, ending with what to do.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    #[error("cannot create a user namespace ({error}): {advice}")]
    Forbidden { error: io::Error, advice: String },
    #[error("failed to {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Whether this process is in a user namespace that somebody made, and not in the machine's first.
pub fn in_user_namespace() -> bool {
    !is_whole(&fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
}

/// Whether this process may mount, and whatever else a daemon does.
pub fn is_privileged() -> bool {
    let capabilities = rustix::thread::capabilities(None);
    rustix::process::geteuid().is_root() && capabilities.is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// Whether the user namespace of this process has one user only, as [`enter`] makes it without subordinate ids.
pub fn has_one_id() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2) == Some("1") && map.lines().count() == 1
}

/// A map of a namespace's ids to themselves, made of its own map. The machine's whole range is in two parts: in one it would tell whoever
/// looks that this is no user namespace.
pub(crate) fn same_ids(map: &str) -> String {
    let lines = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|fields| fields.len() == 3);
    lines
        .map(|fields| match fields[..] {
            ["0", _, "4294967295"] => "0 0 1\n1 1 4294967294\n".to_owned(),
            _ => format!("{} {} {}\n", fields[0], fields[0], fields[2]),
        })
        .collect()
}

fn is_whole(map: &str) -> bool {
    map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"] || map.is_empty()
}

/// Executes this program again as root of a new user namespace, with the same arguments and the environment variables `set` besides its
/// own. Returns only on failure. The process must have one thread.
pub fn enter(args: &[OsString], set: &[(&str, OsString)]) -> Result<Infallible, RootlessError> {
    let io = |action| move |source| RootlessError::Io { action, source };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let maps = if uid == 0 { Some(Maps::Same) } else { Ranges::of_user(uid, gid).map(Maps::Subordinate) };
    let mapper = maps.as_ref().map(Mapper::start).transpose().map_err(io("start a process that maps ids"))?;
    sys::new_user_namespace().map_err(|error| RootlessError::Forbidden { advice: advice(&error, Path::new("/proc")), error })?;
    if let Err(why) = mapper.map_or_else(|| Err(missing_ranges(uid)), Mapper::finish) {
        eprintln!("warning: {why}; all files and processes of steps belong to one user, and steps cannot become another");
        map_one(uid, gid).map_err(io("map the user's id"))?;
    }
    // Mounts made outside show up inside, and not the other way round.
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(|errno| io("detach from the host's mounts")(errno.into()))?;
    let mut command = Command::new("/proc/self/exe");
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    for (name, value) in set {
        command.env(name, value);
    }
    Err(io("execute this program again")(command.exec()))
}

fn map_one(uid: u32, gid: u32) -> io::Result<()> {
    let unmapped = |file: &str| fs::read_to_string(file).is_ok_and(|map| map.trim().is_empty());
    if unmapped("/proc/self/uid_map") {
        fs::write("/proc/self/uid_map", format!("0 {uid} 1\n"))?;
    }
    if unmapped("/proc/self/gid_map") {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1\n"))?;
    }
    Ok(())
}

/// What the namespace's ids are outside.
enum Maps {
    Subordinate(Ranges),
    /// What they are inside. For root, who may have that.
    Same,
}

/// Ids for an ordinary user.
#[derive(Debug, PartialEq, Eq)]
struct Ranges {
    users: Vec<[u32; 3]>,
    groups: Vec<[u32; 3]>,
    programs: [PathBuf; 2],
}

impl Ranges {
    /// `None` where the user has none, or nothing may map them.
    fn of_user(uid: u32, gid: u32) -> Option<Self> {
        // Without a name newuidmap does nothing for a user.
        let login = login(uid, &fs::read_to_string("/etc/passwd").unwrap_or_default());
        let ranges = |file| subordinate(&fs::read_to_string(file).unwrap_or_default(), uid, login.as_deref());
        let programs = [find_program("newuidmap")?, find_program("newgidmap")?];
        let (users, groups) = (ranges("/etc/subuid"), ranges("/etc/subgid"));
        if users.is_empty() || groups.is_empty() {
            return None;
        }
        Some(Self { users: id_map(uid, &users), groups: id_map(gid, &groups), programs })
    }
}

fn missing_ranges(uid: u32) -> String {
    let why = match find_program("newuidmap") {
        None => "newuidmap is not installed (Debian's package uidmap)",
        Some(_) => "it has no subordinate ids (a line USER:100000:65536 in both /etc/subuid and /etc/subgid)",
    };
    format!("user {uid} is mapped alone, since {why}")
}

/// The user's own id becomes 0, and its subordinate ranges follow from 1 on.
fn id_map(own: u32, ranges: &[(u32, u32)]) -> Vec<[u32; 3]> {
    let mut next = 1u32;
    let mut map = vec![[0, own, 1]];
    for (first, count) in ranges {
        map.push([next, *first, *count]);
        next = next.saturating_add(*count);
    }
    map
}

/// Parses subuid(5): `user:first:count`, by name or number.
fn subordinate(text: &str, uid: u32, login: Option<&str>) -> Vec<(u32, u32)> {
    let lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let own = lines.filter(|fields| fields.len() == 3 && (Some(fields[0]) == login || fields[0].parse() == Ok(uid)));
    own.filter_map(|fields| Some((fields[1].trim().parse().ok()?, fields[2].trim().parse().ok()?)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn login(uid: u32, passwd: &str) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// In the places where a distribution puts it: it is a setuid program, so not just anywhere.
fn find_program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/sbin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// A child that stays outside of the namespace, where setuid programs work.
struct Mapper {
    process: sys::Child,
    go: fs::File,
    answer: fs::File,
}

impl Mapper {
    fn start(maps: &Maps) -> io::Result<Self> {
        let ((wait, go), (answer, say)) = (pipe()?, pipe()?);
        let own = rustix::process::getpid().as_raw_nonzero().get();
        if let Some(process) = sys::clone_process(0, None, false)? {
            return Ok(Self { process, go, answer });
        }
        drop((go, answer));
        let outcome = map_from_outside(own, maps, wait);
        let _ = { say }.write_all(outcome.err().unwrap_or_default().as_bytes());
        std::process::exit(0)
    }

    /// Lets it write the maps, and reaps it: the program that is executed next knows nothing of this child. Says why the maps could not be
    /// written.
    fn finish(mut self) -> Result<(), String> {
        let mut said = String::new();
        let told = self.go.write_all(b"!").and_then(|()| self.answer.read_to_string(&mut said));
        drop(self.go);
        let ended = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED));
        told.and(ended.map(drop).map_err(io::Error::from)).map_err(|e| e.to_string())?;
        if said.is_empty() { Ok(()) } else { Err(said) }
    }
}

fn pipe() -> io::Result<(fs::File, fs::File)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((read.into(), write.into()))
}

fn map_from_outside(pid: i32, maps: &Maps, mut wait: fs::File) -> Result<(), String> {
    if wait.read(&mut [0]).map_err(|e| e.to_string())? == 0 {
        // It did not come to that.
        return Ok(());
    }
    let ranges = match maps {
        Maps::Subordinate(ranges) => ranges,
        Maps::Same => return map_same(pid),
    };
    for (program, map) in ranges.programs.iter().zip([&ranges.users, &ranges.groups]) {
        let numbers = map.iter().flatten().map(ToString::to_string);
        let output = Command::new(program).arg(pid.to_string()).args(numbers).stdin(Stdio::null()).output();
        let output = output.map_err(|e| format!("{} cannot be run: {e}", program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let hint = no_new_privileges(Path::new("/proc")).unwrap_or_else(|| without_admin(&said));
            return Err(format!("{} failed: {}{hint}", program.display(), said.trim()));
        }
    }
    Ok(())
}

fn map_same(pid: i32) -> Result<(), String> {
    for name in ["uid_map", "gid_map"] {
        let own = fs::read_to_string(format!("/proc/self/{name}"));
        own.and_then(|own| fs::write(format!("/proc/{pid}/{name}"), same_ids(&own))).map_err(|error| {
            format!(
                "root's {name} cannot be written ({error}); it takes CAP_SETUID, CAP_SETGID and CAP_SETFCAP, which engines give unless told not to"
            )
        })?;
    }
    Ok(())
}

fn no_new_privileges(proc: &Path) -> Option<&'static str> {
    (status(proc, "NoNewPrivs:")? == "1").then_some(
        " (setuid programs do not work here: the process has no_new_privs set; allowPrivilegeEscalation: true in Kubernetes lifts that)",
    )
}

/// A setuid mapper writes as root, who needs CAP_SYS_ADMIN for it, which containers do not have. One with file capabilities does not.
fn without_admin(said: &str) -> &'static str {
    if said.contains("Operation not permitted") {
        " (in a container without CAP_SYS_ADMIN give both programs file capabilities: chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap, \
         setcap cap_setuid=ep /usr/bin/newuidmap, setcap cap_setgid=ep /usr/bin/newgidmap)"
    } else {
        ""
    }
}

fn status(proc: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(proc.join("self/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

/// The setting that most likely forbids it, and the way to change it.
fn advice(error: &io::Error, proc: &Path) -> String {
    let setting = |path: &str| fs::read_to_string(proc.join("sys").join(path)).ok().map(|value| value.trim().to_owned());
    if setting("user/max_user_namespaces").as_deref() == Some("0") || error.raw_os_error() == Some(libc::ENOSPC) {
        return "the limit on user namespaces is reached: sysctl -w user.max_user_namespaces=28633".to_owned();
    }
    if setting("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return "the kernel keeps them from users: sysctl -w kernel.unprivileged_userns_clone=1".to_owned();
    }
    if setting("kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return "AppArmor keeps them from programs without a profile: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give \
                this program a profile with the rule \"userns,\""
            .to_owned();
    }
    if status(proc, "Seccomp:").as_deref() == Some("2") {
        return "a seccomp filter forbids it: run the container with --security-opt seccomp=unconfined --security-opt \
                apparmor=unconfined (in Kubernetes: seccompProfile and appArmorProfile of type Unconfined)"
            .to_owned();
    }
    if error.raw_os_error() == Some(libc::EINVAL) || !proc.join("self/ns/user").exists() {
        return "this kernel is built without them (CONFIG_USER_NS); run the daemon as root".to_owned();
    }
    "something on this machine forbids it (an AppArmor or SELinux policy, or a chroot); run the daemon as root, or under rootlesskit"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_found_by_name_and_number() {
        let text = "# comment\nother:1:2\nbob:100000:65536\n1000:300000:10\nbob:bad:1\nbob:5:0\n";
        assert_eq!(subordinate(text, 1000, Some("bob")), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(subordinate(text, 1001, None), []);
        assert_eq!(login(1000, "root:x:0:0::/:/bin/sh\nbob:x:1000:7::/:/bin/sh\n").as_deref(), Some("bob"));
        assert_eq!(login(1, ""), None);
    }

    #[test]
    fn the_user_is_root_and_the_rest_follows() {
        assert_eq!(id_map(1000, &[(100_000, 65_536), (300_000, 10)]), [[0, 1000, 1], [1, 100_000, 65_536], [65_537, 300_000, 10]]);
    }

    #[test]
    fn ids_may_stay_what_they_are() {
        assert_eq!(same_ids("         0          0 4294967295\n"), "0 0 1\n1 1 4294967294\n");
        assert_eq!(same_ids("         0       1000          1\n         1     100000      65536\n"), "0 0 1\n1 1 65536\n");
        assert!(!is_whole(&same_ids("0 0 4294967295")));
    }

    #[test]
    fn the_whole_range_is_no_namespace() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0       1000          1\n"));
        assert!(!is_whole("         0       1000          1\n         1     100000      65536\n"));
    }

    #[test]
    fn advice_names_the_setting() {
        let proc = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = proc.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let denied = || advice(&io::Error::from_raw_os_error(libc::EPERM), proc.path());
        put("self/ns/user", "");
        assert!(denied().contains("rootlesskit"), "{}", denied());
        put("self/status", "Name:\tx\nSeccomp:\t2\n");
        assert!(denied().contains("seccomp=unconfined"), "{}", denied());
        put("sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
        assert!(denied().contains("apparmor_restrict_unprivileged_userns=0"), "{}", denied());
        put("sys/kernel/unprivileged_userns_clone", "0\n");
        assert!(denied().contains("unprivileged_userns_clone=1"), "{}", denied());
        put("sys/user/max_user_namespaces", "0\n");
        assert!(denied().contains("max_user_namespaces=28633"), "{}", denied());
        put("sys/user/max_user_namespaces", "100\n");
        let full = advice(&io::Error::from_raw_os_error(libc::ENOSPC), proc.path());
        assert!(full.contains("max_user_namespaces"), "{full}");
    }
}
