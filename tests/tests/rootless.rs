//! The daemon of an ordinary user: with subordinate ids, without, under other runtimes, and in a container with the default privileges of a
//! container engine.
//!
//! Needs root, to become such a user and to give it a name and subordinate ids, which it has in a mount namespace of the test only.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use testkit::{PATIENCE, User, wait_until};

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
            "./kiln daemon --root {root}-{runtime} --addr unix://{root}.sock --oci-worker-binary {binary} --idle-exit 120 2> {root}.log & \
             until ./kiln --addr unix://{root}.sock debug workers > /dev/null 2>&1 || ! kill -0 $!; do :; done; \
             ./kiln --addr unix://{root}.sock build --progress=plain --build-context tools=/bin context; code=$?; \
             zombies() {{ cat /proc/[0-9]*/status 2> /dev/null | awk -v daemon=$1 '/^State:/ {{ state = $2 }} /^PPid:/ && $2 == daemon && state == \"Z\" {{ print \"zombie\" }}'; }}; \
             looks=0; while [ -n \"$(zombies $!)\" ] && [ $looks -lt 1000 ]; do looks=$((looks + 1)); done; zombies $!; \
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
        "./kiln daemon --root {root} --addr unix://{root}.sock --idle-exit 120 2> {root}.log & \
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
        wait_until(&format!("removing {}", dir.display()), PATIENCE, || fs::remove_dir(&dir).ok());
    }
}

/// A container as engines make them for a job of a CI runner: their default capabilities and mounts, no seccomp filter.
#[derive(Clone, Copy)]
struct Engine {
    user: u32,
    /// newuidmap and newgidmap are there, as images for this purpose have them, and ids for them.
    subordinate: bool,
    /// In a user namespace that the engine made.
    own_users: bool,
    /// Parts of /proc and /sys are covered, unless the engine was told not to.
    masked: bool,
}

const OF_A_USER: Engine = Engine { user: User::ID, subordinate: true, own_users: false, masked: true };
const OF_ROOT: Engine = Engine { user: 0, subordinate: false, ..OF_A_USER };

/// A script that builds with a daemon of these flags.
fn with_daemon(home: &Home, flags: &str, build: &str) -> String {
    format!(
        "./kiln daemon --root {root} --addr unix://{root}.sock --idle-exit 120 {flags} 2> {root}.log & \
         until ./kiln --addr unix://{root}.sock debug workers > /dev/null 2>&1 || ! kill -0 $!; do :; done; \
         ./kiln --addr unix://{root}.sock build --progress=plain --build-context tools=/bin {build}; code=$?; \
         kill $!; wait $!; cat {root}.log; exit $code",
        root = home.path("root").display()
    )
}

#[test]
fn in_a_container_of_an_engine_the_flag_that_helps_is_named() {
    let home = Home::new(&IDENTITIES.replace("test $(ls -d /proc/[0-9]* | wc -l) -lt 5", "true"));
    let refused = in_container(&home, OF_A_USER, &with_daemon(&home, "", "context"));
    assert!(!refused.0 && refused.1.contains("--oci-worker-no-process-sandbox"), "{}", refused.1);
    let build = with_daemon(&home, "--oci-worker-no-process-sandbox", "-o type=oci,dest=out.tar context");
    let built = in_container(&home, OF_A_USER, &build);
    assert!(built.0 && built.1.contains("ids 0 2"), "{}", built.1);
    assert!(home.path("out.tar").is_file());
}

/// What a CI job does, as whoever its image makes it.
#[test]
fn in_a_container_of_an_engine_the_example_is_built_and_pushed() {
    let registry = testkit::Registry::start();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples/hello");
    let flag = "--oci-worker-no-process-sandbox";
    let engines = [
        ("user", OF_A_USER, flag),
        ("user-alone", Engine { subordinate: false, ..OF_A_USER }, flag),
        ("user-unmasked", Engine { masked: false, ..OF_A_USER }, ""),
        ("root", OF_ROOT, flag),
        ("root-unmasked", Engine { masked: false, ..OF_ROOT }, ""),
        ("root-of-own-users", Engine { own_users: true, ..OF_ROOT }, flag),
        ("user-of-own-users", Engine { user: 1000, subordinate: false, own_users: true, masked: true }, flag),
    ];
    for (name, engine, flags) in engines {
        let home = Home::new(&fs::read_to_string(example.join("Dockerfile")).unwrap());
        fs::copy(example.join("greet.sh"), home.path("context/greet.sh")).unwrap();
        let image = format!("{}/{name}:latest", registry.host());
        let build = with_daemon(&home, flags, &format!("-o type=image,name={image},push=true context"));
        let (succeeded, said) = in_container(&home, engine, &build);
        assert!(succeeded, "{name}: {said}");
        assert!(!registry.manifest(name, "latest")["layers"].as_array().unwrap().is_empty());
    }
}

/// Whether the script succeeds in a container of runc, and what it prints.
fn in_container(home: &Home, engine: Engine, script: &str) -> (bool, String) {
    let bundle = tempfile::tempdir().unwrap();
    let root = bundle.path().join("rootfs");
    fs::create_dir(&root).unwrap();
    let bind = |from: &Path, to: &str, mode: &str| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", mode]});
    let virtual_fs = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let work: String = home.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let capabilities = match engine.user {
        0 => json!({"bounding": ENGINE_CAPABILITIES, "permitted": ENGINE_CAPABILITIES, "effective": ENGINE_CAPABILITIES}),
        _ => json!({"bounding": ENGINE_CAPABILITIES}),
    };
    let mut config: Value = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": engine.user, "gid": engine.user},
            "args": ["sh", "-c", script],
            "env": [format!("PATH={}", std::env::var("PATH").unwrap()), format!("HOME={work}")],
            "cwd": work,
            "capabilities": capabilities,
        },
        "root": {"path": "rootfs"},
        "mounts": [
            bind(Path::new("/etc"), "/etc", "ro"),
            virtual_fs("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            virtual_fs("/dev", "tmpfs", &["nosuid", "mode=755"]),
            virtual_fs("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            // The registry is on the host's loopback interface.
            bind(Path::new("/sys"), "/sys", "ro"),
            virtual_fs("/tmp", "tmpfs", &["mode=1777"]),
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
    });
    if engine.masked {
        config["linux"]["maskedPaths"] =
            json!(["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"]);
        config["linux"]["readonlyPaths"] = json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    }
    // Whoever it is, the home is theirs.
    if engine.own_users {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let (others, count) = if engine.user == 0 { (1, 65_536) } else { (0, engine.user) };
        let map = json!([
            {"containerID": engine.user, "hostID": User::ID, "size": 1},
            {"containerID": others, "hostID": 200_000, "size": count},
        ]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        // The engine's images are shifted like that.
        let top = if engine.user == 0 { User::ID } else { 200_000 };
        std::os::unix::fs::chown(&root, Some(top), Some(top)).unwrap();
    }
    let mounts = config["mounts"].as_array_mut().unwrap();
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["usr", "bin", "sbin", "lib", "lib64"].map(|name| Path::new("/").join(name)) {
        match fs::read_link(&name) {
            Ok(target) => std::os::unix::fs::symlink(target, root.join(name.strip_prefix("/").unwrap())).unwrap(),
            Err(_) if name.is_dir() => mounts.insert(0, bind(&name, name.to_str().unwrap(), "ro")),
            Err(_) => {}
        }
    }
    mounts.push(bind(&home.path(""), &work, "rw"));
    if engine.subordinate {
        mounts.extend([
            bind(&home.path("ids"), "/etc/subuid", "ro"),
            bind(&home.path("ids"), "/etc/subgid", "ro"),
            bind(&home.path("passwd"), "/etc/passwd", "ro"),
        ]);
        // With file capabilities in the place of the setuid bit.
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
    }
    fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let name = format!("kiln-test-{}-{}", std::process::id(), bundle.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
    let output = Command::new("runc").args(["run", "--bundle"]).arg(bundle.path()).arg(&name).stdin(std::process::Stdio::null()).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.success(), text)
}
