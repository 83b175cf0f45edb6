//! The README's first command.
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
