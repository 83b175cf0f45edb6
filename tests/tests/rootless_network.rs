//! Networks that the daemon of an ordinary user makes for its steps, with pasta and with slirp4netns.
//!
//! Needs root, passt, slirp4netns and iproute2. Each test is executed again in a network namespace that stands for the machine's: one address
//! that is not loopback, and a name server on loopback.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use testkit::{Daemon, PATIENCE, User, wait_until};

const INSIDE: &str = "KILN_TEST_INSIDE";

/// Runs the test on such a machine.
fn apart(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        set_up();
        return test();
    }
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let mut again = Command::new("unshare");
    again.args(["--net", "--mount", "--"]).arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let output = again.output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn set_up() {
    sh("ip link set lo up; ip link add up0 type veth peer name up1; ip addr add 192.0.2.1/24 dev up0; ip link set up0 up; ip link set up1 up; ip route add default via 192.0.2.254
        dir=$(mktemp -d); mount -t tmpfs none $dir; echo nameserver 127.0.0.1 > $dir/resolv.conf; echo search example.test >> $dir/resolv.conf
        mount --bind $dir/resolv.conf /etc/resolv.conf
        mknod $dir/tun c 10 200; chmod 666 $dir/tun; mkdir -p /dev/net; test -e /dev/net/tun || touch /dev/net/tun
        mount --bind $dir/tun /dev/net/tun; umount -l $dir; rmdir $dir");
    let listener = TcpListener::bind("0.0.0.0:7001").unwrap();
    std::thread::spawn(move || {
        while let Ok((mut connection, _)) = listener.accept() {
            // Asked first: pasta of 2023 can lose what is sent the moment a connection is made.
            let _ = connection.read(&mut [0; 3]).and_then(|_| connection.write_all(b"hello\n"));
        }
    });
    let server = UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((count, peer)) = server.recv_from(&mut packet) {
            let _ = server.send_to(&answer(&packet[..count]), peer);
        }
    });
}

/// Every name has the address 192.0.2.1, and no other (RFC 1035).
fn answer(question: &[u8]) -> Vec<u8> {
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let is_v4 = question[end - 3] == 1;
    let mut answer = question[..end].to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, u8::from(is_v4), 0, 0, 0, 0]);
    if is_v4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    }
    answer
}

/// What the steps of a Dockerfile print.
fn build(daemon: &Daemon, steps: &str) -> String {
    let context = tempfile::tempdir().unwrap();
    fs::copy("/bin/busybox", context.path().join("busybox")).unwrap();
    let text = format!("FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n{steps}");
    fs::write(context.path().join("Dockerfile"), text).unwrap();
    let output = daemon.ok(&["build", "--no-cache", "--progress=plain", context.path().to_str().unwrap()]);
    String::from_utf8(output.stderr).unwrap()
}

/// The program that carries the daemon's network.
fn carrier(daemon: &Daemon, name: &str) -> Option<Pid> {
    let numbers = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found = numbers.filter(|pid| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let parent = format!("PPid:\t{}\n", daemon.pid());
        read("status").contains(&parent) && read("cmdline").split('\0').next().is_some_and(|program| program.ends_with(name))
    });
    found.next().and_then(Pid::from_raw)
}

/// What has come is looked at while the connection is open: pasta of 2023 can lose its end, too.
const STEPS: &str =
    "RUN echo hi | nc 192.0.2.1 7001 > /said & timeout 100 sh -c 'until test -s /said; do usleep 10000; done'; echo \"gets $(cat /said)\"; \\
    ! nc -w 2 10.0.2.2 7001 < /dev/null; ! nc -w 2 127.0.0.1 7001 < /dev/null
RUN echo \"looks up $(nslookup host.example.test 2>&1 | tr '\\n' ' ')\"; grep . /etc/resolv.conf
RUN --network=none echo \"alone with $(ls /sys/class/net | tr '\\n' ' ')\"
";

fn leads_outside_and_not_to_the_machines_loopback(program: &str) {
    for mode in ["host", "bridge"] {
        let mut daemon = Daemon::start_rootless(&["--rootless-net", program, "--oci-worker-net", mode]);
        let text = build(&daemon, STEPS);
        for said in ["gets hello", "alone with lo ", "nameserver 10.0.2.3", "search example.test"] {
            assert!(text.contains(said), "{program} {mode}: {said}: {text}");
        }
        assert!(!text.contains("nameserver 127"), "{text}");
        let text = build(&daemon, "RUN echo interfaces $(ls /sys/class/net)\n");
        assert!(text.contains(if mode == "bridge" { "interfaces eth0 lo" } else { "interfaces lo tap0" }), "{text}");
        // A program that is gone is told, and replaced.
        let first = carrier(&daemon, program).expect("the program runs");
        kill_process(first, Signal::KILL).unwrap();
        let log = || fs::read_to_string(daemon.log_path()).unwrap();
        let told = || log().contains("has ended: their connections are lost");
        wait_until("the log to tell of it", PATIENCE, || told().then_some(()));
        assert!(build(&daemon, STEPS).contains("gets hello"), "{}", log());
        assert_ne!(carrier(&daemon, program).expect("the program runs again"), first);
        // It ends with the daemon, whatever ends that.
        let last = carrier(&daemon, program).expect("the program runs");
        if mode == "host" {
            daemon.kill();
        } else {
            assert!(daemon.stop().success());
        }
        let gone =
            || fs::read_to_string(format!("/proc/{}/status", last.as_raw_nonzero())).map_or(true, |text| text.contains("\nState:\tZ"));
        wait_until("the program's end", PATIENCE, || gone().then_some(()));
    }
}

#[test]
fn pasta_leads_outside_and_not_to_the_machines_loopback() {
    apart("pasta_leads_outside_and_not_to_the_machines_loopback", || leads_outside_and_not_to_the_machines_loopback("pasta"));
}

#[test]
fn slirp4netns_leads_outside_and_not_to_the_machines_loopback() {
    apart("slirp4netns_leads_outside_and_not_to_the_machines_loopback", || leads_outside_and_not_to_the_machines_loopback("slirp4netns"));
}

#[test]
fn what_cannot_work_is_refused_at_the_start() {
    apart("what_cannot_work_is_refused_at_the_start", || {
        let user = User::new();
        let refused = |path: &str, flags: &str, said: &[&str]| {
            let script =
                format!("PATH={path} ./kiln daemon --root {root} --addr unix://{root}.sock {flags}", root = user.path("root").display());
            let output = user.command(true).args(["sh", "-c", &script]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.iter().all(|said| text.contains(said)), "{flags}: {text}");
        };
        refused("/nonexistent", "--rootless-net=pasta", &["pasta", "not installed", "passt"]);
        refused("/nonexistent", "--rootless-net=slirp4netns", &["Debian's package slirp4netns"]);
        refused("$PATH", "--rootless-net=vpnkit", &["host, pasta or slirp4netns"]);
        // Without a network of its own there is nothing to put a bridge in.
        refused("$PATH", "--oci-worker-net=bridge", &["--rootless-net=pasta", "networkMode"]);
        let root = Command::new("timeout")
            .args(["-s", "KILL", "120"])
            .arg(testkit::kiln_binary())
            .args(["daemon", "--root"])
            .arg(user.path("root"))
            .arg("--rootless-net=pasta")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&root.stderr).into_owned();
        assert!(!root.status.success() && text.contains("ordinary user"), "{text}");
        sh("chmod 600 /dev/net/tun");
        refused("$PATH", "--rootless-net=slirp4netns", &["slirp4netns", "/dev/net/tun"]);
    });
}
