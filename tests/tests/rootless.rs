//! The daemon of an ordinary user: with subordinate ids, without, under other runtimes, and in a container with the default privileges of a
//! container engine.
//!
//! Needs root, to become such a user and to give it a name and subordinate ids, which it has in a mount namespace of the test only.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{User, wait_until};

/// Capabilities that container engines give by default.
const ENGINE_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// An ordinary user with a Dockerfile at home.
struct Home {
    user: User,
}

impl Home {
    fn new(dockerfile: &str) -> Self {
        let user = User::new();
        fs::create_dir(user.path("context")).unwrap();
        fs::write(user.path("context/Dockerfile"), dockerfile).unwrap();
        user.own(&user.path("context"));
        user.own(&user.path("context/Dockerfile"));
        Self { user }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.user.path(name)
    }

    /// The script as the user, with subordinate ids or without any.
    fn run(&self, subordinate: bool, script: &str) -> Output {
        self.user.command(subordinate).args(["sh", "-c", script]).output().unwrap()
    }

    /// What a build with these options prints of its steps' output, and the files of its image's last layers.
    fn build(&self, subordinate: bool, options: &str) -> String {
        let script = format!(
            "./kiln --root {root} build --no-cache --progress=plain --build-context tools=/bin {options} -o type=oci,dest=out.tar context",
            root = self.path("root").display()
        );
        let output = self.run(subordinate, &script);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}\n{}", fs::read_to_string(self.path("root/daemon.log")).unwrap_or_default());
        text
    }
}

const IDENTITIES: &str = "FROM scratch
COPY --from=tools busybox /bin/busybox
SHELL [\"/bin/busybox\", \"sh\", \"-c\"]
RUN /bin/busybox --install -s /bin; mkdir /etc; echo 'web:x:101:102::/:/bin/sh' > /etc/passwd
RUN echo \"ids $(id -u) $(cat /proc/self/uid_map | wc -l)\"; echo x > /dev/null; ls /sys > /dev/null; test $(ls -d /proc/[0-9]* | wc -l) -lt 5
RUN --network=none echo \"interfaces $(ls /sys/class/net | wc -l)\"
";

#[test]
fn with_subordinate_ids_steps_are_any_user() {
    let home = Home::new(&format!(
        "{IDENTITIES}RUN chown 101:102 /etc/passwd\nRUN --mount=type=secret,id=s,uid=7 echo \"secret $(stat -c %u /run/secrets/s)\"\nUSER web\n\
         RUN echo \"then $(id -u):$(id -g) $(stat -c %u:%g /etc/passwd)\"\n"
    ));
    let text = home.build(true, "--secret id=s,src=context/Dockerfile");
    for said in ["ids 0 2", "interfaces 1", "secret 7", "then 101:102 101:102"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    // What it left is the user's to remove, subordinate ids included.
    let log = fs::read_to_string(home.path("root/daemon.log")).unwrap();
    assert!(!log.contains("mapped alone"), "{log}");
}

#[test]
fn without_any_there_is_one_user_and_what_to_do_is_said() {
    let home = Home::new(IDENTITIES);
    let text = home.build(false, "");
    assert!(text.contains("ids 0 1"), "{text}");
    let log = fs::read_to_string(home.path("root/daemon.log")).unwrap();
    assert!(log.contains("/etc/subuid"), "{log}");
    fs::write(home.path("context/Dockerfile"), format!("{IDENTITIES}USER 101\nRUN id\n")).unwrap();
    let script = format!("./kiln --root {} build --build-context tools=/bin context", home.path("root").display());
    let output = home.run(false, &script);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("become group 102, which"), "{text}");
    assert!(text.contains("/etc/subuid"), "{text}");
}

#[test]
fn other_runtimes_are_rootless_too() {
    let home = Home::new(IDENTITIES);
    for runtime in ["runc", "crun"] {
        let path = std::env::split_paths(&std::env::var_os("PATH").unwrap()).map(|dir| dir.join(runtime)).find(|path| path.is_file());
        let binary = path.unwrap_or_else(|| panic!("{runtime} is not installed"));
        let script = format!(
            "./kiln daemon --root {root}-{runtime} --addr unix://{root}.sock --oci-worker-binary {binary} --idle-exit 1 2> {root}.log & \
             until ./kiln --addr unix://{root}.sock debug workers > /dev/null 2>&1 || ! kill -0 $!; do :; done; \
             ./kiln --addr unix://{root}.sock build --progress=plain --build-context tools=/bin context; code=$?; \
             cat /proc/[0-9]*/status 2> /dev/null | awk -v daemon=$! '/^State:/ {{ state = $2 }} /^PPid:/ && $2 == daemon && state == \"Z\" {{ print \"zombie\" }}'; \
             kill $!; wait $!; cat {root}.log; exit $code",
            root = home.path(runtime).display(),
            binary = binary.display(),
        );
        let output = home.run(true, &script);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("ids 0 2") && !text.contains("zombie"), "{runtime}: {text}");
    }
}

/// As systemd's user services with `Delegate=yes`: a cgroup of version 2 that is the user's.
#[test]
fn steps_have_cgroups_where_one_is_delegated() {
    let home = Home::new(&format!("{IDENTITIES}RUN cat /proc/self/cgroup; ls -d /sys/fs/cgroup/cgroup.procs\n"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let unified =
        mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted").split(' ').nth(4).unwrap().to_owned();
    let name = format!("kiln-test-delegated-{}", std::process::id());
    let own = Path::new(&unified).join(&name);
    fs::create_dir(&own).unwrap();
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        home.user.own(&own.join(file));
    }
    let script = format!(
        "./kiln daemon --root {root} --addr unix://{root}.sock --idle-exit 1 2> {root}.log & \
         until ./kiln --addr unix://{root}.sock debug workers > /dev/null 2>&1 || ! kill -0 $!; do :; done; \
         ./kiln --addr unix://{root}.sock build --progress=plain --build-context tools=/bin context; code=$?; kill $!; wait $!; exit $code",
        root = home.path("root").display()
    );
    // The machine's cgroups as they would be without the first version.
    let privileged =
        format!("echo $$ > {}/cgroup.procs; umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec \"$@\"", own.display());
    let user = home.user.command(true);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &privileged, "sh"]).arg(user.get_program()).args(user.get_args());
    command.args(["sh", "-c", &script]).current_dir(home.path("")).env("HOME", home.path("")).env("USER", "somebody");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let log = fs::read_to_string(home.path("root.log")).unwrap_or_default();
    assert!(output.status.success() && !log.contains("without a cgroup"), "{text}\n{log}");
    assert!(text.contains(" 0::/\n"), "a step's own cgroup is the root that it sees: {text}");
    // The steps' cgroups were made there, and are gone; then nothing is in the way of removing the rest, once the daemon's helpers have followed it.
    for dir in [own.join("buildkit"), own.join("kiln-daemon"), own] {
        wait_until(&format!("removing {}", dir.display()), Duration::from_secs(10), || fs::remove_dir(&dir).ok());
    }
}

/// As a job of a CI runner: an ordinary user, an engine's default capabilities and mounts, seccomp unconfined.
#[test]
fn in_a_container_of_an_engine_the_flag_that_helps_is_named() {
    let home = Home::new(&IDENTITIES.replace("test $(ls -d /proc/[0-9]* | wc -l) -lt 5", "true"));
    let root = home.path("root");
    let daemon = |flags: &str| {
        format!(
            "./kiln daemon --root {root} --addr unix://{root}.sock --idle-exit 1 {flags} 2> {root}.log & \
             until ./kiln --addr unix://{root}.sock debug workers > /dev/null 2>&1 || ! kill -0 $!; do :; done; \
             ./kiln --addr unix://{root}.sock build --progress=plain --build-context tools=/bin -o type=oci,dest=out.tar context; code=$?; \
             kill $!; wait $!; cat {root}.log; exit $code",
            root = root.display()
        )
    };
    let refused = in_container(&home, &daemon(""));
    assert!(!refused.0 && refused.1.contains("--oci-worker-no-process-sandbox"), "{}", refused.1);
    let built = in_container(&home, &daemon("--oci-worker-no-process-sandbox"));
    assert!(built.0 && built.1.contains("ids 0 2"), "{}", built.1);
    assert!(home.path("out.tar").is_file());
}

/// Whether the script succeeds in a container of runc, and what it prints.
fn in_container(home: &Home, script: &str) -> (bool, String) {
    let bundle = tempfile::tempdir().unwrap();
    let bind = |from: &Path, to: &str, mode: &str| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", mode]});
    let virtual_fs = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let work: String = home.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let config: Value = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": User::ID, "gid": User::ID},
            "args": ["sh", "-c", script],
            "env": [format!("PATH={}", std::env::var("PATH").unwrap()), format!("HOME={work}"), "USER=somebody"],
            "cwd": work,
            "capabilities": {"bounding": ENGINE_CAPABILITIES},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            virtual_fs("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            virtual_fs("/dev", "tmpfs", &["nosuid", "mode=755"]),
            virtual_fs("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            virtual_fs("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            bind(&home.path("ids"), "/etc/subuid", "ro"),
            bind(&home.path("ids"), "/etc/subgid", "ro"),
            bind(&home.path("passwd"), "/etc/passwd", "ro"),
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    let mut config = config;
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.insert(0, bind(Path::new("/etc"), "/etc", "ro"));
    let root = bundle.path().join("rootfs");
    fs::create_dir(&root).unwrap();
    for name in ["usr", "bin", "sbin", "lib", "lib64"].map(|name| Path::new("/").join(name)) {
        match fs::read_link(&name) {
            Ok(target) => std::os::unix::fs::symlink(target, root.join(name.strip_prefix("/").unwrap())).unwrap(),
            Err(_) if name.is_dir() => mounts.insert(0, bind(&name, name.to_str().unwrap(), "ro")),
            Err(_) => {}
        }
    }
    mounts.push(bind(&home.path(""), &work, "rw"));
    // As images for this purpose have them: with file capabilities in the place of the setuid bit.
    for (name, capability) in [("newuidmap", 7), ("newgidmap", 6)] {
        let copy = bundle.path().join(name);
        fs::copy(Path::new("/usr/bin").join(name), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        // capabilities(7): revision 2, effective; permitted and inheritable, low and high.
        let words: [u32; 5] = [0x0200_0001, 1 << capability, 0, 0, 0];
        let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        rustix::fs::setxattr(&copy, "security.capability", &value, rustix::fs::XattrFlags::empty()).unwrap();
        mounts.push(bind(&copy, &format!("/usr/bin/{name}"), "ro"));
    }
    fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let name = format!("kiln-test-{}-{}", std::process::id(), bundle.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
    let output = Command::new("runc").args(["run", "--bundle"]).arg(bundle.path()).arg(&name).stdin(std::process::Stdio::null()).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.success(), text)
}
