//! Layers of what no Dockerfile says: differences and merges, with files of every kind in them.
use std::fs;
use std::process::Stdio;

use llb::{Builder, Copy, Edge, ExecOp, FileAction, FileActionKind, FileOp, Graph, Meta, Metadata, Mount, MountKind, Op, SourceOp};
use serde_json::json;
use testkit::{BaseImage, Daemon, Registry, busybox_image};

use crate::{exported, tree};

/// Makes sockets: the log's, wherever its name leads.
const SOCKETS: &str = "socket() { ln -sf $1 /dev/log; syslogd -n -O /dev/null & until [ -S $1 ]; do :; done; kill -9 $!; wait; }; ";

/// On the base image.
const FIRST: &str = "mkdir -p /t/sub /t/opaque /t/dir2file/x /t/gone/deep /t/emptied /t/same && cd /t && echo one > file && echo kept > kept
    ln kept sub/hard; echo g > gone/deep/g; echo o > opaque/o; echo e > emptied/e; ln -s file link; mkfifo fifo; mknod dev c 1 3
    echo f > file2dir; echo f > file2socket; echo same > same/a; echo same > same/b; echo own > own; chown 5:6 own; chmod 4755 kept
    for s in socket socket2 socket2file gone/socket sub/socket; do socket /t/$s; done
    touch -d @1600000000 same same/a same/b file kept; echo moved > moved; echo x > /root/x; rm -r /tmp";

/// On the first.
const SECOND: &str = "cd /t && echo two >> file; rm -r gone opaque dir2file emptied/e file2dir file2socket socket2 socket2file link dev
    mkdir opaque file2dir; echo n > opaque/n; echo n > file2dir/n; echo f > dir2file; echo f > socket2file; socket /t/file2socket
    ln -s elsewhere link; mknod dev b 7 1; chmod 600 kept; chown 7:8 sub; mv moved renamed; ln file linked; touch -d @1600000000 same/a";

/// On the base image too, without knowing of the first.
const OTHER: &str = "mkdir -p /t/sub /t/same /t/own /t/other && cd /t && echo one > file && echo KEPT > kept && echo same > same/a && echo SAME > same/b
    echo o > own/o; ln file hard; ln kept other/hard; socket /t/socket; echo s > socket2; mkfifo file2socket; mkdir fifo
    touch -d @1600000000 same same/a same/b file kept; rm /etc/group; echo r > /root/r";

/// On a merge of all that.
const LAST: &str = "cd /t && rm -rf same sub/hard; echo last >> kept; chmod 711 other; mkdir -p opaque; echo z > opaque/z; rm -f file; mkdir file; socket /t/file/socket";

/// A result, and what BuildKit v0.32.0 makes of it, layer by layer above that of the base image where it has that.
struct Recorded {
    name: &'static str,
    has_base: bool,
    layers: &'static [&'static str],
}

const RECORDED: [Recorded; 0] = [];

struct Script(Builder);

impl Script {
    fn add(&mut self, op: Op, inputs: &[&Edge]) -> Edge {
        let platform = "linux/amd64".parse().unwrap();
        self.0.add(op, inputs.iter().map(|&edge| edge.clone()).collect(), Some(platform), Vec::new(), Metadata::default())
    }

    fn image(&mut self, registry: &Registry, name: &str) -> Edge {
        let identifier = format!("docker-image://{}/{name}:latest", registry.host());
        self.add(Op::Source(SourceOp { identifier, attrs: Default::default() }), &[])
    }

    fn run(&mut self, on: &Edge, script: &str) -> Edge {
        let args = ["/bin/sh", "-ec", &format!("{SOCKETS}{script}")].map(str::to_owned).to_vec();
        let root = Mount {
            dest: "/".into(),
            input: Some(0),
            selector: String::new(),
            output: Some(0),
            readonly: false,
            kind: MountKind::Bind,
            content_cache: Default::default(),
            result_id: String::new(),
        };
        let meta = Meta { args, cwd: "/".into(), env: vec!["PATH=/bin".into()], ..Default::default() };
        self.add(Op::Exec(Box::new(ExecOp { meta, mounts: vec![root], ..Default::default() })), &[on])
    }

    fn copy(&mut self, from: &Edge, src: &str, dest: &str) -> Edge {
        let copy = Copy { src: src.into(), dest: dest.into(), dir_copy_contents: true, create_dest_path: true, ..Copy::default() };
        let kind = FileActionKind::Copy(Box::new(copy));
        self.add(Op::File(FileOp { actions: vec![FileAction { input: None, secondary_input: Some(0), output: Some(0), kind }] }), &[from])
    }

    fn diff(&mut self, lower: &Edge, upper: &Edge) -> Edge {
        self.add(Op::Diff { lower: Some(0), upper: Some(1) }, &[lower, upper])
    }

    fn merge(&mut self, inputs: &[&Edge]) -> Edge {
        self.add(Op::Merge((0..inputs.len() as u32).map(Some).collect()), inputs)
    }
}

/// All results by name.
fn graphs(registry: &Registry) -> Vec<(&'static str, Graph)> {
    let mut script = Script(Builder::new());
    let (base, tree) = (script.image(registry, "base"), script.image(registry, "tree"));
    let (first, other) = (script.run(&base, FIRST), script.run(&base, OTHER));
    let second = script.run(&first, SECOND);
    let copied = script.copy(&second, "/t", "/");
    let (of_first, of_second, of_both) = (script.diff(&base, &first), script.diff(&first, &second), script.diff(&base, &second));
    let (apart, back) = (script.diff(&first, &other), script.diff(&second, &base));
    let (from_tree, to_tree) = (script.diff(&tree, &copied), script.diff(&copied, &tree));
    let merged = script.merge(&[&base, &of_second, &apart, &copied, &to_tree]);
    let last = script.run(&merged, LAST);
    let of_last = script.diff(&merged, &last);
    let unlike = script.diff(&other, &last);
    let again = script.merge(&[&of_last, &back]);
    let of_merged = script.copy(&last, "/t", "/copy");
    let results = [
        ("second", second),
        ("copied", copied),
        ("of_both", of_both),
        ("of_first", of_first),
        ("apart", apart),
        ("back", back),
        ("from_tree", from_tree),
        ("last", last),
        ("unlike", unlike),
        ("again", again),
        ("of_merged", of_merged),
    ];
    results.into_iter().map(|(name, edge)| (name, script.0.finish(Some(edge)))).collect()
}

#[test]
fn differences_and_merges_have_the_layers_that_buildkit_gives() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    registry.push("tree", "latest", &BaseImage::of_layers(vec![tree()], json!({})));
    if let Some(dir) = std::env::var_os("P1_RECORD") {
        let dir = std::path::PathBuf::from(dir);
        for (name, graph) in graphs(&registry) {
            fs::write(dir.join(name), graph.to_bytes()).unwrap();
        }
        fs::write(dir.join("ready"), "").unwrap();
        while dir.join("ready").exists() {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
    for flags in [&[][..], &["--oci-worker-snapshotter=native"]] {
        let daemon = Daemon::start(flags);
        for (name, graph) in graphs(&registry) {
            let (out, definition) = (daemon.home().join("image.tar"), daemon.home().join("definition"));
            fs::write(&definition, graph.to_bytes()).unwrap();
            let options = "rewrite-timestamp=true,source-date-epoch=1700000000,compression=uncompressed,force-compression=true";
            let mut command = daemon.kiln(&["build", "-o", &format!("type=oci,dest={},{options}", out.display())]);
            let output = command.stdin(Stdio::from(fs::File::open(definition).unwrap())).output().unwrap();
            assert!(output.status.success(), "{flags:?} {name}: {}", String::from_utf8_lossy(&output.stderr));
            let (layers, shown) = exported(&out);
            println!("{flags:?} {name} {layers:#?} {shown:#?}");
        }
    }
}
