//! What strangers' code might try to get out of a step, or to have the daemon do outside of it; all of it fails, for root's daemon as for an
//! ordinary user's, and whichever runtime makes the container.
//!
//! `probe.rs` is the part that runs inside. Here are the ways that lead through the builder: links in images, caches and contexts, paths that
//! climb, descriptors as paths, races, privileges that nobody granted.
//!
//! Needs root, runc, crun, Debian's busybox-static, and the toolchain that these tests were built with (for the probe).
#![allow(clippy::unwrap_used)]
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use testkit::{Daemon, Tar};

/// What only the host's files hold, and what an image holds under the same paths.
const SECRET: &str = "of-the-host";
const DECOY: &str = "of-the-image";

struct House {
    daemon: Daemon,
    /// Containers are made by an OCI runtime.
    other_runtime: bool,
    dir: tempfile::TempDir,
    /// On the host, for everybody to read: what a step must not reach.
    outside: PathBuf,
}

impl House {
    fn new(daemon: Daemon) -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-escape").tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("kept/empty")).unwrap();
        fs::write(outside.join("secret"), SECRET).unwrap();
        fs::write(outside.join("passwd"), "hostonly:x:7:7::/:/bin/sh\n").unwrap();
        let context = dir.path().join("context");
        fs::create_dir(&context).unwrap();
        compile_probe(&context.join("probe"));
        fs::copy(context.join("probe"), outside.join("tool")).unwrap();
        fs::copy("/bin/busybox", context.join("busybox")).unwrap();
        for path in [dir.path(), &outside, &outside.join("tool"), &outside.join("kept"), &outside.join("kept/empty")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        Self { daemon, other_runtime: false, dir, outside }
    }

    fn context(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    /// A build of busybox, the probe, a decoy and then `text`, in which `{outside}` is the host's directory. Whether it succeeds, and what it
    /// prints. Whatever it does, the host's secret is not in it and the host's files are what they were.
    fn build(&self, text: &str) -> (bool, String) {
        let before = inventory(&self.outside);
        let base = "FROM scratch AS base
COPY busybox /bin/busybox
COPY probe /probe
SHELL [\"/bin/busybox\", \"sh\", \"-c\"]
RUN /bin/busybox --install -s /bin; mkdir -p {outside} /tmp /etc; echo of-the-image > {outside}/secret; cp -a /bin/busybox {outside}/decoy
FROM base AS first
";
        let dockerfile = (base.to_owned() + text).replace("{outside}", self.outside.to_str().unwrap());
        fs::write(self.context().join("Dockerfile"), dockerfile).unwrap();
        let context = self.context();
        let output = self.daemon.kiln(&["build", "--progress", "plain", context.to_str().unwrap()]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains(SECRET), "the host's file came in:\n{text}\n{said}");
        assert!(!said.contains("ESCAPED"), "{text}\n{said}");
        assert_eq!(inventory(&self.outside), before, "the host's files changed:\n{text}\n{said}");
        (output.status.success(), said)
    }

    /// The build finds what the image has where the host has its secret.
    fn stays_inside(&self, text: &str) {
        let (success, said) = self.build(&format!("{text}RUN test \"$(cat /found)\" = {DECOY}\n"));
        assert!(success, "{text}\n{said}");
    }

    fn refuses(&self, text: &str, why: &str) {
        let (success, said) = self.build(text);
        assert!(!success && said.contains(why), "{text}\n{said}");
    }
}

/// Names, sizes and times.
fn inventory(dir: &Path) -> Vec<(PathBuf, u64, i64, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let meta = entry.metadata().unwrap();
        found.push((entry.path(), if meta.is_dir() { 0 } else { meta.len() }, meta.mtime(), meta.mode()));
        if meta.is_dir() {
            found.extend(inventory(&entry.path()));
        }
    }
    found.sort();
    found
}

/// Static, so that it runs in any root.
fn compile_probe(to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/escape/probe.rs");
    let rustc = option_env!("RUSTC").unwrap_or("rustc");
    let compiled =
        Command::new(rustc).args(["--edition", "2024", "-C", "target-feature=+crt-static", "-o"]).arg(to).arg(source).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}

/// A process of the host, for steps to look for.
struct Bystander(Child);

impl Bystander {
    fn start() -> Self {
        Self(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With a daemon of root whose steps are made by that runtime.
fn with_runtime(name: &str) -> House {
    let path = std::env::split_paths(&std::env::var_os("PATH").unwrap()).map(|dir| dir.join(name)).find(|path| path.is_file());
    let binary = path.unwrap_or_else(|| panic!("{name} is not installed"));
    House { other_runtime: true, ..House::new(Daemon::start(&["--oci-worker-binary", binary.to_str().unwrap()])) }
}

macro_rules! for_all {
    ($($name:ident)*) => {
        mod rootful {
            $(#[test] fn $name() { super::$name(&super::House::new(testkit::Daemon::start(&[]))) })*
        }
        mod rootless {
            $(#[test] fn $name() { super::$name(&super::House::new(testkit::Daemon::start_rootless(&[]))) })*
        }
        mod with_runc {
            $(#[test] fn $name() { super::$name(&super::with_runtime("runc")) })*
        }
        mod with_crun {
            $(#[test] fn $name() { super::$name(&super::with_runtime("crun")) })*
        }
    };
}

for_all! {
    the_kernel_refuses
    masks_hold_whatever_is_mounted_beside_them
    links_are_followed_inside
    archives_unpack_inside
    nothing_is_made_or_removed_outside
    descriptors_of_the_helper_lead_nowhere
    a_race_for_a_mount_stays_inside
    writes_of_the_helper_go_to_the_kernel
    privileges_need_a_grant
    networks_without_the_host_show_nothing_of_it
}

fn the_kernel_refuses(house: &House) {
    let bystander = Bystander::start();
    let disk = fs::metadata("/").unwrap().dev();
    let text = format!(
        "RUN [\"/probe\", \"kernel\", \"{}\", \"{}\", \"{}\", \"{}\"]\n",
        rustix::fs::major(disk),
        rustix::fs::minor(disk),
        bystander.0.id(),
        house.outside.join("kept").display(),
    );
    let (success, said) = house.build(&text);
    let refused = said.lines().filter(|line| line.contains(" refused ")).count();
    assert!(success && refused >= 25, "{refused} tries: {said}");
}

/// CVE-2025-31133 and CVE-2025-52565: what is bound over a masked path, or as the console, is not taken from where a user may have put a link.
fn masks_hold_whatever_is_mounted_beside_them(house: &House) {
    let plant = "RUN --mount=type=cache,id=dev,target=/c cd /c; for n in null console ptmx pts/ptmx; do mkdir -p pts; ln -s /proc/sys/kernel/core_pattern $n; done\n";
    let over_dev = format!("{plant}RUN --mount=type=cache,id=dev,target=/dev [\"/probe\", \"masks\"]\n");
    let beside = "RUN --mount=type=tmpfs,target=/proc/acpi --mount=type=tmpfs,target=/sys/firmware [\"/probe\", \"masks\"]\n";
    let links = "RUN rm -rf /proc /sys; ln -s /p /proc; ln -s /s /sys; mkdir -p /p /s\nRUN [\"/probe\", \"masks\"]\n";
    if house.other_runtime {
        // What such a runtime cannot do safely it is not asked to do, or does not do.
        house.refuses(&over_dev, "cannot mount over /dev");
        house.build(beside);
        house.build(links);
        assert!(house.build("RUN [\"/probe\", \"masks\"]\n").0);
    } else {
        let (success, said) = house.build(&(over_dev + beside + links));
        assert!(success, "{said}");
    }
}

/// Symlinks that are absolute or climb, in images, caches and contexts: CVE-2024-23651 and its like.
fn links_are_followed_inside(house: &House) {
    let links = "RUN ln -s {outside} /abs; ln -s ../../../../../../../../../../..{outside} /up; ln -s /abs /twice\n";
    for source in ["/abs", "/up", "/twice", "../../../../../../../../../..{outside}"] {
        for way in [
            format!("COPY --from=first {source}/secret /found\n"),
            format!("RUN --mount=type=bind,from=first,source={source},target=/m cat /m/secret > /found\n"),
            format!("RUN --mount=type=cache,from=first,id=e{source},source={source},target=/m cat /m/secret > /found\n"),
        ] {
            house.stays_inside(&format!("{links}FROM base\n{way}"));
        }
    }
    // A cache that a step has filled: what its links name is not there, or is the cache's own.
    let fill = "RUN --mount=type=cache,id=links,target=/c ln -sfn {outside} /c/abs; ln -sfn ../../../../../../..{outside} /c/up\n";
    for source in ["abs", "up", "../../../../../..{outside}"] {
        house.build(&format!("{fill}RUN --mount=type=cache,id=links,source={source},target=/m cat /m/secret > /found; ls -la /m\n"));
    }
    // In the client's context.
    symlink(&house.outside, house.context().join("abs")).unwrap();
    house.build("COPY abs/secret /found\nRUN cat /found\n");
    house.build("ADD abs /found\nRUN cat /found /found/secret\n");
    fs::remove_file(house.context().join("abs")).unwrap();
    // Accounts are the image's.
    house.refuses("RUN rm -f /etc/passwd; ln -s {outside}/passwd /etc/passwd\nUSER hostonly\nRUN id\n", "hostonly");
    house.stays_inside("RUN ln -s {outside} /w\nWORKDIR /w\nRUN cat secret > /found\n");
}

/// Tars that plant links and write through them.
fn archives_unpack_inside(house: &House) {
    let outside = house.outside.to_str().unwrap();
    let climbing = format!("../../../../../../../../../..{outside}/planted");
    let tars = [
        Tar::new().symlink("l", outside).file("l/planted", 0o644, "x"),
        Tar::new().symlink("l", &format!("../../../../../../../../../..{outside}")).file("l/planted", 0o644, "x"),
        Tar::new().file(&climbing, 0o644, "x"),
        Tar::new().file(&format!("{outside}/planted"), 0o644, "x"),
        Tar::new().entry("h", b'1', 0o644, &format!("{outside}/secret"), b"").file("h", 0o644, "changed"),
        Tar::new().symlink("l", outside).entry("l/secret", b'1', 0o644, "l/secret", b""),
        Tar::new().symlink("l", &format!("{outside}/planted")).file("l", 0o644, "x"),
        Tar::new().symlink("l", outside).dir("l/planted", 0o777),
        Tar::new().symlink("l", outside).file("l/.wh.secret", 0o644, ""),
        Tar::new().symlink("l", outside).symlink("l/planted", "/"),
    ];
    for (number, tar) in tars.into_iter().enumerate() {
        fs::write(house.context().join("evil.tar"), tar.finish()).unwrap();
        // Some are refused; what matters is the host, which `build` looks at.
        house.build(&format!("ADD evil.tar /into{number}/\nRUN cat /into{number}/l/secret /into{number}/h; true\n"));
    }
    fs::remove_file(house.context().join("evil.tar")).unwrap();
}

/// Mount points, working directories and copies whose way leads through links; stubs that a step moves away (CVE-2024-23652).
fn nothing_is_made_or_removed_outside(house: &House) {
    let links = "RUN ln -s {outside} /abs; ln -s ../../../../../../..{outside} /up\n";
    for way in ["/abs", "/up"] {
        for text in [
            format!("RUN --mount=type=cache,id=w,target={way}/made touch {way}/made/x\n"),
            format!("RUN --mount=type=tmpfs,target={way}/made touch {way}/made/x\n"),
            format!("RUN --mount=type=cache,id=w,target={way} touch {way}/planted\n"),
            format!("WORKDIR {way}/made\nRUN touch planted\n"),
            format!("COPY busybox {way}/planted\n"),
            format!("COPY --link busybox {way}/planted\n"),
            format!("RUN touch {way}/planted; chmod 700 {way}\n"),
        ] {
            let (success, said) = house.build(&(links.to_owned() + &text));
            assert!(success, "{text}\n{said}");
        }
    }
    for text in [
        "RUN --mount=type=tmpfs,target=/a/kept/empty mv /a /b; ln -s {outside} /a\n",
        "RUN --mount=type=tmpfs,target=/a/kept/empty rmdir /a/kept; mv /a/kept /gone; ln -s {outside}/kept /a/kept; ls -l /a\n",
        "RUN --mount=type=bind,source=busybox,target=/a/secret mv /a /b; ln -s {outside} /a\n",
    ] {
        house.build(text);
    }
}

/// CVE-2024-21626: paths through descriptors that the helper has open while it makes the container.
fn descriptors_of_the_helper_lead_nowhere(house: &House) {
    let up = "../../../../../../../../../../..";
    for number in 3..12 {
        house.build(&format!(
            "WORKDIR /proc/self/fd/{number}\nRUN cat {up}{{outside}}/secret; cat /proc/self/cwd/{up}{{outside}}/secret; true\n"
        ));
        house.build(&format!("RUN [\"/proc/self/fd/{number}/{up}{{outside}}/tool\"]\n"));
        house.build(&format!("RUN printf '#!/proc/self/fd/{number}/{up}{{outside}}/tool\\n' > /s; chmod 755 /s\nRUN [\"/s\"]\n"));
    }
    // The helper's own program is not to be had either (CVE-2019-5736).
    for program in ["/proc/self/exe", "/s"] {
        let (success, said) =
            house.build(&format!("RUN printf '#!/proc/self/exe\\n' > /s; chmod 755 /s\nRUN [\"{program}\", \"kernel\"]\n"));
        assert!(!success, "{said}");
    }
}

/// CVE-2025-52881 and its like: what the helper writes about a process to /proc is not to go to a file that the step's mounts put there.
fn writes_of_the_helper_go_to_the_kernel(house: &House) {
    let fake = "for d in self thread-self self/attr/apparmor thread-self/attr/apparmor 1 sys/kernel; do mkdir -p /c/$d; done; \
        for f in self/attr/exec thread-self/attr/exec self/attr/apparmor/exec self/setgroups self/uid_map self/gid_map self/oom_score_adj \
        thread-self/attr/apparmor/exec sys/kernel/core_pattern; do echo untouched > /c/$f; chmod 666 /c/$f; done";
    let (success, said) = house.build(&format!("RUN --mount=type=cache,id=proc,target=/c {fake}\n"));
    assert!(success, "{said}");
    // Some runtimes refuse such a mount, which is as good.
    for user in ["0", "1:1"] {
        house.build(&format!("USER {user}\nRUN --mount=type=cache,id=proc,target=/proc true\n"));
    }
    let (success, said) = house.build(
        "RUN --mount=type=cache,id=proc,target=/c test $(find /c -type f | xargs cat | sort | uniq -c | xargs | tr ' ' -) = 9-untouched\n",
    );
    assert!(success, "{said}");
}

/// A step swaps a directory of a shared cache for a link, again and again, while others mount it.
fn a_race_for_a_mount_stays_inside(house: &House) {
    let swaps = "i=0; while [ ! -e /c/stop ] && [ $i -lt 20000 ]; do i=$((i+1)); mkdir -p /c/d/e; mv /c/d /c/x; ln -s {outside} /c/d; rm /c/d; mv /c/x /c/d; done";
    let mount = "RUN --mount=type=cache,id=race,source=d,target=/m cat /m/secret";
    let mounts: String = (0..12).map(|n| format!("FROM first AS m{n}\n{mount} /n{n}; true\n")).collect();
    let copies: String = (0..12).map(|n| format!("RUN --mount=from=m{n},target=/m{n} true\n")).collect();
    house.build(&format!(
        "RUN --mount=type=cache,id=race,target=/c rm -rf /c/*; mkdir -p /c/d/e\nFROM first AS swap\n\
         RUN --mount=type=cache,id=race,target=/c {swaps}; true\n{mounts}FROM base\n{copies}RUN --mount=type=cache,id=race,target=/c touch /c/stop\n\
         RUN --mount=from=swap,target=/s true\n"
    ));
}

/// CVE-2024-23653 and its like.
fn privileges_need_a_grant(house: &House) {
    house.refuses("RUN --security=insecure true\n", "security.insecure is not allowed");
    house.refuses("RUN --network=host true\n", "network.host is not allowed");
    // What the client grants the operator must grant too; and no cgroup lies outside of the cgroups.
    let context = house.context();
    let output = house.daemon.kiln(&["build", "--allow", "security.insecure", context.to_str().unwrap()]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("granting entitlement security.insecure is not allowed by build daemon configuration"), "{said}");
    assert!(house.build("RUN true\n").0);
    let place = format!("cgroup-parent=../../../../../..{}", house.outside.display());
    let output = house.daemon.kiln(&["build", "--no-cache", "--opt", &place, context.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("leads upwards"), "{said}");
    assert!(!house.outside.join("buildkit").exists());
}

/// Abstract sockets belong to a network namespace, and so do the machine's ports.
fn networks_without_the_host_show_nothing_of_it(house: &House) {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("kiln-escape-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let (success, said) = house.build(&format!(
        "RUN --network=none test $(grep -c {name} /proc/net/unix) = 0 && test $(ls /sys/class/net | wc -l) = 1 && test $(wc -l < /proc/net/tcp) = 1\n"
    ));
    assert!(success, "{said}");
    // Where the host's network is shared, as by default, its abstract sockets are too: the daemon has none.
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!sockets.lines().any(|line| line.contains("@kiln-sandbox") || line.contains("@kiln/")), "{sockets}");
}
