//! One build for every platform that people build for: each with steps that its own programs run, all in one index.
//!
//! Needs root, a machine of amd64, Debian's qemu-user-static and docker-registry, a kernel from 6.7 on, and Debian's busybox for each of the
//! architectures (`KILN_TEST_BUSYBOXES`, which `cargo xtask test` sets).
#![allow(clippy::unwrap_used)]
use std::fs;
use std::process::Command;

use kiln_tests::foreign_busybox;
use serde_json::{Value, json};
use testkit::{BaseImage, Daemon, Registry, Tar, read_tar};

/// (platform after `linux/`, Debian's name of it, what its `uname -m` says, the ELF machine that its programs are for)
///
/// A step of 386 is run by the machine itself, whose kernel says what it is, to these programs too; as with BuildKit.
const PLATFORMS: [(&str, &str, &str, u16); 7] = [
    ("s390x", "s390x", "s390x", 22),
    ("arm/v7", "armhf", "armv7l", 40),
    ("amd64", "", "x86_64", 62),
    ("ppc64le", "ppc64el", "ppc64le", 21),
    ("386", "i386", "x86_64", 3),
    ("riscv64", "riscv64", "riscv64", 243),
    ("arm64", "arm64", "aarch64", 183),
];

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An index of the seven base images, each of which holds nothing but busybox.
fn push_base(registry: &Registry) {
    let mut manifests = Vec::new();
    for (platform, debian, _, machine) in PLATFORMS {
        let busybox = fs::read(if debian.is_empty() { "/bin/busybox".into() } else { foreign_busybox(debian) }).unwrap();
        let number =
            if busybox[5] == 2 { u16::from_be_bytes([busybox[18], busybox[19]]) } else { u16::from_le_bytes([busybox[18], busybox[19]]) };
        assert_eq!(number, machine, "the busybox of {platform}");
        let tar = Tar::new().dir("bin/", 0o755).file("bin/busybox", 0o755, busybox).symlink("bin/sh", "busybox");
        let image = BaseImage::of_platform(platform, vec![tar.finish()], json!({"Env": ["PATH=/bin"]}));
        image.layers.iter().chain([&image.config]).for_each(|blob| registry.push_blob("base", blob));
        registry.push_manifest("base", &image.digest().to_string(), MANIFEST, &image.manifest);
        manifests.push(json!({
            "mediaType": MANIFEST, "digest": image.digest().to_string(), "size": image.manifest.len(), "platform": platform_of(platform),
        }));
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    registry.push_manifest("base", "latest", INDEX, index.to_string().as_bytes());
}

/// As configs and indexes tell it.
fn platform_of(platform: &str) -> Value {
    match platform.split_once('/') {
        Some((architecture, variant)) => json!({"architecture": architecture, "os": "linux", "variant": variant}),
        None => json!({"architecture": platform, "os": "linux"}),
    }
}

/// A context, and the arguments that build it for all the platforms and push the result as `app:TAG`.
fn build(registry: &Registry, tag: &str) -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let dockerfile = format!(
        "FROM --platform=$TARGETPLATFORM {}/base\nARG TARGETPLATFORM TARGETARCH TARGETVARIANT\n\
         RUN busybox uname -m > /file; echo \"$TARGETPLATFORM $TARGETARCH $TARGETVARIANT\" >> /file\n",
        registry.host()
    );
    fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    let platforms = PLATFORMS.map(|(platform, ..)| format!("linux/{platform}")).join(",");
    let name = format!("{}/app:{tag}", registry.host());
    let output = format!("type=image,name={name},push=true,compression=uncompressed");
    let arguments = ["build", "--progress", "plain", "--platform", &platforms, "-o", &output, dir.path().to_str().unwrap()];
    let arguments = arguments.map(str::to_owned).to_vec();
    (dir, arguments)
}

/// The index under `app:TAG` has an image for each platform, in the order asked for, and the step of each was run by its own programs.
fn is_whole(registry: &Registry, tag: &str) {
    let index = registry.manifest("app", tag);
    let manifests = index["manifests"].as_array().unwrap();
    let found: Vec<&Value> = manifests.iter().map(|manifest| &manifest["platform"]).collect();
    assert_eq!(found, PLATFORMS.map(|(platform, ..)| platform_of(platform)).iter().collect::<Vec<_>>());
    for ((platform, _, machine, _), descriptor) in PLATFORMS.into_iter().zip(manifests) {
        let manifest = registry.manifest("app", descriptor["digest"].as_str().unwrap());
        let config: Value = serde_json::from_slice(&registry.blob("app", manifest["config"]["digest"].as_str().unwrap())).unwrap();
        for key in ["architecture", "os", "variant"] {
            assert_eq!(config.get(key), platform_of(platform).get(key), "{platform}");
        }
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2, "{platform}");
        let layer = read_tar(&registry.blob("app", layers[1]["digest"].as_str().unwrap()));
        let (architecture, variant) = platform.split_once('/').unwrap_or((platform, ""));
        assert_eq!(String::from_utf8_lossy(&layer["file"].data), format!("{machine}\nlinux/{platform} {architecture} {variant}\n"));
    }
}

#[test]
fn every_platform_has_its_image_though_no_emulator_is_registered() {
    let (registry, daemon) = (Registry::start(), Daemon::start(&[]));
    push_base(&registry);
    let (_dir, arguments) = build(&registry, "given");
    daemon.ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    is_whole(&registry, "given");
}

/// As Debian registers them, in a user namespace, so that the machine's registrations stay as they are. No emulator is in the daemon's PATH.
#[test]
fn every_platform_has_its_image_with_registered_emulators() {
    let registry = Registry::start();
    push_base(&registry);
    let (dir, arguments) = build(&registry, "registered");
    let script = r#"
        mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
        for emulator in aarch64 arm ppc64le riscv64 s390x; do cat /usr/lib/binfmt.d/qemu-$emulator.conf > /proc/sys/fs/binfmt_misc/register; done
        PATH=/nonexistent exec ./kiln --root ./root "$@"
    "#;
    testkit::copy_program(&testkit::kiln_binary(), &dir.path().join("kiln"));
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--propagation", "slave", "sh", "-ec", script, "sh"]).args(&arguments);
    let output = command.current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", fs::read_to_string(dir.path().join("root/daemon.log")).unwrap_or_default());
    assert!(said.contains("emulated by qemu-s390x ") && said.contains("emulated by qemu-arm "), "{said}");
    is_whole(&registry, "registered");
}
