//! What is stated about results, as supply-chain tools read it.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::{BaseImage, Daemon, Registry, Tar};

/// Two packages of a system, as dpkg knows them.
fn debian() -> BaseImage {
    let status = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\n\
                  Package: tzdata\nStatus: install ok installed\nArchitecture: all\nVersion: 2024a-0\n";
    let tar = Tar::new()
        .dir("etc/", 0o755)
        .file("etc/os-release", 0o644, "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n")
        .dir("var/", 0o755)
        .dir("var/lib/", 0o755)
        .dir("var/lib/dpkg/", 0o755)
        .file("var/lib/dpkg/status", 0o644, status);
    BaseImage::of_layers(vec![tar.finish()], json!({}))
}

fn project(registry: &Registry) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let dockerfile = format!(
        "FROM scratch AS tools\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY Cargo.lock /\nFROM {}/debian:12\nCOPY package-lock.json /app/\n\
         COPY --from=tools /Cargo.lock /unused/\nCOPY empty /unused/Cargo.lock\n",
        registry.host()
    );
    let npm = r#"{"lockfileVersion":3,"packages":{"":{},"node_modules/@s/left-pad":{"version":"1.3.0"}}}"#;
    let cargo = "[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\n";
    for (name, text) in [("Dockerfile", dockerfile.as_str()), ("package-lock.json", npm), ("Cargo.lock", cargo), ("empty", "")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// The package URLs of a document, sorted.
fn urls(document: &Value) -> Vec<&str> {
    let packages = document["packages"].as_array().unwrap_or_else(|| panic!("no packages in {document}"));
    let mut urls: Vec<&str> = packages.iter().filter_map(|package| package["externalRefs"][0]["referenceLocator"].as_str()).collect();
    urls.sort_unstable();
    urls
}

const SYSTEM: [&str; 2] =
    ["pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12", "pkg:deb/debian/tzdata@2024a-0?arch=all&distro=debian-12"];
const LANGUAGE: &str = "pkg:npm/%40s/left-pad@1.3.0";

#[test]
fn docker_buildx_shows_the_bill_of_materials_and_the_provenance() {
    let registry = Registry::start();
    registry.push("debian", "12", &debian());
    let daemon = Daemon::start(&[]);
    let dir = project(&registry);
    let buildx = |args: &[&str]| {
        let program =
            std::env::var_os("KILN_TEST_BUILDX").expect("KILN_TEST_BUILDX names Debian's docker-buildx: `cargo xtask test` sets it");
        let (home, mut command) = (daemon.home(), Command::new(program));
        command.args(args).env("DOCKER_CONFIG", home.join("docker")).env("BUILDX_CONFIG", home.join("buildx")).env("HOME", home);
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "buildx {args:?}: {told}\n{}", fs::read_to_string(daemon.log_path()).unwrap());
        (output.stdout, told)
    };
    buildx(&["create", "--name", "kiln", "--driver", "remote", "--use", &daemon.address()]);
    let name = format!("{}/team/app:v1", registry.host());
    let context = dir.path().to_str().unwrap();
    let (sbom, provenance) = ("--attest=type=sbom,generator=kiln", "--attest=type=provenance,mode=max");
    let (_, told) = buildx(&["build", "--progress", "plain", "--push", "-t", &name, sbom, provenance, context]);
    assert!(told.contains("[linux/amd64] generating sbom using kiln"), "{told}");

    let inspect = |what: &str| -> Value {
        let (shown, _) = buildx(&["imagetools", "inspect", &name, "--format", &format!("{{{{json .{what}}}}}")]);
        serde_json::from_slice(&shown).unwrap()
    };
    let document = &inspect("SBOM")["SPDX"];
    assert_eq!((urls(document), document["spdxVersion"].as_str()), ([&SYSTEM[..], &[LANGUAGE]].concat(), Some("SPDX-2.3")));
    // Every file says in which layer of the image it is.
    let manifest = registry.manifest("team/app", "v1")["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let layers = registry.manifest("team/app", &manifest)["layers"].clone();
    let home = |path: &str| {
        let file = document["files"].as_array().unwrap().iter().find(|file| file["fileName"] == path).unwrap();
        file["comment"].as_str().unwrap().strip_prefix("layerID: ").unwrap().to_owned()
    };
    assert_eq!((home("/var/lib/dpkg/status"), home("/app/package-lock.json")), (text(&layers[0]["digest"]), text(&layers[1]["digest"])));

    let provenance = &inspect("Provenance")["SLSA"];
    let args = &provenance["buildDefinition"]["externalParameters"]["request"]["frontend"];
    assert_eq!(args, "dockerfile.v0", "{provenance}");
    let base = &provenance["buildDefinition"]["resolvedDependencies"][0];
    assert_eq!(base["digest"]["sha256"], debian().digest().hex(), "{provenance}");
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[test]
fn the_operator_may_prefer_the_built_in_scanner() {
    let registry = Registry::start();
    registry.push("debian", "12", &debian());
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), "sbomGenerator = \"kiln\"\n").unwrap();
    let daemon = Daemon::start(&["--config", config.path().to_str().unwrap()]);
    let dir = project(&registry);
    let build = |to: &str| {
        let dest = daemon.home().join(to);
        let output = format!("type=local,dest={}", dest.display());
        let args = ["build", "--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--opt", "attest:sbom=", "-o", &output];
        daemon.ok(&[&args[..], &[dir.path().to_str().unwrap()]].concat());
        dest
    };
    let (first, second) = (build("1"), build("2"));
    let read = |dest: &Path, name: &str| fs::read(dest.join(name)).unwrap();
    let statement: Value = serde_json::from_slice(&read(&first, "sbom.spdx.json")).unwrap();
    assert_eq!(
        (&statement["predicateType"], &statement["_type"]),
        (&json!("https://spdx.dev/Document"), &json!("https://in-toto.io/Statement/v1"))
    );
    assert_eq!(urls(&statement["predicate"]), [&SYSTEM[..], &[LANGUAGE]].concat());
    assert_eq!(statement["predicate"]["creationInfo"]["created"], "2023-11-14T22:13:20Z");
    let stage: Value = serde_json::from_slice(&read(&first, "sbom-tools.spdx.json")).unwrap();
    assert_eq!(urls(&stage["predicate"]), ["pkg:cargo/serde@1.0.0"]);
    for name in ["sbom.spdx.json", "sbom-tools.spdx.json"] {
        assert_eq!(read(&first, name), read(&second, name), "{name}: the same build tells the same");
    }
}
