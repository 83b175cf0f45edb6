//! What must not break it: kill -9, bad input, clients that go away.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use testkit::{Daemon, PATIENCE, Registry, busybox_image, wait_until};

fn dockerfile(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), text).unwrap();
    dir
}

/// How many kills; `KILN_TEST_KILLS=300` is the bar, which takes some minutes.
fn kills() -> u64 {
    std::env::var("KILN_TEST_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// The daemon's, in this namespace.
fn mounts(daemon: &Daemon) -> usize {
    let home = daemon.home().to_str().unwrap();
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(home)).count()
}

/// Kills at moments spread over builds, exports and prunes that run side by side; each next start is immediate and leaves no mount, `du`
/// works, the same build succeeds and what was acknowledged before is still cached.
#[test]
fn kill_nine_in_the_middle_of_it_all_loses_nothing_acknowledged() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let mut daemon = Daemon::start(&[]);
    let base = format!("FROM {}/base:latest\nRUN cat /proc/sys/kernel/random/uuid > /stamp\n", registry.host());
    let kept = dockerfile(&base);
    let out = tempfile::tempdir().unwrap();
    let stamp = |daemon: &Daemon, to: &str| {
        let dest = out.path().join(to);
        daemon.ok(&["build", "-o", &format!("type=local,dest={}", dest.display()), kept.path().to_str().unwrap()]);
        let stamp = fs::read(dest.join("stamp")).unwrap();
        fs::remove_dir_all(&dest).unwrap();
        stamp
    };
    let acknowledged = stamp(&daemon, "first");
    let mounts_before = mounts(&daemon);
    let mut starts = Vec::new();
    for round in 0..kills() {
        let mut text = base.clone();
        for step in 0..8 {
            text.push_str(&format!("RUN dd if=/dev/urandom of=/f{step} bs=64k count=8 2>/dev/null && echo {round}\n"));
        }
        let dir = dockerfile(&text);
        let tar = format!("type=oci,dest={}", out.path().join("image.tar").display());
        let loads: [&[&str]; 3] = [
            &["build", dir.path().to_str().unwrap()],
            &["build", "-o", &tar, kept.path().to_str().unwrap()],
            // What failed and what nobody asked for again, but not what was acknowledged.
            &["prune", "--filter", "description~=dd"],
        ];
        let spawn = |args: &&[&str]| daemon.kiln(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let clients: Vec<_> = loads.iter().map(spawn).collect();
        let until = Instant::now() + Duration::from_millis(15 + round * 37 % 400);
        wait_until("the moment of the kill", PATIENCE, || (Instant::now() >= until).then_some(()));
        daemon.kill();
        for mut client in clients {
            let _ = client.wait();
        }
        let begun = Instant::now();
        daemon.restart();
        starts.push(begun.elapsed());
        daemon.ok(&["du"]);
        assert_eq!(stamp(&daemon, &format!("r{round}")), acknowledged, "round {round}: an acknowledged step ran again");
        assert_eq!(mounts(&daemon), mounts_before, "round {round}: a mount is left");
        if round % 5 == 0 {
            daemon.ok(&["build", dir.path().to_str().unwrap()]);
        }
    }
    let log = fs::read_to_string(daemon.log_path()).unwrap();
    for sign in ["damaged", "set aside", "panicked", "cannot be used any more"] {
        assert!(!log.contains(sign), "the log says {sign:?}:\n{log}");
    }
    // On a busy machine any one of them may have had to wait for a processor; if starting had much to do, all would take long.
    let (fastest, slowest) = (starts.iter().min(), starts.iter().max());
    println!("{} kills, a start took {fastest:?} to {slowest:?}", kills());
    assert!(fastest.is_none_or(|took| *took < Duration::from_secs(2)), "{starts:?}");
}

/// A file system of its own, small enough to be filled.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn new(megabytes: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-test-disk-").tempdir().unwrap();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        let disk = Self { dir };
        fs::create_dir(disk.path()).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()));
        disk
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// In bytes.
    fn room(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes all the room there is, until the result is dropped.
    fn fill(&self) -> Filler {
        let path = self.path().join("filler");
        let mut file = fs::File::create(&path).unwrap();
        for chunk in [1 << 20, 4096] {
            while file.write_all(&vec![1; chunk]).is_ok() {}
        }
        Filler(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Full during a step, an export and a prune; then there is room again, with nothing lost and nobody having helped.
#[test]
fn a_full_disk_is_named_and_nothing_is_lost_by_it() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let disk = SmallDisk::new(96);
    let root = disk.path().join("root");
    let mut daemon = Daemon::start(&["--root", root.to_str().unwrap(), "--oci-worker-gc=false"]);
    let base = format!("FROM {}/base:latest\nRUN cat /proc/sys/kernel/random/uuid > /stamp\n", registry.host());
    let (kept, out) = (dockerfile(&base), tempfile::tempdir().unwrap());
    let stamp = |daemon: &Daemon, to: &str| {
        let dest = out.path().join(to);
        daemon.ok(&["build", "-o", &format!("type=local,dest={}", dest.display()), kept.path().to_str().unwrap()]);
        fs::read(dest.join("stamp")).unwrap()
    };
    let acknowledged = stamp(&daemon, "first");
    let room = disk.room();

    let big = dockerfile(&format!("{base}RUN dd if=/dev/zero of=/big bs=1M count=500\n"));
    let output = daemon.kiln(&["build", "--progress", "plain", big.path().to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("No space left on device"), "the step's own words: {said}");
    assert!(said.contains("the disk of the build cache is full"), "and ours: {said}");

    let tar = format!("type=oci,dest={}", out.path().join("image.tar").display());
    let small = dockerfile(&format!("{base}RUN dd if=/dev/urandom of=/some bs=1M count=24\n"));
    for kill in [false, true] {
        // What failed, or was pruned, is deleted a moment later: if the disk were filled before, there would be room again.
        wait_until("what was deleted to be gone", PATIENCE, || (disk.room() + (8 << 20) > room).then_some(()));
        let full = disk.fill();
        let output = daemon.kiln(&["build", small.path().to_str().unwrap()]).output().unwrap();
        assert!(!output.status.success(), "there is no room for that");
        let _ = daemon.kiln(&["build", "-o", &tar, kept.path().to_str().unwrap()]).output().unwrap();
        let _ = daemon.kiln(&["prune", "--filter", "description~=dd"]).output().unwrap();
        daemon.ok(&["debug", "workers"]);
        if kill {
            daemon.kill();
        }
        drop(full);
        if kill {
            daemon.restart();
        }
        wait_until("the daemon to notice that there is room", PATIENCE, || {
            daemon.kiln(&["build", small.path().to_str().unwrap()]).output().unwrap().status.success().then_some(())
        });
        assert_eq!(stamp(&daemon, &format!("after-{kill}")), acknowledged, "what was acknowledged is still there");
        daemon.ok(&["build", "-o", &tar, kept.path().to_str().unwrap()]);
        daemon.ok(&["du"]);
        daemon.ok(&["prune", "--filter", "description~=dd"]);
    }
    assert!(daemon.stop().success());
    let log = fs::read_to_string(daemon.log_path()).unwrap();
    assert!(!log.contains("set aside") && !log.contains("put aside") && !log.contains("panicked"), "{log}");
}

fn blocks_below(root: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "-B1", "-x"]).arg(root).output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap().parse().unwrap()
}

fn said_by_du(daemon: &Daemon) -> u64 {
    let output = daemon.ok(&["du", "--format", "json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let sizes = text.split("\"size\":").skip(1).map(|rest| rest.trim_start().chars().take_while(char::is_ascii_digit).collect::<String>());
    sizes.map(|size| size.parse::<u64>().unwrap()).sum()
}

/// `KILN_TEST_CEILING=2000,20,300` (megabytes of ceiling, builds, megabytes that each writes) is the bar.
#[test]
fn the_ceiling_holds_during_builds_and_df_agrees() {
    let shape = std::env::var("KILN_TEST_CEILING").unwrap_or_else(|_| "60,8,12".into());
    let shape: Vec<u64> = shape.split(',').map(|number| number.parse().unwrap()).collect();
    let (ceiling, builds, each) = (shape[0] * 1_000_000, shape[1], shape[2]);
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let flag = format!("--oci-worker-gc-ceiling={ceiling}");
    let daemon = Daemon::start(&[&flag]);
    let root = daemon.root();
    // Files in the middle of their making count, too; what is not the store's own is the log and the sockets.
    let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let watch = std::thread::spawn({
        let (stop, most, root) = (stop.clone(), most.clone(), root.clone());
        move || {
            loop {
                // Asked first, so that there is a look after the last build.
                let is_last = stop.load(Ordering::Relaxed);
                most.fetch_max(blocks_below(&root), Ordering::Relaxed);
                if is_last {
                    return;
                }
                std::thread::sleep(Duration::from_millis(30));
            }
        }
    });
    for build in 0..builds {
        let dir = dockerfile(&format!(
            "FROM {}/base:latest\nRUN dd if=/dev/urandom of=/big bs=1M count={} 2>/dev/null && echo {build}\n",
            registry.host(),
            each * 1_000_000 / (1 << 20)
        ));
        daemon.ok(&["build", dir.path().to_str().unwrap()]);
    }
    stop.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    let most = most.load(Ordering::Relaxed);
    println!("ceiling {ceiling}, most ever on disk {most}, {builds} builds of {each} MB");
    let slack = 3_000_000;
    assert!(most <= ceiling + each * 1_000_000 + slack, "{most} on disk, with a ceiling of {ceiling}");
    assert!(most > ceiling / 2, "the cache was used: {most}");
    wait_until("the trash to be emptied", PATIENCE, || (blocks_below(&root) <= ceiling + slack).then_some(()));
    // Not at once if the last of it is being cleared between the two.
    let mut last = None;
    wait_until("du and the disk to agree", PATIENCE, || {
        let (said, found) = (said_by_du(&daemon), blocks_below(&root));
        if last.replace((said, found)) != Some((said, found)) {
            println!("du says {said}, the disk {found}");
        }
        (said.abs_diff(found) < found / 50 + slack).then_some(())
    });
}

#[test]
fn a_client_that_goes_away_takes_its_step_with_it() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let mark = format!("31{}", std::process::id());
    let dir = dockerfile(&format!("FROM {}/base:latest\nRUN sleep {mark} & sleep {mark}\n", registry.host()));
    let mut client = daemon.kiln(&["build", dir.path().to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let sleepers = || {
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| fs::read(e.ok()?.path().join("cmdline")).ok())
            .filter(|line| **line == *format!("sleep\0{mark}\0").as_bytes())
            .count()
    };
    wait_until("the step to run", PATIENCE, || (sleepers() == 2).then_some(()));
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("the step's processes to end", PATIENCE, || (sleepers() == 0).then_some(()));
    daemon.ok(&["debug", "workers"]);
}

#[test]
fn bad_input_is_refused_by_name_and_the_daemon_lives_on() {
    let daemon = Daemon::start(&[]);
    for (text, want) in [
        ("FROM scratch\nCOYP a b\n", "unknown instruction: COYP"),
        ("FROM scratch\nCOPY missing /\n", "\"/missing\": not found"),
        ("RUN true\n", "no build stage in current context"),
        ("FROM localhost:1/nothing:here\n", "localhost:1/nothing:here"),
        ("", "the Dockerfile cannot be empty"),
    ] {
        let dir = dockerfile(text);
        let output = daemon.kiln(&["build", "--progress", "plain", dir.path().to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(want), "{text:?} said\n{said}");
    }
    daemon.ok(&["debug", "info"]);
}

#[test]
fn no_mount_process_or_cgroup_is_left_after_builds_and_a_stop() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let mut daemon = Daemon::start(&[]);
    let before = mounts(&daemon);
    for step in 0..5 {
        let dir = dockerfile(&format!("FROM {}/base:latest\nRUN (sleep 1000 &) ; echo {step}\n", registry.host()));
        daemon.ok(&["build", dir.path().to_str().unwrap()]);
    }
    assert_eq!(mounts(&daemon), before);
    assert!(daemon.stop().success());
    assert_eq!(mounts(&daemon), before);
}
