//! The README's first command, and what it says of the binary.
#![allow(clippy::unwrap_used)]

#[test]
fn the_example_of_the_readme_builds() {
    let home = tempfile::tempdir().unwrap();
    let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let out = home.path().join("hello.tar");
    let output = std::process::Command::new(testkit::kiln_binary())
        .current_dir(workspace)
        .args(["--root", home.path().join("root").to_str().unwrap()])
        .args([
            "build",
            "--build-context",
            "tools=/bin",
            "-t",
            "hello",
            "-o",
            &format!("type=oci,dest={}", out.display()),
            "examples/hello",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tar = testkit::read_tar(&std::fs::read(out).unwrap());
    let index: serde_json::Value = serde_json::from_slice(&tar["index.json"].data).unwrap();
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "docker.io/library/hello:latest");
}

/// As in an image that has no file but it. Names of hosts it looks up by itself: plugins of the C library may be another version's.
#[test]
fn the_binary_needs_no_other_file() {
    let empty = tempfile::tempdir().unwrap();
    testkit::copy_program(&testkit::kiln_binary(), &empty.path().join("kiln"));
    std::fs::create_dir(empty.path().join("etc")).unwrap();
    std::fs::write(empty.path().join("etc/hosts"), "127.0.0.1 builder.test\n").unwrap();
    std::fs::write(empty.path().join("etc/nsswitch.conf"), "hosts: nosuchplugin\n").unwrap();
    // Nobody listens there, and nobody is given that port.
    let address = "tcp://builder.test:1";
    let output =
        std::process::Command::new("chroot").arg(empty.path()).args(["/kiln", "--addr", address, "debug", "workers"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("connection refused"), "{said}");
}
