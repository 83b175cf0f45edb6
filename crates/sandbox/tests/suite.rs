//! What every runtime must do alike. Needs root, busybox-static, runc and crun.
#![allow(clippy::unwrap_used, reason = "tests")]
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use bytes::Bytes;
use sandbox::{
    Builtin, Input, Io, Mount, MountSource, Network, OciRuntime, Output, Process, Resources, Rlimit, Runtime, SandboxError, Security,
    Settings,
};
use snapshot::MountSpec;
use task::Cancel;
use world::{World, capture, shell, text};

fn builtin(settings: Settings) -> Result<Box<dyn Runtime>, SandboxError> {
    Ok(Box::new(Builtin::new(settings)?))
}

fn external(name: &str, settings: Settings) -> Result<Box<dyn Runtime>, SandboxError> {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    let binary = places.map(|dir| std::path::Path::new(dir).join(name)).into_iter().find(|path| path.exists());
    Ok(Box::new(OciRuntime::new(binary.unwrap_or_else(|| panic!("{name} is installed")), settings)?))
}

macro_rules! suite {
    ($($test:ident)*) => {
        mod with_builtin {
            $(#[tokio::test] async fn $test() { super::bounded(super::$test(super::World::new(super::builtin))).await })*
        }
        mod with_runc {
            $(#[tokio::test] async fn $test() { super::bounded(super::$test(super::World::new(|s| super::external("runc", s)))).await })*
        }
        mod with_crun {
            $(#[tokio::test] async fn $test() { super::bounded(super::$test(super::World::new(|s| super::external("crun", s)))).await })*
        }
    };
}

async fn bounded(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(90), test).await.expect("the test ends");
}

suite! {
    exit_codes_and_streams
    a_program_that_cannot_run
    users
    an_unknown_user_is_named
    environment_and_directory
    a_missing_directory_is_made_for_the_user
    lockdown
    insecure_is_open
    masked_and_frozen_paths
    devices
    a_device_of_its_own
    hosts_and_hostname
    mounts_of_all_kinds
    mount_points_stay_in_the_root
    stubs_are_reported
    a_readonly_root
    no_network
    limits_of_resources
    out_of_memory_is_told
    rlimits
    much_output
    input_is_streamed
    cancelling_kills_the_tree
    dropping_kills_the_tree
    a_cancelled_run_does_not_start
    a_second_process
    further_processes
    a_terminal
    nothing_is_left
    an_emulator_of_its_own
    escapes_are_refused
}

async fn exit_codes_and_streams(world: World) {
    let outcome = world.sh("echo out; echo err >&2; exit 42").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.exit.code), ("out\n", "err\n", 42));
    assert!(!outcome.exit.oom_killed);
    assert_eq!(world.sh("sh -c 'kill -TERM $$'; exit $?").await.exit.code, 143);
    // The first process of a pid namespace dies of signals from outside only, or of its own fault.
    assert_eq!(world.sh("read x && echo got $x; exit 7").await.exit.code, 7);
    assert_eq!(world.sh("[ $$ = 1 ] && [ $(ps -o pid= | wc -l) -le 4 ]").await.exit.code, 0);
}

async fn a_program_that_cannot_run(world: World) {
    let outcome = world.run(world.container(), Process { env: vec!["PATH=/bin".into()], ..Process::new(["nonesuch"]) }).await;
    assert_eq!(outcome.exit.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("nonesuch") && outcome.stderr.contains("executable file"), "{outcome:?}");
    let outcome = world.run(world.container(), Process::new(["/bin/nonesuch"])).await;
    assert_eq!(outcome.exit.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("no such file") || outcome.stderr.contains("No such file"), "{outcome:?}");
    // Files that the kernel makes nothing of.
    for (name, content) in [("words", &b"just words\n"[..]), ("foreign", &foreign_program(0)), ("script", b"#!/nonexistent\n")] {
        let container = world.container();
        fs::write(world.upper(&container).join(name), content).unwrap();
        fs::set_permissions(world.upper(&container).join(name), fs::Permissions::from_mode(0o755)).unwrap();
        let outcome = world.run(container, Process::new([format!("/{name}")])).await;
        assert_eq!(outcome.exit.code, 1, "{outcome:?}");
        let said = outcome.stderr.to_lowercase();
        assert!(said.contains("exec format error") || said.contains("no such file"), "{name}: {outcome:?}");
    }
    let none = world.try_run(world.container(), Process::default()).await.unwrap_err();
    assert!(matches!(none, SandboxError::Invalid(_)), "{none}");
}

async fn users(world: World) {
    for (user, expected) in [
        ("", "0 0 0"),
        ("root", "0 0 0"),
        ("bob", "1000 1001 1001 29"),
        ("1000", "1000 1001 1001 29"),
        ("bob:audio", "1000 29 29"),
        ("1000:7", "1000 7 7"),
        ("4711", "4711 0 0"),
    ] {
        let process = Process { user: user.into(), ..shell("echo $(id -u) $(id -g) $(id -G)") };
        assert_eq!(world.run(world.container(), process).await.stdout.trim(), expected, "{user}");
    }
    // Output files belong to the user, who may open them again.
    let process = Process { user: "bob".into(), ..shell("echo again > /dev/stdout; grep -h CapEff /proc/self/status") };
    assert_eq!(world.run(world.container(), process).await.stdout, "again\nCapEff:\t0000000000000000\n");
}

async fn an_unknown_user_is_named(world: World) {
    let failure = |user: &str| {
        let process = Process { user: user.into(), ..shell("true") };
        let run = world.try_run(world.container(), process);
        async { run.await.unwrap_err().to_string() }
    };
    assert_eq!(failure("eve").await, "unable to find user eve: no matching entries in passwd file");
    assert_eq!(failure("bob:none").await, "unable to find group none: no matching entries in group file");
}

async fn environment_and_directory(world: World) {
    let process = Process {
        env: vec!["A=1".into(), "B=x y".into(), "PATH=/bin".into()],
        cwd: "/usr/local".into(),
        ..shell("pwd; env | sort; umask")
    };
    let outcome = world.run(world.container(), process).await;
    let lines: Vec<&str> =
        outcome.stdout.lines().filter(|l| !l.starts_with("PWD=") && !l.starts_with("SHLVL=") && !l.starts_with("HOME=")).collect();
    assert_eq!(lines, ["/usr/local", "A=1", "B=x y", "PATH=/bin", "0022"]);
}

async fn a_missing_directory_is_made_for_the_user(world: World) {
    let container = world.container();
    let upper = world.upper(&container);
    let process = Process { cwd: "/srv/a/b".into(), user: "bob".into(), ..shell("pwd; touch mine; stat -c '%u %g %a' . .. /srv") };
    let outcome = world.run(container, process).await;
    assert_eq!(outcome.stdout, "/srv/a/b\n1000 1001 755\n1000 1001 755\n1000 1001 755\n");
    assert!(upper.join("srv/a/b/mine").exists());
}

async fn lockdown(world: World) {
    let outcome = world.sh("grep -E '^(Cap|Seccomp:|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status").await;
    let expected = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n\
                    CapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n";
    let told: String = outcome.stdout.lines().filter(|line| !line.starts_with("Sig")).map(|line| format!("{line}\n")).collect();
    assert_eq!(told, expected);
    assert!(outcome.stdout.contains("SigBlk:\t0000000000000000\n"), "{}", outcome.stdout);
    // No descriptor but the three and the one that lists them.
    assert_eq!(world.sh("ls /proc/self/fd | wc -l").await.stdout, "4\n");
}

async fn insecure_is_open(world: World) {
    let mut container = world.container();
    container.security = Security::Insecure;
    let script = "grep -E '^(CapEff|CapAmb|Seccomp:)' /proc/self/status; ls /dev/fuse /dev/loop0 /dev/net/tun /dev/kmsg; \
                  mkdir /mnt; mount -t tmpfs none /mnt && echo mounted; touch /sys/fs/cgroup/x 2>&1 | grep -c Read-only; test -w /proc/sys/kernel/hostname && echo writable";
    let outcome = world.run(container, shell(script)).await;
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let all = own.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
    let expected =
        format!("CapEff:\t{all}\nCapAmb:\t{all}\nSeccomp:\t0\n/dev/fuse\n/dev/kmsg\n/dev/loop0\n/dev/net/tun\nmounted\n0\nwritable\n");
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
}

async fn masked_and_frozen_paths(world: World) {
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug; do [ ! -e $f ] || wc -c < $f; done; \
                  for d in /proc/acpi /proc/scsi /sys/firmware; do [ ! -e $d ] || ls $d | wc -l; done";
    let outcome = world.sh(script).await;
    assert!(outcome.stdout.lines().all(|count| count == "0"), "{}", outcome.stdout);
    for path in ["/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/irq/default_smp_affinity", "/sys/kernel/mm/ksm/run"] {
        let outcome = world.sh(&format!("[ ! -e {path} ] || echo 1 > {path}")).await;
        assert!(outcome.exit.code == 0 || outcome.stderr.contains("Read-only"), "{path}: {outcome:?}");
    }
    let outcome = world.sh("mkdir /sys/x /sys/fs/cgroup/*/x /sys/fs/cgroup/memory/x; touch /proc/sys/kernel/hostname").await;
    let lines = outcome.stderr.lines().count();
    assert!(lines >= 3 && outcome.stderr.matches("Read-only file system").count() >= lines - 1, "{outcome:?}");
}

async fn devices(world: World) {
    let script = "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done; for l in fd stdin ptmx; do readlink /dev/$l; done; \
                  head -c 4 /dev/zero | wc -c; echo x > /dev/null; stat -c %a /dev/null /dev/shm; [ -d /dev/mqueue ] && ls /dev/pts";
    let outcome = world.sh(script).await;
    assert_eq!(outcome.stdout, "/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n4\n666\n1777\nptmx\n", "{}", outcome.stderr);
    // Layers contain device nodes; what they stand for stays shut.
    let outcome = world.sh("mknod /tmp/disk b 259 0 && mknod /tmp/mem c 1 1 && mknod /tmp/n c 1 3 && echo made; echo ok > /tmp/n && cat /tmp/mem; cat /tmp/disk").await;
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code), ("made\n", 1), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{}", outcome.stderr);
}

async fn a_device_of_its_own(world: World) {
    let node = sandbox::DeviceNode {
        path: "/dev/given/control".into(),
        host: "/dev/loop-control".into(),
        block: false,
        major: 10,
        minor: 237,
        mode: 0o640,
        uid: 1000,
        gid: 44,
        access: "rw".into(),
    };
    let container = sandbox::Container { devices: vec![node], ..world.container() };
    let process = Process {
        groups: vec![44],
        user: "bob".into(),
        ..shell(": <> /dev/given/control && stat -c '%t:%T %a %u %g' /dev/given/control; id -G")
    };
    let outcome = world.run(container, process).await;
    assert_eq!(outcome.stdout, "a:ed 640 1000 44\n1001 29 44\n", "{outcome:?}");
    let outcome = world.sh("mknod /tmp/control c 10 237 && : < /tmp/control").await;
    assert!(outcome.exit.code != 0 && outcome.stderr.contains("not permitted"), "others have it not: {outcome:?}");
}

async fn hosts_and_hostname(world: World) {
    let outcome = world.sh("hostname; cat /etc/hosts; echo x >> /etc/hosts || echo x >> /etc/resolv.conf").await;
    assert_eq!(outcome.stdout, "buildkitsandbox\n127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    assert_eq!(outcome.stderr.matches("Read-only").count(), 2, "{}", outcome.stderr);
    let mut container = world.container();
    container.hostname = "here".into();
    container.hosts.push(("db".into(), "10.1.2.3".parse().unwrap()));
    let outcome = world.run(container, shell("hostname; tail -1 /etc/hosts; head -1 /etc/hosts")).await;
    assert_eq!(outcome.stdout, "here\n10.1.2.3\tdb\n127.0.0.1\tlocalhost here\n");
}

fn mount(dest: &str, source: MountSource, readonly: bool) -> Mount {
    Mount { dest: dest.into(), source, readonly }
}

async fn mounts_of_all_kinds(world: World) {
    let host = world.path("host");
    fs::create_dir_all(host.join("sub/deep")).unwrap();
    fs::write(host.join("sub/file"), "content").unwrap();
    std::os::unix::fs::symlink("/sub", host.join("link")).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(world.path("agent.sock")).unwrap();
    let tree =
        |selector: &str| MountSource::Spec { spec: MountSpec::Bind { path: host.clone(), readonly: false }, selector: selector.into() };
    let secret = MountSource::Secret { data: Bytes::from_static(b"hush"), uid: 1000, gid: 7, mode: 0o400 };
    let mut container = world.container();
    container.mounts = vec![
        mount("/host", MountSource::Bind { path: host.clone() }, false),
        mount("/part", tree("sub"), true),
        mount("/one", tree("/sub/file"), false),
        mount("through", tree("link/deep"), false),
        mount("/layer", MountSource::Spec { spec: world.overlay("second"), selector: String::new() }, false),
        mount("/layer/bin/in", MountSource::Spec { spec: world.overlay("third"), selector: "etc".into() }, true),
        mount("/scratch", MountSource::Tmpfs { size: Some(1 << 20) }, false),
        mount("/run/secrets/a", secret, true),
        mount("/run/secrets/b", MountSource::Secret { data: Bytes::new(), uid: 0, gid: 0, mode: 0o444 }, true),
        mount("/agent", MountSource::Socket { path: world.path("agent.sock"), uid: 1000, gid: 1001, mode: 0o600 }, false),
        mount("/tmp", MountSource::Tmpfs { size: None }, false),
    ];
    let script = "touch /host/new && echo w; touch /part/no; cat /part/file /one; echo; echo more >> /one; [ -d /through ] && touch /through/t && echo t; \
                  touch /layer/made; cat /layer/bin/in/passwd | wc -l; touch /layer/bin/in/no; \
                  dd if=/dev/zero of=/scratch/big bs=1M count=2 2>/dev/null; stat -c %s /scratch/big; \
                  cat /run/secrets/a; echo; stat -c '%u %g %a' /run/secrets/a /agent; wc -c < /run/secrets/b; echo x > /run/secrets/b; \
                  [ -S /agent ] && echo socket; stat -c %a /tmp";
    let outcome = world.run(container, shell(script)).await;
    let expected = "w\ncontentcontent\nt\n2\n1048576\nhush\n1000 7 400\n1000 1001 600\n0\nsocket\n1777\n";
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
    assert_eq!(outcome.stderr.matches("Read-only").count(), 3, "{}", outcome.stderr);
    assert!(host.join("new").exists() && host.join("sub/deep/t").exists() && world.path("upper-second/made").exists());
    assert_eq!(fs::read_to_string(host.join("sub/file")).unwrap(), "contentmore\n");
    drop(listener);
    let mut container = world.container();
    container.mounts = vec![mount("/x", tree("/nonesuch"), false)];
    let error = world.try_run(container, shell("true")).await.unwrap_err().to_string();
    assert!(error.contains("/nonesuch") && error.contains("no such file or directory"), "{error}");
}

async fn mount_points_stay_in_the_root(world: World) {
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    let container = world.container();
    let upper = world.upper(&container);
    // An absolute link, and one that climbs.
    std::os::unix::fs::symlink(&outside, upper.join("abs")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../../..", upper.join("up")).unwrap();
    let container = sandbox::Container {
        mounts: vec![
            mount("/abs/in", MountSource::Tmpfs { size: None }, false),
            mount(&format!("/up{}/climbed", outside.display()), MountSource::Tmpfs { size: None }, false),
        ],
        ..container
    };
    let script = format!("grep -c {} /proc/mounts; [ -d {}/in ] && echo inside", outside.display(), outside.display());
    let outcome = world.run(container, shell(&script)).await;
    assert_eq!(outcome.stdout.lines().last(), Some("inside"), "{outcome:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

async fn stubs_are_reported(world: World) {
    let host = world.path("host");
    fs::create_dir(&host).unwrap();
    fs::write(world.path("file"), "").unwrap();
    let mounts = vec![
        mount("/new/dir", MountSource::Bind { path: host.clone() }, false),
        mount("/new/dir/inner", MountSource::Tmpfs { size: None }, false),
        mount("/tmp/f", MountSource::Bind { path: world.path("file") }, true),
        mount("/usr", MountSource::Tmpfs { size: None }, false),
    ];
    let run = |recursive| {
        let mut container = world.container();
        container.mounts = mounts.clone();
        container.recursive_stubs = recursive;
        world.run(container, shell("true"))
    };
    let mut stubs = run(false).await.exit.stubs;
    stubs.sort();
    // runc would make the inner one in the bind mount; it is not the root's then.
    stubs.retain(|stub| stub != std::path::Path::new("/new/dir/inner"));
    let paths = |list: &[&str]| list.iter().map(std::path::PathBuf::from).collect::<Vec<_>>();
    assert_eq!(stubs, paths(&["/etc/hosts", "/etc/resolv.conf", "/new/dir", "/tmp/f"]));
    let mut stubs = run(true).await.exit.stubs;
    stubs.retain(|stub| stub != std::path::Path::new("/new/dir/inner"));
    let at = |path: &str| stubs.iter().position(|stub| stub == std::path::Path::new(path)).unwrap();
    assert!(at("/new/dir") < at("/new"), "{stubs:?}");
    assert_eq!(stubs.len(), 5, "{stubs:?}");
    // Where a default mount was first to need the parent, it is a parent all the same.
    fs::remove_dir(world.path("base/dev")).unwrap();
    let mut container = world.container();
    container.mounts = vec![mount("/dev/shm", MountSource::Tmpfs { size: None }, false)];
    container.recursive_stubs = true;
    let stubs = world.run(container, shell("true")).await.exit.stubs;
    assert!(stubs.contains(&"/dev".into()), "{stubs:?}");
}

async fn a_readonly_root(world: World) {
    let mut container = world.container();
    container.root_readonly = true;
    container.mounts = vec![mount("/scratch", MountSource::Tmpfs { size: None }, false)];
    let outcome = world.run(container, shell("touch /scratch/x && echo scratch; touch /x")).await;
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code), ("scratch\n", 1));
    assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
}

async fn no_network(world: World) {
    let mut container = world.container();
    container.network = Network::None;
    let outcome =
        world.run(container, shell("ls /sys/class/net; ping -c1 -W1 127.0.0.1 >/dev/null && echo up; cat /proc/net/route | wc -l")).await;
    assert_eq!(outcome.stdout, "lo\nup\n1\n", "{outcome:?}");
    let host = world.sh("ls /proc/self/ns/net -l | sed 's/.*-> //'").await.stdout;
    assert_eq!(host.trim(), fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
}

async fn limits_of_resources(world: World) {
    let mut container = world.container();
    container.resources =
        Resources { memory: Some(64 << 20), cpu_quota: Some(50_000), cpu_shares: Some(512), pids: Some(50), ..Resources::default() };
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares pids/pids.max 2>/dev/null || \
                  cat memory.max cpu.max pids.max";
    let outcome = world.run(container, shell(script)).await;
    assert!(["67108864\n50000\n512\n50\n", "67108864\n50000 100000\n50\n"].contains(&outcome.stdout.as_str()), "{outcome:?}");
}

async fn out_of_memory_is_told(world: World) {
    let mut container = world.container();
    container.resources.memory = Some(16 << 20);
    container.resources.memory_swap = Some(16 << 20);
    let outcome = world.run(container, shell("tail -c 64m /dev/zero > /dev/null")).await;
    assert!(outcome.exit.oom_killed && outcome.exit.code != 0, "{outcome:?}");
}

async fn rlimits(world: World) {
    let rlimits = vec![Rlimit { name: "nofile".into(), soft: 100, hard: 200 }, Rlimit { name: "RLIMIT_CORE".into(), soft: -1, hard: -1 }];
    let outcome = world.run(world.container(), Process { rlimits, ..shell("ulimit -Sn; ulimit -Hn; ulimit -c") }).await;
    assert_eq!(outcome.stdout, "100\n200\nunlimited\n");
}

async fn much_output(world: World) {
    let outcome = world.sh("yes 0123456789abcdef | head -c 20000000; echo end >&2").await;
    assert_eq!((outcome.stdout.len(), outcome.stderr.as_str()), (20_000_000, "end\n"));
    // Nobody listens.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    drop(receiver);
    let io = Io { stdout: Output::Channel(sender), ..Io::default() };
    let exit = world.runtime.run(world.container(), shell("yes | head -c 1000000; exit 5"), io, &Cancel::new()).await.unwrap();
    assert_eq!(exit.code, 5);
}

async fn input_is_streamed(world: World) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let (io, stdout, _) = capture();
    let io = Io { stdin: Input::Stream(receiver), ..io };
    let feed = async {
        for _ in 0..100 {
            sender.send(Bytes::from(vec![b'x'; 10_000])).await.unwrap();
        }
        drop(sender);
    };
    let cancel = Cancel::new();
    let (exit, ()) = tokio::join!(world.runtime.run(world.container(), shell("wc -c"), io, &cancel), feed);
    assert_eq!((exit.unwrap().code, text(&stdout).trim()), (0, "1000000"));
}

/// Processes outside containers see those inside; this finds them by what only they know.
fn alive(mark: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    processes.filter(|entry| fs::read(entry.path().join("environ")).is_ok_and(|env| String::from_utf8_lossy(&env).contains(mark))).count()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A tree with a daemon that has left its session and its parents, and ignores what can be ignored.
fn tree(mark: &str) -> Process {
    let mut process = shell(
        "trap '' TERM INT HUP; (setsid sh -c '(trap \"\" TERM; while :; do sleep 1000; done) & sleep 1000' &) ; echo up; sleep 1000; sleep 1000",
    );
    process.env.push(format!("MARK={mark}"));
    process
}

async fn cancelling_kills_the_tree(world: World) {
    let container = world.container();
    let mark = format!("cancel-{}", container.id);
    let (cancel, (io, stdout, _)) = (Cancel::new(), capture());
    let run = world.runtime.run(container, tree(&mark), io, &cancel);
    let stop = async {
        until("all are up", || text(&stdout) == "up\n" && alive(&mark) >= 4).await;
        cancel.cancel("enough");
    };
    let (outcome, ()) = tokio::join!(run, stop);
    assert!(matches!(outcome, Err(SandboxError::Cancelled(reason)) if reason == "enough"));
    assert_eq!(alive(&mark), 0, "all are dead when the run returns");
}

async fn dropping_kills_the_tree(world: World) {
    let container = world.container();
    let mark = format!("drop-{}", container.id);
    let (io, stdout, _) = capture();
    let running = world.runtime.create(container, tree(&mark), io).await.unwrap();
    until("all are up", || text(&stdout) == "up\n" && alive(&mark) >= 4).await;
    drop(running);
    until("all are dead", || alive(&mark) == 0).await;
}

async fn a_cancelled_run_does_not_start(world: World) {
    let cancel = Cancel::new();
    cancel.cancel("before");
    let outcome = world.runtime.run(world.container(), shell("true"), Io::default(), &cancel).await;
    assert!(matches!(outcome, Err(SandboxError::Cancelled(_))));
}

async fn a_second_process(world: World) {
    let (io, ..) = capture();
    let running = world.runtime.create(world.container(), shell("mkdir /tmp/begun; sleep 60"), io).await.unwrap();
    running.started().await;
    let (io, stdout, stderr) = capture();
    let script = "until [ -d /tmp/begun ]; do :; done; hostname";
    let exit = running.exec(shell(script), io).await.unwrap().wait().await.unwrap();
    assert!(text(&stdout).starts_with("buildkitsandbox\n"), "{exit:?} {}{}", text(&stdout), text(&stderr));
}

async fn further_processes(world: World) {
    let (io, ..) = capture();
    let container = world.container();
    let running =
        world.runtime.create(container, shell("echo first > /tmp/f; trap 'exit 9' TERM; while :; do sleep 0.01; done"), io).await.unwrap();
    running.started().await;
    let exec = |process: Process| {
        let (io, stdout, stderr) = capture();
        let running = &running;
        async move {
            let started = running.exec(process, io).await.unwrap();
            let exit = started.wait().await.unwrap();
            (exit.code, text(&stdout), text(&stderr))
        }
    };
    until("the first has begun", || world.path("upper-0/tmp/f").exists()).await;
    let process = Process {
        user: "bob".into(),
        cwd: "/tmp".into(),
        ..shell("cat f; id -u; pwd; hostname; grep -E 'CapBnd|Seccomp:' /proc/self/status; exit 3")
    };
    let (code, stdout, stderr) = exec(process).await;
    assert_eq!((code, stdout.as_str()), (3, "first\n1000\n/tmp\nbuildkitsandbox\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n"), "{stderr}");
    let (code, stdout, _) = exec(shell("ps -o pid,args | grep -c 'trap .exit 9'")).await;
    assert_eq!((code, stdout.trim() != "0"), (0, true), "they see each other");
    let (code, _, stderr) = exec(Process::new(["/bin/nonesuch"])).await;
    assert!(code == 1 && stderr.to_lowercase().contains("no such file"), "{code} {stderr}");
    // A signal to one of them, then to the first.
    let (io, stdout, _) = capture();
    let second = running.exec(shell("trap 'exit 4' USR1; echo up; while :; do sleep 0.01; done"), io).await.unwrap();
    until("it is up", || text(&stdout) == "up\n").await;
    second.signal(10).unwrap();
    assert_eq!(second.wait().await.unwrap().code, 4);
    let (io, stdout, _) = capture();
    let third = running.exec(shell("echo up; sleep 1000"), io).await.unwrap();
    until("it is up", || text(&stdout) == "up\n").await;
    running.signal(15).unwrap();
    assert_eq!(running.wait().await.unwrap().code, 9);
    assert_eq!(third.wait().await.unwrap().code, 137, "others die with the first");
    assert!(running.exec(shell("true"), Io::default()).await.is_err());
}

async fn a_terminal(world: World) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let (io, stdout, _) = capture();
    let io = Io { stdin: Input::Stream(receiver), ..io };
    let process = Process { tty: true, ..shell("[ -t 0 ] && [ -t 2 ] && tty; read line; stty size; echo got $line; exit 6") };
    let running = world.runtime.create(world.container(), process, io).await.unwrap();
    running.resize(33, 77).unwrap();
    until("it reads", || text(&stdout).contains("/dev/")).await;
    running.resize(44, 99).unwrap();
    let (io, other, _) = capture();
    let process = Process { tty: true, ..shell("tty && echo x > $(tty) && exit 8") };
    let second = running.exec(process, io).await.unwrap();
    assert_eq!(second.wait().await.unwrap().code, 8, "{}", text(&other));
    assert!(text(&other).starts_with("/dev/pts/") && text(&other).ends_with("x\r\n"), "{}", text(&other));
    sender.send(Bytes::from_static(b"word\n")).await.unwrap();
    let exit = running.wait().await.unwrap();
    let stdout = text(&stdout);
    assert_eq!(exit.code, 6, "{stdout}");
    assert!(stdout.contains("44 99\r\n") && stdout.contains("got word\r\n"), "{stdout}");
}

async fn nothing_is_left(world: World) {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let ids = std::sync::Mutex::new(Vec::new());
    let mark = format!("left-{}", world.container().id);
    let one = |number: usize| {
        let container = world.container();
        ids.lock().unwrap().push(container.id.clone());
        let (world, mark) = (&world, mark.clone());
        async move {
            let (cancel, (io, stdout, _)) = (Cancel::new(), capture());
            if !number.is_multiple_of(5) {
                let mut process = shell("(sleep 1000 &) ; true");
                process.env.push(format!("MARK={mark}"));
                return assert_eq!(world.runtime.run(container, process, io, &cancel).await.unwrap().code, 0);
            }
            let stop = async {
                until("it is up", || text(&stdout) == "up\n").await;
                cancel.cancel("enough");
            };
            let (outcome, ()) = tokio::join!(world.runtime.run(container, tree(&mark), io, &cancel), stop);
            assert!(outcome.is_err());
        }
    };
    for round in 0..10 {
        tokio::join!(one(round * 5), one(round * 5 + 1), one(round * 5 + 2), one(round * 5 + 3), one(round * 5 + 4));
    }
    assert_eq!(alive(&mark), 0);
    let ids = ids.into_inner().unwrap();
    let cgroups = || {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]);
        hierarchies.map(|top| ids.iter().filter(|id| top.join("buildkit").join(id).exists()).count()).sum::<usize>()
    };
    until("all cgroups are gone", || cgroups() == 0).await;
    assert_eq!(mounts(), before);
    let state = |name: &str| fs::read_dir(world.path("state").join(name)).map_or(0, Iterator::count);
    until("the state directory is as it was", || state("root") + state("tree") + state("bundle") + state("runtime") == 0).await;
}

/// A program for arm64 that exits with that code: an ELF header, the header of one segment, and three instructions.
fn foreign_program(code: u32) -> Vec<u8> {
    const BASE: u64 = 0x10_0000;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0\x01\0\0\0".to_vec();
    elf.extend([BASE + 120, 64, 0].iter().flat_map(|n: &u64| n.to_le_bytes()));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    elf.extend([0, BASE, BASE, 132, 132, 0x1000].iter().flat_map(|n: &u64| n.to_le_bytes()));
    // mov x0, #code; mov x8, #93; svc #0
    elf.extend([0xd280_0000 | code << 5, 0xd280_0ba8, 0xd400_0001].iter().flat_map(|n: &u32| n.to_le_bytes()));
    elf
}

/// Needs Debian's qemu-user-static, and Linux from 6.7 on.
async fn an_emulator_of_its_own(world: World) {
    let emulator = sandbox::Emulator::find("arm64", &["/usr/bin".into()]).expect("qemu-user-static is installed");
    for network in [Network::Host, Network::None] {
        let container = sandbox::Container { emulator: Some(emulator.clone()), network, ..world.container() };
        let upper = world.upper(&container);
        fs::write(upper.join("foreign"), foreign_program(42)).unwrap();
        fs::set_permissions(upper.join("foreign"), fs::Permissions::from_mode(0o755)).unwrap();
        let limited = Resources { memory: Some(64 << 20), ..Resources::default() };
        let container = sandbox::Container { resources: limited, ..container };
        let script = "/foreign; echo $?; chroot / /foreign; echo $?; id -u; ls /sys > /dev/null && echo x > /dev/null && exec /foreign";
        let (begin, stdin) = tokio::sync::mpsc::channel(1);
        let (io, stdout, stderr) = capture();
        let io = Io { stdin: Input::Stream(stdin), ..io };
        let running = world.runtime.create(container, shell(&format!("read x; {script}")), io).await.unwrap();
        running.started().await;
        let (io, other, _) = capture();
        let process = Process { user: "bob".into(), ..shell("/foreign; echo $? $(id -u)") };
        let exit = running.exec(process, io).await.unwrap().wait().await.unwrap();
        assert_eq!((exit.code, text(&other).as_str()), (0, "42 1000\n"));
        begin.send(Bytes::from_static(b"\n")).await.unwrap();
        let exit = running.wait().await.unwrap();
        assert_eq!((exit.code, text(&stdout).as_str()), (42, "42\n42\n0\n"), "{}", text(&stderr));
    }
}

async fn escapes_are_refused(world: World) {
    let refused = |outcome: &world::Outcome| outcome.exit.code != 0;
    for script in [
        "mount -t tmpfs none /tmp",
        "mount --bind / /tmp",
        "mount -o remount,rw /sys",
        "umount /proc/sys",
        "umount /sys/firmware || umount /etc/hosts",
        "unshare -m true",
        "unshare -U true",
        "hostname other",
        "echo core > /proc/sys/kernel/core_pattern",
        "echo 1 > /sys/kernel/uevent_helper",
        "nsenter -t 1 -m true && nsenter -t 2 -m true",
        "chroot /proc/1/root/../.. ls /work",
        "insmod /tmp/x.ko",
        "swapon /tmp/x",
        "dmesg",
        "date -s '2001-01-01 00:00' 2>&1 | grep -v 'not permitted' | grep cannot",
        "ip link add d0 type dummy",
        "echo a > /sys/fs/cgroup/devices/devices.allow",
        "echo 0 > /sys/fs/cgroup/memory/tasks",
        "cp /bin/busybox /tmp/keyctl; exec 3<>/proc/1/mem && false",
    ] {
        let outcome = world.sh(script).await;
        assert!(refused(&outcome), "{script}: {outcome:?}");
    }
    // The daemon's processes are not to be seen, and the helper's program not to be reached.
    let outcome = world.sh("for p in /proc/[0-9]*; do readlink $p/exe; done | sort -u").await;
    assert_eq!(outcome.stdout.trim(), "/bin/busybox");
    let outcome = world
        .run(world.container(), Process { env: vec!["PATH=/bin".into()], ..Process::new(["/proc/self/exe", "sh", "-c", "true"]) })
        .await;
    assert_ne!(outcome.exit.code, 0, "the helper serves nobody but the daemon");
}

/// Some of the suite once more, where the machine's namespaces belong to somebody else.
#[test]
fn root_of_a_user_namespace_is_enough() {
    let this = std::env::current_exe().unwrap();
    for test in ["exit_codes_and_streams", "a_second_process", "a_terminal", "no_network", "stubs_are_reported", "nothing_is_left"] {
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--propagation", "slave"]).arg(&this);
        let output = command.args(["--exact", &format!("with_builtin::{test}")]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{test}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
}
