//! What a container may not do, and what an insecure one may.
use std::fs;

use sandbox::{Network, Process, Resources, Security};

use crate::world::{self, World, shell};

pub async fn lockdown(world: World) {
    let outcome = world.sh("grep -E '^(Cap|Seccomp:|NoNewPrivs|SigIgn|SigBlk)' /proc/self/status").await;
    let expected = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n\
                    CapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n";
    let told: String = outcome.stdout.lines().filter(|line| !line.starts_with("Sig")).map(|line| format!("{line}\n")).collect();
    assert_eq!(told, expected);
    assert!(outcome.stdout.contains("SigBlk:\t0000000000000000\n"), "{}", outcome.stdout);
    // No descriptor but the three and the one that lists them.
    assert_eq!(world.sh("ls /proc/self/fd | wc -l").await.stdout, "4\n");
}

pub async fn insecure_is_open(world: World) {
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

pub async fn masked_and_frozen_paths(world: World) {
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

pub async fn devices(world: World) {
    let script = "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo no $d; done; for l in fd stdin ptmx; do readlink /dev/$l; done; \
                  head -c 4 /dev/zero | wc -c; echo x > /dev/null; stat -c %a /dev/null /dev/shm; [ -d /dev/mqueue ] && ls /dev/pts";
    let outcome = world.sh(script).await;
    assert_eq!(outcome.stdout, "/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n4\n666\n1777\nptmx\n", "{}", outcome.stderr);
    // Layers contain device nodes; what they stand for stays shut.
    let outcome = world.sh("mknod /tmp/disk b 259 0 && mknod /tmp/mem c 1 1 && mknod /tmp/n c 1 3 && echo made; echo ok > /tmp/n && cat /tmp/mem; cat /tmp/disk").await;
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code), ("made\n", 1), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{}", outcome.stderr);
}

pub async fn a_device_of_its_own(world: World) {
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

pub async fn no_network(world: World) {
    let mut container = world.container();
    container.network = Network::None;
    let outcome =
        world.run(container, shell("ls /sys/class/net; ping -c1 -W60 127.0.0.1 >/dev/null && echo up; cat /proc/net/route | wc -l")).await;
    assert_eq!(outcome.stdout, "lo\nup\n1\n", "{outcome:?}");
    let host = world.sh("ls /proc/self/ns/net -l | sed 's/.*-> //'").await.stdout;
    assert_eq!(host.trim(), fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
}

pub async fn limits_of_resources(world: World) {
    let mut container = world.container();
    container.resources =
        Resources { memory: Some(64 << 20), cpu_quota: Some(50_000), cpu_shares: Some(512), pids: Some(50), ..Resources::default() };
    let script = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares pids/pids.max 2>/dev/null || \
                  cat memory.max cpu.max pids.max";
    let outcome = world.run(container, shell(script)).await;
    assert!(["67108864\n50000\n512\n50\n", "67108864\n50000 100000\n50\n"].contains(&outcome.stdout.as_str()), "{outcome:?}");
}

pub async fn out_of_memory_is_told(world: World) {
    let mut container = world.container();
    container.resources.memory = Some(16 << 20);
    container.resources.memory_swap = Some(16 << 20);
    let outcome = world.run(container, shell("tail -c 64m /dev/zero > /dev/null")).await;
    assert!(outcome.exit.oom_killed && outcome.exit.code != 0, "{outcome:?}");
}

pub async fn escapes_are_refused(world: World) {
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
