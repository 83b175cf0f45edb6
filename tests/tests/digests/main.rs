//! Digests that anyone can arrive at: those of BuildKit where nothing is compressed, and our own on any machine.
#![allow(clippy::unwrap_used)]
mod graphs;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::{Daemon, Registry, Tar, TarEntry, busybox_image, read_tar};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The records of an extended header.
fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|length| length.to_string().len() + rest == *length).unwrap();
        all.extend_from_slice(format!("{length} {key}=").as_bytes());
        all.extend_from_slice(value);
        all.push(b'\n');
    }
    all
}

/// Everything that an archive can say of a file and a layer keeps, or does not keep.
fn tree() -> Vec<u8> {
    let long = format!("deep/{}/{}", "a".repeat(120), "b".repeat(120));
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    Tar::new()
        .dir("deep/", 0o755)
        .dir("gone/", 0o755)
        .file("gone/a", 0o644, "a")
        .dir("opaque/", 0o750)
        .file("opaque/old", 0o644, "old")
        .file("file", 0o644, "one\n")
        .file("empty", 0o600, "")
        .file("moved", 0o644, "moved\n")
        .symlink("link", "file")
        .symlink("dangling", "../../nowhere/é")
        .file("hard", 0o644, "hard\n")
        .entry("hard2", b'1', 0o644, "hard", b"")
        .entry("pax", b'x', 0o644, "", &pax(&[("path", long.as_bytes()), ("mtime", b"1500000000.123456789")]))
        .file("long", 0o644, "long\n")
        .entry("pax", b'x', 0o644, "", &pax(&[("uid", b"3000000"), ("gid", b"2097152"), ("mtime", b"1500000000.9")]))
        .file("owned", 0o2755, "owned\n")
        .entry("pax", b'x', 0o644, "", &pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.note", b"x")]))
        .file("capable", 0o755, "capable\n")
        .entry("pax", b'x', 0o644, "", &pax(&[("path", "naïve \u{1F980} name".as_bytes()), ("mtime", b"9000000000")]))
        .file("unicode", 0o644, "unicode\n")
        .entry("pax", b'x', 0o644, "", &pax(&[("linkpath", "x".repeat(200).as_bytes())]))
        .symlink("far", "")
        .file("suid", 0o4755, "suid\n")
        .file("big", 0o644, vec![7; 300_000])
        .finish()
}

const DOCKERFILE: &str = r#"FROM scratch AS tree
ADD tree.tar /
FROM BASE
ADD tree.tar /t/
RUN cd /t && rm -r gone opaque && mkdir opaque && echo new > opaque/new && rm link && echo two >> file && chown 7:8 deep \
    && mkfifo -m 640 fifo && mknod -m 600 char c 1 3 && mknod -m 660 block b 7 300 && touch "$(printf 'bad\377name')" && ln hard hard3 \
    && mv moved elsewhere && chmod 4711 suid && truncate -s 1M sparse && rm -r /tmp && ln -s t /tmp
COPY --link --chown=3000000:3000001 --from=tree /deep /linked/deep
COPY --from=tree / /copied/
RUN touch /t/file && chmod 600 /t/empty && rm /copied/hard && mkdir /t/opaque/new2 && rm -r /t/opaque && echo file > /t/opaque
WORKDIR /w/x
"#;

/// What BuildKit v0.32.0 makes of the same files and options, layer by layer above the base image.
const RECORDED: [&str; 6] = [
    "sha256:9669eba2a937fa42c9a52ff1d3767ed18150a3c37b1a82612b6d86f46ac4318e",
    "sha256:2c88b2a6c964b757d4405075c200a7780d1ffcd2ead8d4297a8cbc4cdd784c3c",
    "sha256:75a5cf60b6172c8aeddd7ea9a59407707ab53717adc30da23c91b55fbee4bd88",
    "sha256:a17c7c5d039056afe0444340715f27e71c1706358d0d5d2099b7aeaf1887d156",
    "sha256:952efba1479f1f28e3f9df4f85195de800ca8bc44c02a88449ed9227ecffffdb",
    "sha256:009bb4eff6aa85127ae8dffd77969e5a2aff787f7b573a8edbd9ddf8188d8cb4",
];

/// What an archive says of its entries, by name: type, mode, owner, time, size, link.
type Shown = BTreeMap<String, String>;

/// The layers of an uncompressed image in an OCI tar, lowest first: their digests and what they hold.
fn exported(out: &Path) -> (Vec<String>, Vec<Shown>) {
    let entries = read_tar(&fs::read(out).unwrap());
    let blob = |digest: &str| &entries[&format!("blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap())].data;
    let read = |digest: &Value| -> Value { serde_json::from_slice(blob(digest.as_str().unwrap())).unwrap() };
    let index: Value = serde_json::from_slice(&entries["index.json"].data).unwrap();
    let manifest = read(&index["manifests"][0]["digest"]);
    let config = read(&manifest["config"]["digest"]);
    let layers: Vec<String> = config["rootfs"]["diff_ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
    let show = |layer: &String| {
        let entries = read_tar(blob(layer)).into_iter();
        let fields =
            |e: TarEntry| format!("{} {:o} {}:{} {} {} {:?}", char::from(e.kind), e.mode, e.uid, e.gid, e.mtime, e.data.len(), e.link);
        entries.map(|(name, entry)| (name, fields(entry))).collect()
    };
    let shown = layers.iter().map(show).collect();
    (layers, shown)
}

#[test]
fn layers_of_every_kind_of_file_have_the_digests_that_buildkit_gives() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tree.tar"), tree()).unwrap();
    let dockerfile = DOCKERFILE.replace("BASE", &format!("{}/base:latest", registry.host()));
    fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    for flags in [&[][..], &["--oci-worker-snapshotter=native"], &["--oci-worker-binary=runc"]] {
        let daemon = Daemon::start(flags);
        let out = daemon.home().join("image.tar");
        let output = format!("type=oci,dest={},rewrite-timestamp=true,compression=uncompressed,force-compression=true", out.display());
        daemon.ok(&["build", "--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-o", &output, text(dir.path())]);
        let (layers, shown) = exported(&out);
        let layers = &layers[1..];
        let differs = layers.iter().zip(RECORDED).position(|(layer, recorded)| layer != recorded);
        assert_eq!(differs.map(|number| (number, &shown[number + 1])), None, "{flags:?}: {layers:#?}");
        assert_eq!(layers.len(), RECORDED.len());
    }
}

#[test]
fn a_time_before_1970_rewrites_no_layer() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), "FROM scratch\nCOPY a /\n").unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    let daemon = Daemon::start(&[]);
    let out = daemon.home().join("image");
    let output = format!("type=oci,tar=false,dest={},rewrite-timestamp=true,source-date-epoch=-5", out.display());
    daemon.ok(&["build", "-o", &output, text(dir.path())]);
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(out.join(name)).unwrap()).unwrap() };
    let manifest = read("index.json")["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    let layer = &read(&format!("blobs/{manifest}"))["layers"][0];
    assert!(layer["digest"].is_string() && layer["annotations"]["buildkit/rewritten-timestamp"].is_null(), "{layer}");
}

/// Lets the daemons that this thread starts from now on have only these processors.
fn confine(processors: &str) {
    let thread = fs::read_link("/proc/thread-self").unwrap();
    let output = Command::new("taskset").args(["-pc", processors, text(Path::new(thread.file_name().unwrap()))]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_number_of_processors_changes_no_digest() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), "FROM scratch\nCOPY big /\n").unwrap();
    // Several blocks of what neither compresses to nothing nor not at all.
    let mut state = 1u32;
    let big: Vec<u8> = (0..6 << 20)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28) as u8 * 3
        })
        .collect();
    fs::write(dir.path().join("big"), big).unwrap();
    let mut digests = Vec::new();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let all = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    for processors in [all.split(['-', ',']).next().unwrap(), all] {
        confine(processors);
        let daemon = Daemon::start(&[]);
        for compression in ["gzip", "zstd", "estargz"] {
            let metadata = daemon.home().join("metadata.json");
            let output = format!("type=oci,dest={},compression={compression},force-compression=true", daemon.home().join("out").display());
            let args = ["--build-arg", "SOURCE_DATE_EPOCH=1", "--metadata-file", text(&metadata), "-o", &output, text(dir.path())];
            daemon.ok(&[&["build"][..], &args].concat());
            let metadata: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
            digests.push(metadata["containerimage.digest"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(digests[..3], digests[3..]);
    assert_ne!(digests[0], digests[1]);
}
