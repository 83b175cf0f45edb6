//! Several processes of a container, terminals, and how all of it ends.
use std::fs;
use std::time::Duration;

use bytes::Bytes;
use sandbox::{Input, Io, Process, SandboxError};
use task::Cancel;

use crate::world::{World, capture, shell, text};

pub async fn cancelling_kills_the_tree(world: World) {
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

pub async fn dropping_kills_the_tree(world: World) {
    let container = world.container();
    let mark = format!("drop-{}", container.id);
    let (io, stdout, _) = capture();
    let running = world.runtime.create(container, tree(&mark), io).await.unwrap();
    until("all are up", || text(&stdout) == "up\n" && alive(&mark) >= 4).await;
    drop(running);
    until("all are dead", || alive(&mark) == 0).await;
}

pub async fn a_cancelled_run_does_not_start(world: World) {
    let cancel = Cancel::new();
    cancel.cancel("before");
    let outcome = world.runtime.run(world.container(), shell("true"), Io::default(), &cancel).await;
    assert!(matches!(outcome, Err(SandboxError::Cancelled(_))));
}

pub async fn a_second_process(world: World) {
    let (io, ..) = capture();
    let running = world.runtime.create(world.container(), shell("mkdir /tmp/begun; sleep 1000"), io).await.unwrap();
    running.started().await;
    let (io, stdout, stderr) = capture();
    let script = "until [ -d /tmp/begun ]; do :; done; hostname";
    let exit = running.exec(shell(script), io).await.unwrap().wait().await.unwrap();
    assert!(text(&stdout).starts_with("buildkitsandbox\n"), "{exit:?} {}{}", text(&stdout), text(&stderr));
}

pub async fn further_processes(world: World) {
    let (io, ..) = capture();
    let container = world.container();
    let running =
        world.runtime.create(container, shell("trap 'exit 9' TERM; echo first > /tmp/f; while :; do sleep 0.01; done"), io).await.unwrap();
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
    until("the first has begun", || fs::read(world.path("upper-0/tmp/f")).is_ok_and(|text| text == b"first\n")).await;
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

pub async fn a_terminal(world: World) {
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

pub async fn nothing_is_left(world: World) {
    // Of this world: others mount as they please.
    let mounts = || {
        let (all, place) = (fs::read_to_string("/proc/self/mountinfo").unwrap(), world.dir.path().display().to_string());
        all.lines().filter(|line| line.contains(&place)).map(str::to_owned).collect::<Vec<_>>()
    };
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

/// Processes outside containers see those inside; this finds them by what only they know.
fn alive(mark: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    processes.filter(|entry| fs::read(entry.path().join("environ")).is_ok_and(|env| String::from_utf8_lossy(&env).contains(mark))).count()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
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
