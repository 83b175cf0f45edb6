//! What others make of kiln's images: skopeo, umoci, containerd and a Docker engine, all as Debian packages them.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use testkit::{Daemon, PATIENCE, Registry, busybox_image, read_tar, wait_until};

const NAME: &str = "docker.io/library/accepted:v1";

/// An image with everything that a layer can hold and take away. Times are whole seconds: layers cut off what is below, a tar of files rounds it.
const DOCKERFILE: &str = "FROM base AS files\n\
    RUN mkdir -p /data/sub /data/gone /opaque && echo old > /opaque/old && echo 1 > /data/file && ln /data/file /data/sub/hard \\\n\
        && ln -s ../file /data/sub/soft && echo 2 > /data/gone/x && chown 12:34 /data/sub && chmod 1777 /data && echo 3 > /data/suid && chmod 4755 /data/suid \\\n\
        && touch -d '2001-02-03 04:05:06' /data/file /data/suid\n\
    RUN rm -r /data/gone /opaque && mkdir /opaque && echo new > /opaque/new && touch -d '2002-03-04 05:06:07' /opaque/new '/data/name with spaces é'\n\
    CMD [\"sh\", \"-c\", \"cat /opaque/* /data/sub/soft; id -u; test ! -e /data/gone\"]\n\
    USER 12\n";

/// A build in as many forms as the test wants.
struct Made {
    daemon: Daemon,
    _registry: Registry,
    context: tempfile::TempDir,
}

impl Made {
    fn new() -> Self {
        let registry = Registry::start();
        registry.push("base", "latest", &busybox_image());
        let context = tempfile::tempdir().unwrap();
        let dockerfile = DOCKERFILE.replace("FROM base", &format!("FROM {}/base:latest", registry.host()));
        fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        Self { daemon: Daemon::start(&[]), _registry: registry, context }
    }

    /// Exports to `name` in the daemon's home.
    fn export(&self, name: &str, output: &str) -> PathBuf {
        let path = self.daemon.home().join(name);
        let output = output.replace("DEST", path.to_str().unwrap());
        self.daemon.ok(&["build", "-o", &output, self.context.path().to_str().unwrap()]);
        path
    }

    /// The files alone, with their owners, which a local export leaves to the client.
    fn tree(&self) -> BTreeMap<String, String> {
        let (archive, tree) = (self.export("tree.tar", "type=tar,dest=DEST"), self.daemon.home().join("tree"));
        fs::create_dir(&tree).unwrap();
        run("tar", &["-xpf", archive.to_str().unwrap(), "-C", tree.to_str().unwrap(), "--same-owner", "--numeric-owner"]);
        listing(&tree)
    }

    /// An OCI layout, as a directory.
    fn layout(&self, name: &str, attributes: &str) -> PathBuf {
        self.export(name, &format!("type=oci,tar=false,dest=DEST,name={NAME}{attributes}"))
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{told}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// What a tree is, by path: everything but directory times, which unpackers make up where a layer does not say them.
fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_dir() => {
                    waiting.push(path.clone());
                    String::new()
                }
                kind if kind.is_symlink() => path.read_link().unwrap().display().to_string(),
                _ => format!("{} {} {}", metadata.mtime(), metadata.nlink(), oci::Digest::of(fs::read(&path).unwrap())),
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, format!("{:o} {}:{} {content}", metadata.mode(), metadata.uid(), metadata.gid()));
        }
    }
    found
}

#[test]
fn skopeo_reads_and_converts_it() {
    let made = Made::new();
    for attributes in ["", ",compression=zstd,force-compression=true", ",compression=estargz,force-compression=true"] {
        let layout = made.layout(&format!("layout{}", attributes.len()), attributes);
        let from = format!("oci:{}:v1", layout.display());
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let told: Value = serde_json::from_str(&run("skopeo", &["inspect", &from])).unwrap();
        assert_eq!(told["Digest"], index["manifests"][0]["digest"], "{attributes}");
        assert_eq!((&told["Os"], told["Layers"].as_array().unwrap().len()), (&"linux".into(), 3));

        if attributes.contains("zstd") {
            // This version makes no archive for Docker of such layers; it reads them, and compares what it reads with their digests.
            let copy = made.daemon.home().join("copy");
            run("skopeo", &["--insecure-policy", "copy", "-q", &from, &format!("dir:{}", copy.display())]);
            continue;
        }
        // To what old versions of `docker load` read: plain layers, whose digests skopeo compares with the config's.
        let archive = made.daemon.home().join(format!("docker{}.tar", attributes.len()));
        run("skopeo", &["--insecure-policy", "copy", "-q", &from, &format!("docker-archive:{}:accepted:v1", archive.display())]);
        let entries = read_tar(&fs::read(&archive).unwrap());
        let list: Value = serde_json::from_slice(&entries["manifest.json"].data).unwrap();
        let config: Value = serde_json::from_slice(&entries[list[0]["Config"].as_str().unwrap()].data).unwrap();
        assert_eq!((&list[0]["RepoTags"][0], &config["config"]["User"]), (&NAME.into(), &"12".into()));
        for (layer, diff_id) in list[0]["Layers"].as_array().unwrap().iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
            assert_eq!(diff_id, oci::Digest::of(&entries[layer.as_str().unwrap()].data).as_str(), "{attributes}");
        }
    }
}

#[test]
fn umoci_unpacks_the_tree_that_a_tar_export_is() {
    let made = Made::new();
    let tree = made.tree();
    assert!(tree.contains_key("data/sub/hard") && !tree.contains_key("data/gone"), "{tree:#?}");
    for attributes in ["", ",compression=uncompressed,force-compression=true", ",compression=estargz,force-compression=true"] {
        let layout = made.layout(&format!("layout{}", attributes.len()), attributes);
        let bundle = made.daemon.home().join(format!("bundle{}", attributes.len()));
        run("umoci", &["unpack", "--image", &format!("{}:v1", layout.display()), bundle.to_str().unwrap()]);
        assert_eq!(listing(&bundle.join("rootfs")), tree, "{attributes}");
    }
}

/// A containerd of our own.
struct Containerd {
    child: Child,
    home: tempfile::TempDir,
}

impl Containerd {
    fn start() -> Self {
        let home = tempfile::Builder::new().prefix("kiln-containerd-").tempdir().unwrap();
        let path = |name: &str| home.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("c.sock"),
            path("t.sock")
        );
        fs::write(home.path().join("config.toml"), config).unwrap();
        let log = fs::File::create(home.path().join("log")).unwrap();
        let mut command = Command::new("containerd");
        command.args(["--config", &path("config.toml")]).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut containerd = Self { child: command.spawn().unwrap(), home };
        wait_until("containerd", PATIENCE, || {
            let ended = containerd.child.try_wait().unwrap();
            assert!(ended.is_none(), "containerd: {ended:?}\n{}", fs::read_to_string(containerd.home.path().join("log")).unwrap());
            let status = containerd.ctr(&["version"]).output().unwrap().status;
            status.success().then_some(())
        });
        containerd
    }

    fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.home.path().join("c.sock")).args(args).stdin(Stdio::null());
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.ctr(args).output().unwrap();
        let (out, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "ctr {args:?}: {out}{told}\n{}", fs::read_to_string(self.home.path().join("log")).unwrap());
        out
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

#[test]
fn containerd_imports_and_unpacks_it() {
    let made = Made::new();
    let tree = made.tree();
    let containerd = Containerd::start();
    for attributes in ["", ",compression=zstd,force-compression=true"] {
        let name = format!("docker.io/library/accepted:{}", attributes.len());
        let archive = made.export(&format!("image{}.tar", attributes.len()), &format!("type=oci,dest=DEST,name={name}{attributes}"));
        containerd.ok(&["image", "import", "--no-unpack", archive.to_str().unwrap()]);
        assert!(containerd.ok(&["image", "check"]).lines().any(|line| line.starts_with(&name) && line.contains("complete")));
        let target = tempfile::tempdir().unwrap();
        let place = target.path().to_str().unwrap();
        containerd.ok(&["image", "mount", &name, place]);
        let mounted = listing(target.path());
        containerd.ok(&["image", "unmount", "--rm", place]);
        assert_eq!(mounted, tree, "{attributes}");
    }
}

/// A Docker engine of our own, which touches nothing of the machine's network.
struct Docker {
    child: Child,
    home: tempfile::TempDir,
    /// It would start one itself, and give up if that takes it more than fifteen seconds.
    _containerd: Containerd,
}

impl Docker {
    fn start() -> Self {
        let home = tempfile::Builder::new().prefix("kiln-docker-").tempdir().unwrap();
        let path = |name: &str| home.path().join(name).display().to_string();
        let log = fs::File::create(home.path().join("log")).unwrap();
        let containerd = Containerd::start();
        let mut command = Command::new("dockerd");
        command.arg("--containerd").arg(containerd.home.path().join("c.sock"));
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--host", &format!("unix://{}", path("d.sock"))]);
        command.args(["--data-root", &path("root"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("dockerd is installed");
        let mut docker = Self { child, home, _containerd: containerd };
        wait_until("dockerd", PATIENCE, || {
            let ended = docker.child.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd: {ended:?}\n{}", docker.log());
            docker.docker(&["version"]).output().unwrap().status.success().then_some(())
        });
        docker
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap()
    }

    fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.home.path().join("d.sock").display())).args(args);
        command.env("DOCKER_CONFIG", self.home.path()).stdin(Stdio::null());
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.docker(args).output().unwrap();
        let (out, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "docker {args:?}: {out}{told}\n{}", self.log());
        out
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

#[test]
fn a_docker_engine_loads_and_runs_it() {
    let made = Made::new();
    let docker = Docker::start();
    let archive = made.export("docker.tar", &format!("type=docker,dest=DEST,name={NAME}"));
    assert_eq!(docker.ok(&["load", "--input", archive.to_str().unwrap()]).trim(), "Loaded image: accepted:v1");
    assert_eq!(docker.ok(&["run", "--rm", "--network", "none", "accepted:v1"]), "new\n1\n12\n");
    let config: Value = serde_json::from_str(&docker.ok(&["image", "inspect", "accepted:v1"])).unwrap();
    let manifest: Value = serde_json::from_slice(&read_tar(&fs::read(&archive).unwrap())["manifest.json"].data).unwrap();
    let digest = manifest[0]["Config"].as_str().unwrap().rsplit('/').next().unwrap();
    assert_eq!(config[0]["Id"], format!("sha256:{digest}"), "the config's bytes are what they were");
}
