//! Networks of containers, each test in a network namespace of its own: the test is executed again under unshare(1). Needs root, busybox-static, runc,
//! crun, iproute2 and containernetworking-plugins.
#![allow(clippy::unwrap_used, reason = "tests")]
#[allow(dead_code)]
mod world;

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sandbox::network::{Bridge, Cni, Mode, Networks, Setup};
use sandbox::{Builtin, Container, Mount, MountSource, Network, OciRuntime, Process, Runtime, SandboxError, Security, Settings};
use world::{World, shell};

const INSIDE: &str = "KILN_TEST_INSIDE";

/// Runs the test in a new network namespace, with loopback up.
fn apart(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(600), test).await.expect("the test ends") });
        return;
    }
    assert!(rustix::process::geteuid().is_root(), "networks need root");
    let again = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&again.stdout), String::from_utf8_lossy(&again.stderr));
    assert!(again.status.success() && told.contains("1 passed"), "{told}");
    print!("{told}");
}

fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn bridged() -> Setup {
    Setup { mode: Mode::Bridge(Bridge { name: "kilntest0".into(), subnet: "10.77.0.0/24".parse().unwrap() }), ..Setup::default() }
}

fn builtin(settings: Settings) -> Result<Box<dyn Runtime>, SandboxError> {
    Ok(Box::new(Builtin::new(settings)?))
}

fn external(name: &str, settings: Settings) -> Result<Box<dyn Runtime>, SandboxError> {
    let binary = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
    let binary = binary.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{name} is installed"));
    Ok(Box::new(OciRuntime::new(binary, settings)?))
}

type Make = fn(Settings) -> Result<Box<dyn Runtime>, SandboxError>;

fn world(make: Make, setup: Setup) -> (World, Networks) {
    let mut networks = None;
    let world = World::new(|mut settings| {
        settings.networks = Networks::open(setup, &settings.state.join("network")).unwrap();
        networks = Some(settings.networks.clone());
        make(settings)
    });
    (world, networks.unwrap())
}

macro_rules! with_each_runtime {
    ($($test:ident)*) => {
        mod with_builtin {
            $(#[test] fn $test() { super::apart(concat!("with_builtin::", stringify!($test)), super::$test(super::builtin)) })*
        }
        mod with_runc {
            $(#[test] fn $test() { super::apart(concat!("with_runc::", stringify!($test)), super::$test(|s| super::external("runc", s))) })*
        }
        mod with_crun {
            $(#[test] fn $test() { super::apart(concat!("with_crun::", stringify!($test)), super::$test(|s| super::external("crun", s))) })*
        }
    };
}

with_each_runtime! {
    a_bridge_leads_outside_and_not_in
    names_hold_in_each_network
    plugins_connect_a_container
    an_enclosure_leads_to_its_listener_only
}

/// The world outside: a namespace with a network of its own, which knows no way to the bridge.
struct Outside(Child);

const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

impl Outside {
    fn new() -> Self {
        let mut child =
            Command::new("unshare").args(["--net", "--", "sh", "-c", "echo; exec sleep 600"]).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let outside = Self(child);
        ip(&format!("link add up0 type veth peer name up1 netns {}", outside.0.id()));
        ip(&format!("addr add {NEAR}/24 dev up0"));
        ip("link set up0 up");
        outside.within(|| {
            ip("link set lo up");
            ip(&format!("addr add {FAR}/24 dev up1"));
            ip("link set up1 up");
        });
        outside
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::scope(|scope| {
            let enter_and_work = || {
                rustix::thread::move_into_link_name_space(namespace.as_fd(), None).unwrap();
                work()
            };
            scope.spawn(enter_and_work).join().unwrap()
        })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Greets whoever comes first; who that was.
fn greet(listener: TcpListener) -> std::thread::JoinHandle<SocketAddr> {
    std::thread::spawn(move || {
        let (mut connection, peer) = listener.accept().unwrap();
        connection.write_all(b"hello\n").unwrap();
        peer
    })
}

async fn a_bridge_leads_outside_and_not_in(make: Make) {
    let (world, networks) = world(make, bridged());
    let outside = Outside::new();
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");

    // Out, with the machine's address.
    let server = outside.within(|| TcpListener::bind((FAR, 7001)).unwrap());
    let greeted = greet(server);
    let outcome = world.sh(&format!("nc -w 60 {FAR} 7001 < /dev/null; ip -o -4 addr show eth0; ip route; ip -o link show lo")).await;
    assert!(outcome.stdout.starts_with("hello\n"), "{outcome:?}");
    assert!(outcome.stdout.contains("inet 10.77.0.") && outcome.stdout.contains("default via 10.77.0.1"), "{outcome:?}");
    assert!(outcome.stdout.contains("LOOPBACK,UP"), "{outcome:?}");
    assert_eq!(greeted.join().unwrap().ip(), IpAddr::V4(NEAR));

    // The gateway is the machine; its loopback is not.
    let greeted = greet(TcpListener::bind("10.77.0.1:7002").unwrap());
    assert_eq!(world.sh("nc -w 60 10.77.0.1 7002 < /dev/null").await.stdout, "hello\n");
    assert!(greeted.join().unwrap().ip().to_string().starts_with("10.77.0."));
    let own = TcpListener::bind("127.0.0.1:7003").unwrap();
    assert_ne!(world.sh("nc -w 1 127.0.0.1 7003 < /dev/null").await.exit.code, 0);
    drop(own);

    // Not in, though there is a way.
    outside.within(|| ip(&format!("route add 10.77.0.0/24 via {NEAR}")));
    let container = world.container();
    let (io, stdout, _) = world::capture();
    let script = "ip -o -4 addr show eth0 | sed 's,.*inet \\([0-9.]*\\)/.*,\\1,'; nc -l -p 7004 < /etc/hostname_or_not 2>/dev/null || echo hi | nc -l -p 7004";
    let running = world.runtime.create(container, shell(script), io).await.unwrap();
    let address = loop {
        let text = world::text(&stdout);
        if let Some((line, _)) = text.split_once('\n') {
            break line.trim().parse::<Ipv4Addr>().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let target = SocketAddr::from((address, 7004));
    let refused = outside.within(|| TcpStream::connect_timeout(&target, Duration::from_millis(700)).is_err());
    assert!(refused, "{address} can be reached from outside");
    // The machine itself gets there, so it was the filter.
    let mut told = String::new();
    let begun = std::time::Instant::now();
    loop {
        match TcpStream::connect_timeout(&target, Duration::from_secs(2)) {
            Ok(mut connection) => {
                connection.read_to_string(&mut told).unwrap();
                break;
            }
            Err(error) if begun.elapsed() > Duration::from_secs(60) => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    assert_eq!(told, "hi\n");
    running.wait().await.unwrap();
    drop(running);

    drop(world);
    networks.close().await;
    assert!(!ip("-o link").contains("kiln"), "{}", ip("-o link"));
}

async fn names_hold_in_each_network(make: Make) {
    for setup in [Setup::default(), Setup { mode: Mode::None, ..Setup::default() }, bridged()] {
        let mode = setup.mode.clone();
        let (world, networks) = world(make, setup);
        for network in [Network::Default, Network::Host, Network::None] {
            let container = Container {
                hostname: "builder7".into(),
                hosts: vec![("db.test".into(), "10.1.2.3".parse().unwrap())],
                network: network.clone(),
                ..world.container()
            };
            let process = Process { env: vec!["HTTPS_PROXY=http://p:1".into()], ..shell("") };
            let script = "hostname; grep -c 'db.test' /etc/hosts; grep -c builder7 /etc/hosts; grep -c ^nameserver /etc/resolv.conf; \
                          echo $HTTPS_PROXY; touch /etc/hosts; ls /sys/class/net | tr '\\n' ' '";
            let process = Process { args: shell(script).args, ..process };
            let outcome = world.run(container, Process { env: vec!["PATH=/bin".into(), process.env[0].clone()], ..process }).await;
            let lines: Vec<&str> = outcome.stdout.lines().collect();
            assert_eq!(lines[..3], ["builder7", "1", "1"], "{mode:?} {network:?} {outcome:?}");
            assert!(lines[3].parse::<u32>().unwrap() > 0, "{mode:?} {network:?} {outcome:?}");
            assert_eq!(lines[4], "http://p:1");
            assert!(outcome.stderr.contains("ead-only"), "{mode:?} {network:?} {outcome:?}");
            let links: Vec<&str> = lines[5].split_whitespace().collect();
            let expected: &[&str] = match (&network, &mode) {
                (Network::Default, Mode::Bridge(_)) => &["eth0", "lo"],
                (Network::Host, Mode::Bridge(_)) => {
                    assert!(links.contains(&"kilntest0"), "{links:?}");
                    continue;
                }
                _ => &["lo"],
            };
            assert_eq!(links, expected, "{mode:?} {network:?}");
        }
        drop(world);
        networks.close().await;
    }
}

async fn an_enclosure_leads_to_its_listener_only(make: Make) {
    let (world, networks) = world(make, bridged());
    let (enclosure, listener) = networks.enclosure().await.unwrap();
    let place = listener.local_addr().unwrap();
    let elsewhere = TcpListener::bind("0.0.0.0:7001").unwrap();
    let greeted = greet(listener);
    let container = Container { network: Network::Enclosed(std::sync::Arc::new(enclosure)), ..world.container() };
    let script = format!(
        "nc -w 60 {} {} < /dev/null; nc -w 1 {} 7001 < /dev/null || nc -w 1 10.77.0.1 7001 < /dev/null || echo nowhere; ip route",
        place.ip(),
        place.port(),
        place.ip()
    );
    let outcome = world.run(container, shell(&script)).await;
    assert!(outcome.stdout.starts_with("hello\nnowhere\n") && !outcome.stdout.contains("default"), "{outcome:?}");
    assert_eq!(greeted.join().unwrap().ip().to_string(), "10.89.0.2");
    drop(elsewhere);
    // The daemon's own way out is a container's.
    let outside = Outside::new();
    let greeted = greet(outside.within(|| TcpListener::bind((FAR, 7002)).unwrap()));
    let way = networks.way_out(&Network::Default).await.unwrap();
    way.connect(&FAR.to_string(), 7002).await.unwrap();
    assert_eq!(greeted.join().unwrap().ip(), IpAddr::V4(NEAR));
    let own = TcpListener::bind("127.0.0.1:7003").unwrap();
    assert!(way.connect("127.0.0.1", 7003).await.is_err());
    assert!(networks.way_out(&Network::Host).await.unwrap().connect("127.0.0.1", 7003).await.is_ok());
    drop(own);
}

/// A chain of Debian's plugins. Where they keep addresses is below `dir`.
fn plugged(dir: &Path) -> Setup {
    let config = dir.join("net.conflist");
    let text = format!(
        r#"{{"cniVersion": "1.0.0", "name": "kilntest", "plugins": [
            {{"type": "bridge", "bridge": "kilntest1", "isDefaultGateway": true,
              "ipam": {{"type": "host-local", "dataDir": "{}", "ranges": [[{{"subnet": "10.78.0.0/24"}}]]}}}},
            {{"type": "tuning", "mtu": 1400}}]}}"#,
        dir.join("addresses").display()
    );
    std::fs::write(&config, text).unwrap();
    let binaries = "/usr/lib/cni".into();
    assert!(Path::new("/usr/lib/cni/tuning").exists(), "containernetworking-plugins is installed");
    Setup { mode: Mode::Cni(Cni { config, binaries }), ..Setup::default() }
}

async fn plugins_connect_a_container(make: Make) {
    let dir = tempfile::tempdir().unwrap();
    let setup = plugged(dir.path());
    let (world, networks) = world(make, setup);
    let greeted = greet(TcpListener::bind("10.78.0.1:7001").unwrap());
    let outcome = world.sh("nc -w 60 10.78.0.1 7001 < /dev/null; cat /sys/class/net/eth1/mtu; ip -o link show lo").await;
    assert!(outcome.stdout.starts_with("hello\n1400\n") && outcome.stdout.contains("LOOPBACK,UP"), "{outcome:?}");
    assert_eq!(greeted.join().unwrap().ip().to_string(), "10.78.0.2");
    // A container with a name of its own is not given what another had, and nobody is given what it had.
    let named = Container { hostname: "db".into(), ..world.container() };
    let outcome = world.run(named, shell("ip -o -4 addr show eth1 | sed 's,.*inet \\([0-9.]*\\)/.*,\\1,'")).await;
    let address = outcome.stdout.trim().to_owned();
    assert!(address.starts_with("10.78.0.") && address != "10.78.0.2", "{outcome:?}");
    let addresses = dir.path().join("addresses/kilntest");
    while addresses.join(&address).exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let held = || std::fs::read_dir(&addresses).unwrap().flatten().filter(|e| e.file_name().to_string_lossy().starts_with("10.78")).count();
    assert!(held() > 0);
    drop(world);
    networks.close().await;
    assert_eq!(held(), 0);
}

#[test]
fn a_namespace_is_used_again_unless_its_step_could_change_it() {
    apart("a_namespace_is_used_again_unless_its_step_could_change_it", async {
        for network in [Network::Default, Network::None] {
            let (world, _networks) = world(builtin, bridged());
            let run = async |script: &str, security| {
                let container = Container { network: network.clone(), security, ..world.container() };
                world.run(container, shell(script)).await.stdout
            };
            let which = "readlink /proc/self/ns/net";
            // They come back behind the steps, if the kernel was not too slow to let go of them.
            let mut seen = HashSet::new();
            while seen.insert(run(which, Security::Sandbox).await) {}
            run("ip link set lo down", Security::Insecure).await;
            for _ in 0..8 {
                assert!(run("ip -o link show lo", Security::Sandbox).await.contains("LOOPBACK,UP"));
            }
            // Two at a time never share one: neither ends before both are there.
            let meeting = world.path("meeting");
            std::fs::create_dir_all(&meeting).unwrap();
            let together = async |name: &str| {
                let mount = Mount { dest: "/meeting".into(), source: MountSource::Bind { path: meeting.clone() }, readonly: false };
                let container = Container { network: network.clone(), mounts: vec![mount], ..world.container() };
                let script =
                    format!("{which}; touch /meeting/{name}; until [ -e /meeting/one ] && [ -e /meeting/two ]; do sleep 0.01; done");
                world.run(container, shell(&script)).await.stdout
            };
            let (one, two) = tokio::join!(together("one"), together("two"));
            assert!(!one.is_empty() && one != two, "{one} {two}");
        }
    });
}

#[test]
fn a_pool_is_filled_ahead() {
    apart("a_pool_is_filled_ahead", async {
        // Some kernels have more than loopback in every namespace.
        let links = || ip("-o link show").lines().count();
        let before = links();
        let (_world, networks) = world(builtin, Setup { pool: 3, ..bridged() });
        let ports = || ip("-o link show master kilntest0").lines().count();
        while ports() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        networks.close().await;
        assert_eq!(links(), before, "what was there before is left");
    });
}

/// The daemon's part of the next test.
#[test]
#[ignore = "is run by another test"]
fn holds_a_bridge_until_it_is_killed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let state = std::env::var_os("KILN_TEST_STATE").unwrap();
    let _networks = Networks::open(Setup { pool: 2, ..bridged() }, Path::new(&state)).unwrap();
    println!("\nready");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn what_a_killed_daemon_leaves_the_next_one_takes_over() {
    apart("what_a_killed_daemon_leaves_the_next_one_takes_over", async {
        let dir = tempfile::tempdir().unwrap();
        let links = || ip("-o link").lines().count();
        let before = links();
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holds_a_bridge_until_it_is_killed", "--nocapture", "--ignored"])
            .env("KILN_TEST_STATE", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(daemon.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap() == "ready"));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        // Namespaces and what is in them go with the process; the kernel takes its time.
        while links() > before + 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(ip("-o link").contains("kilntest0"));
        let networks = Networks::open(bridged(), dir.path()).unwrap();
        networks.close().await;
        assert!(!ip("-o link").contains("kilntest0"));
    });
}

#[test]
fn a_bridge_that_somebody_else_made_stays() {
    apart("a_bridge_that_somebody_else_made_stays", async {
        let dir = tempfile::tempdir().unwrap();
        ip("link add kilntest0 type bridge");
        Networks::open(bridged(), dir.path()).unwrap().close().await;
        assert!(ip("-o link").contains("kilntest0"));
        ip("link del kilntest0");
        ip("link add kilntest0 type veth peer name kilntest1");
        let error = Networks::open(bridged(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("is not a bridge"), "{error}");
    });
}

/// Figures mean something only for an optimised build on a quiet machine.
#[test]
#[ignore = "measures"]
fn the_price_of_a_network() {
    apart("the_price_of_a_network", async {
        let dir = tempfile::tempdir().unwrap();
        for (name, setup, network) in [
            ("host", Setup::default(), Some(Network::Host)),
            ("none", Setup::default(), Some(Network::None)),
            ("bridge", bridged(), Some(Network::Default)),
            ("CNI", plugged(dir.path()), Some(Network::Default)),
            ("proxy", Setup::default(), None),
        ] {
            let (world, networks) = world(builtin, setup);
            let mut each = Vec::new();
            for _ in 0..200 {
                let begun = std::time::Instant::now();
                let network = match &network {
                    Some(network) => network.clone(),
                    None => Network::Enclosed(std::sync::Arc::new(networks.enclosure().await.unwrap().0)),
                };
                let container = Container { network, ..world.container() };
                assert_eq!(world.run(container, Process::new(["/bin/true"])).await.exit.code, 0);
                each.push(begun.elapsed());
            }
            each.sort();
            println!("{name}: median {:?}, fastest {:?}, slowest {:?}", each[100], each[0], each[199]);
            drop(world);
            networks.close().await;
        }
    });
}
