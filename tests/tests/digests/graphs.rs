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
const FIRST: &str =
    "mkdir -p /t/sub /t/opaque /t/dir2file/x /t/gone/deep /t/emptied /t/same && cd /t && echo one > file && echo kept > kept
    ln kept sub/hard; echo g > gone/deep/g; echo o > opaque/o; echo e > emptied/e; ln -s file link; mkfifo fifo; mknod dev c 1 3
    echo f > file2dir; echo f > file2socket; echo same > same/a; echo same > same/b; echo own > own; chown 5:6 own; chmod 4755 kept
    for s in socket socket2 socket2file gone/socket sub/socket; do socket /t/$s; done
    touch -d @1600000000 same same/a same/b file kept; echo moved > moved; echo x > /root/x; rm -r /tmp";

/// On the first.
const SECOND: &str = "cd /t && echo two >> file; rm -r gone opaque dir2file emptied/e file2dir file2socket socket2 socket2file link dev
    mkdir opaque file2dir; echo n > opaque/n; echo n > file2dir/n; echo f > dir2file; echo f > socket2file; socket /t/file2socket
    ln -s elsewhere link; mknod dev b 7 1; chmod 600 kept; chown 7:8 sub; mv moved renamed; ln file linked; touch -d @1600000000 same/a";

/// On the base image too, without knowing of the first.
const OTHER: &str =
    "mkdir -p /t/sub /t/same /t/own /t/other && cd /t && echo one > file && echo KEPT > kept && echo same > same/a && echo SAME > same/b
    echo o > own/o; ln file hard; ln kept other/hard; socket /t/socket; echo s > socket2; mkfifo file2socket; mkdir fifo
    touch -d @1600000000 same same/a same/b file kept; rm /etc/group; echo r > /root/r";

/// On a merge of all that.
const LAST: &str = "cd /t && rm -rf same sub/hard; echo last >> kept; chmod 711 other; mkdir -p opaque; echo z > opaque/z; rm -f file; mkdir file; socket /t/file/socket";

/// What BuildKit v0.32.0 makes of each result on overlay, layer by layer above the base image's own. Natively the results are others, its
/// own too: a file that is changed stays one with its other names, and directories lose their times.
const RECORDED: [(&str, &[&str]); 11] = [
    (
        "second",
        &[
            "sha256:5f0817a0cee93862024b2f1fad2164b3e28164f34b016a815a4d350f3d0f5778",
            "sha256:3ff23c4cbee5998e3407890bdb6049ccb9fee52665e0eb75121c91581509f4a5",
        ],
    ),
    ("copied", &["sha256:7a4590d2b595140785351c410cce9f90766befceb0ef37be72f1ab9b19008c2b"]),
    (
        "of_both",
        &[
            "sha256:5f0817a0cee93862024b2f1fad2164b3e28164f34b016a815a4d350f3d0f5778",
            "sha256:3ff23c4cbee5998e3407890bdb6049ccb9fee52665e0eb75121c91581509f4a5",
        ],
    ),
    ("of_first", &["sha256:5f0817a0cee93862024b2f1fad2164b3e28164f34b016a815a4d350f3d0f5778"]),
    ("apart", &["sha256:04ebb299c9a6bf427b84784a1806428621b05e43a438ec94bf30cdef68b936ca"]),
    ("back", &["sha256:c39807ab8d833c75af1f15d44f612889f9002e1d54ea2d4907b74b10dd370683"]),
    ("from_tree", &["sha256:41aef18470daad27c903a303de5a0b87df77858f7aa5912dbd36d25e15db5e26"]),
    (
        "last",
        &[
            "sha256:3ff23c4cbee5998e3407890bdb6049ccb9fee52665e0eb75121c91581509f4a5",
            "sha256:04ebb299c9a6bf427b84784a1806428621b05e43a438ec94bf30cdef68b936ca",
            "sha256:7a4590d2b595140785351c410cce9f90766befceb0ef37be72f1ab9b19008c2b",
            "sha256:0ca196d9065baa671c8fb60b12757f5550670e28ce8326e3e1b8cbd7a882977a",
            "sha256:4a4ceadfbbf2ecb373cfb930d4e7aa8346060ff3a7a1f5a268d6f29d4044865d",
        ],
    ),
    ("unlike", &["sha256:1e8db6250dfd8fce555c3ddba3576c946936df6956d008c3db148a8a1c54e770"]),
    (
        "again",
        &[
            "sha256:4a4ceadfbbf2ecb373cfb930d4e7aa8346060ff3a7a1f5a268d6f29d4044865d",
            "sha256:c39807ab8d833c75af1f15d44f612889f9002e1d54ea2d4907b74b10dd370683",
        ],
    ),
    ("of_merged", &["sha256:7585962acf56abadb873d6b792c93e77b0af72aec0e90d252b87a11d3e9ceba1"]),
];

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
    let image = busybox_image();
    let base = oci::Digest::of(&image.layers[0]).to_string();
    registry.push("base", "latest", &image);
    registry.push("tree", "latest", &BaseImage::of_layers(vec![tree()], json!({})));
    let daemon = Daemon::start(&[]);
    for ((name, graph), (recorded_name, recorded)) in graphs(&registry).into_iter().zip(RECORDED) {
        assert_eq!(name, recorded_name);
        let (out, definition) = (daemon.home().join("image.tar"), daemon.home().join("definition"));
        fs::write(&definition, graph.to_bytes()).unwrap();
        let options = "rewrite-timestamp=true,source-date-epoch=1700000000,compression=uncompressed,force-compression=true";
        let mut command = daemon.kiln(&["build", "-o", &format!("type=oci,dest={},{options}", out.display())]);
        let output = command.stdin(Stdio::from(fs::File::open(definition).unwrap())).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let (layers, shown) = exported(&out);
        let own: Vec<_> = layers.into_iter().zip(shown).filter(|(layer, _)| *layer != base).collect();
        let differs = own.iter().zip(recorded).position(|((layer, _), recorded)| layer != recorded);
        assert_eq!(differs.map(|number| (number, &own[number])), None, "{name}");
        assert_eq!(own.len(), recorded.len(), "{name}");
    }
}
