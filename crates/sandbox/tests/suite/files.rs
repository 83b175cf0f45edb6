//! The container's file system.
use std::fs;

use bytes::Bytes;
use sandbox::{Mount, MountSource};
use snapshot::MountSpec;

use crate::world::{World, shell};

pub async fn hosts_and_hostname(world: World) {
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

pub async fn mounts_of_all_kinds(world: World) {
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

pub async fn mount_points_stay_in_the_root(world: World) {
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

pub async fn stubs_are_reported(world: World) {
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

pub async fn a_readonly_root(world: World) {
    let mut container = world.container();
    container.root_readonly = true;
    container.mounts = vec![mount("/scratch", MountSource::Tmpfs { size: None }, false)];
    let outcome = world.run(container, shell("touch /scratch/x && echo scratch; touch /x")).await;
    assert_eq!((outcome.stdout.as_str(), outcome.exit.code), ("scratch\n", 1));
    assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
}
