//! Programs: how they start, whom they run as, what they say and hear.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;
use sandbox::{Input, Io, Network, Output, Process, Resources, Rlimit, SandboxError};
use task::Cancel;

use crate::world::{World, capture, shell, text};

pub async fn exit_codes_and_streams(world: World) {
    let outcome = world.sh("echo out; echo err >&2; exit 42").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.exit.code), ("out\n", "err\n", 42));
    assert!(!outcome.exit.oom_killed);
    assert_eq!(world.sh("sh -c 'kill -TERM $$'; exit $?").await.exit.code, 143);
    // The first process of a pid namespace dies of signals from outside only, or of its own fault.
    assert_eq!(world.sh("read x && echo got $x; exit 7").await.exit.code, 7);
    assert_eq!(world.sh("[ $$ = 1 ] && [ $(ps -o pid= | wc -l) -le 4 ]").await.exit.code, 0);
}

pub async fn a_program_that_cannot_run(world: World) {
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

pub async fn users(world: World) {
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

pub async fn an_unknown_user_is_named(world: World) {
    let failure = |user: &str| {
        let process = Process { user: user.into(), ..shell("true") };
        let run = world.try_run(world.container(), process);
        async { run.await.unwrap_err().to_string() }
    };
    assert_eq!(failure("eve").await, "unable to find user eve: no matching entries in passwd file");
    assert_eq!(failure("bob:none").await, "unable to find group none: no matching entries in group file");
}

pub async fn environment_and_directory(world: World) {
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

pub async fn a_missing_directory_is_made_for_the_user(world: World) {
    let container = world.container();
    let upper = world.upper(&container);
    let process = Process { cwd: "/srv/a/b".into(), user: "bob".into(), ..shell("pwd; touch mine; stat -c '%u %g %a' . .. /srv") };
    let outcome = world.run(container, process).await;
    assert_eq!(outcome.stdout, "/srv/a/b\n1000 1001 755\n1000 1001 755\n1000 1001 755\n");
    assert!(upper.join("srv/a/b/mine").exists());
}

pub async fn rlimits(world: World) {
    let rlimits = vec![Rlimit { name: "nofile".into(), soft: 100, hard: 200 }, Rlimit { name: "RLIMIT_CORE".into(), soft: -1, hard: -1 }];
    let outcome = world.run(world.container(), Process { rlimits, ..shell("ulimit -Sn; ulimit -Hn; ulimit -c") }).await;
    assert_eq!(outcome.stdout, "100\n200\nunlimited\n");
}

pub async fn much_output(world: World) {
    let outcome = world.sh("yes 0123456789abcdef | head -c 20000000; echo end >&2").await;
    assert_eq!((outcome.stdout.len(), outcome.stderr.as_str()), (20_000_000, "end\n"));
    // Nobody listens.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    drop(receiver);
    let io = Io { stdout: Output::Channel(sender), ..Io::default() };
    let exit = world.runtime.run(world.container(), shell("yes | head -c 1000000; exit 5"), io, &Cancel::new()).await.unwrap();
    assert_eq!(exit.code, 5);
}

pub async fn input_is_streamed(world: World) {
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
pub async fn an_emulator_of_its_own(world: World) {
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
