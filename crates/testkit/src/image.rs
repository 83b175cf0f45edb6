use oci::Digest;
use serde_json::json;

use crate::Tar;

/// An image in memory: its blobs and its manifest.
#[derive(Debug, Clone)]
pub struct BaseImage {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    /// Uncompressed tars, lowest first.
    pub layers: Vec<Vec<u8>>,
}

const APPLETS: [&str; 46] = [
    "sh",
    "ls",
    "cat",
    "echo",
    "cp",
    "mv",
    "rm",
    "mkdir",
    "rmdir",
    "touch",
    "ln",
    "chmod",
    "chown",
    "id",
    "env",
    "true",
    "false",
    "sleep",
    "test",
    "[",
    "grep",
    "sed",
    "awk",
    "find",
    "wc",
    "head",
    "tail",
    "sort",
    "stat",
    "tar",
    "gzip",
    "sha256sum",
    "mount",
    "umount",
    "ps",
    "kill",
    "hostname",
    "dd",
    "seq",
    "date",
    "pwd",
    "printf",
    "readlink",
    "basename",
    "dirname",
    "mknod",
];

/// A small image made of Debian's static busybox, with `/bin/sh` and friends, `/etc/passwd` and `/etc/group`.
///
/// # Panics
/// If busybox (Debian: busybox-static) is not installed.
pub fn busybox_image() -> BaseImage {
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok()).expect("busybox-static is installed");
    let mut tar =
        Tar::new().dir("bin/", 0o755).file("bin/busybox", 0o755, busybox).dir("etc/", 0o755).dir("root/", 0o700).dir("tmp/", 0o1777);
    for applet in APPLETS {
        tar = tar.symlink(&format!("bin/{applet}"), "busybox");
    }
    let tar = tar.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1000::/home/builder:/bin/sh\n").file(
        "etc/group",
        0o644,
        "root:x:0:\nbuilder:x:1000:\nextra:x:2000:builder\n",
    );
    BaseImage::of_layers(vec![tar.finish()], json!({"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sh"]}))
}

impl BaseImage {
    /// An amd64 image of these tars and this `config` object.
    pub fn of_layers(layers: Vec<Vec<u8>>, config: serde_json::Value) -> Self {
        Self::of_platform("amd64", layers, config)
    }

    /// The same, for another architecture of Linux, with its variant if it has one: `arm/v7`.
    pub fn of_platform(architecture: &str, layers: Vec<Vec<u8>>, config: serde_json::Value) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let (architecture, variant) = architecture.split_once('/').map_or((architecture, None), |(name, variant)| (name, Some(variant)));
        let mut config = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": layers.iter().map(|_| json!({"created_by": "fixture"})).collect::<Vec<_>>(),
        });
        if let Some(variant) = variant {
            config["variant"] = json!(variant);
        }
        let config = config.to_string().into_bytes();
        let descriptor = |media: &str, data: &[u8]| json!({"mediaType": media, "digest": Digest::of(data).to_string(), "size": data.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|l| descriptor("application/vnd.oci.image.layer.v1.tar", l)).collect::<Vec<_>>(),
        });
        Self { manifest: manifest.to_string().into_bytes(), config, layers }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}
