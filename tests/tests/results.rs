//! What leaves the daemon: digests that anyone can arrive at, and statements about where a result came from.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use testkit::{Daemon, Registry, busybox_image, read_tar};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The blobs of an OCI tar by digest, and the root's digest.
fn blobs(path: &Path) -> (BTreeMap<String, Vec<u8>>, String) {
    let entries = read_tar(&fs::read(path).unwrap());
    let index: Value = serde_json::from_slice(&entries["index.json"].data).unwrap();
    let root = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let named =
        entries.into_iter().filter_map(|(name, entry)| Some((format!("sha256:{}", name.strip_prefix("blobs/sha256/")?), entry.data)));
    (named.collect(), root)
}

fn read(all: &BTreeMap<String, Vec<u8>>, digest: &Value) -> Value {
    serde_json::from_slice(&all[digest.as_str().unwrap()]).unwrap()
}

/// Recorded from BuildKit v0.32.0 with the same Dockerfile, files and options. Another runtime or backend, another day: the same digest.
const RECORDED: (&str, &str) = (
    "sha256:7803965df87662eedf7320d352ff10e992f2efeeff3ca2b26ff9c1a4e1bfea92",
    "sha256:bf011aeeea399fcaf48c47424d5b751b4b479accb107cefdee9c1d953b5ce39e",
);

#[test]
fn the_same_inputs_give_the_digest_that_buildkit_gives() {
    let dir = tempfile::tempdir().unwrap();
    let dockerfile = "FROM scratch AS files\n\
                      COPY --chmod=0644 a /dir/a\n\
                      COPY --chmod=0755 --chown=7:8 d /dir/d\n\
                      FROM scratch\n\
                      COPY --from=files /dir /\n\
                      COPY --link --chmod=0600 a /linked/a\n\
                      WORKDIR /w\n\
                      LABEL x=y\n\
                      CMD [\"/d/b\"]\n";
    fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.path().join("a"), "a\n").unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/b"), "b\n").unwrap();
    std::os::unix::fs::symlink("b", dir.path().join("d/link")).unwrap();
    for flags in [&[][..], &["--oci-worker-snapshotter=native"]] {
        let daemon = Daemon::start(flags);
        let out = daemon.home().join("image.tar");
        let output = format!("type=oci,dest={},rewrite-timestamp=true,compression=uncompressed", out.display());
        daemon.ok(&[
            "build",
            "--no-cache",
            "--build-arg",
            "SOURCE_DATE_EPOCH=1700000000",
            "--opt",
            "attest:provenance=mode=min,inline-only=true",
            "-o",
            &output,
            text(dir.path()),
        ]);
        let (all, root) = blobs(&out);
        let manifest = read(&all, &json!(root));
        assert_eq!((root.as_str(), manifest["config"]["digest"].as_str().unwrap()), RECORDED, "{flags:?}: {manifest:#}");
    }
}

#[test]
fn provenance_tells_sources_steps_and_layers() {
    let registry = Registry::start();
    registry.push("base", "latest", &busybox_image());
    let daemon = Daemon::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let base = format!("{}/base:latest", registry.host());
    // With enough memory for the kernel to see to its counters: with few changes it reads old ones, the fewer the more processors there are.
    let dockerfile = format!(
        "FROM {base}\nARG WORD\nRUN --mount=type=secret,id=token,required=false dd if=/dev/zero of=/dev/null bs=64M count=1 && echo $WORD > /word\n"
    );
    fs::write(dir.path().join("Dockerfile"), &dockerfile).unwrap();
    let name = format!("{}/app:v1", registry.host());
    let push = |params: &str| -> Value {
        let attest = format!("attest:provenance={params}");
        daemon.ok(&["build", "--push", "-t", &name, "--build-arg", "WORD=w", "--opt", &attest, text(dir.path())]);
        let index = registry.manifest("app", "v1");
        let manifests = index["manifests"].as_array().unwrap();
        assert_eq!(manifests[1]["annotations"]["vnd.docker.reference.digest"], manifests[0]["digest"]);
        let attestation = registry.manifest("app", manifests[1]["digest"].as_str().unwrap());
        let statement: Value = serde_json::from_slice(&registry.blob("app", attestation["layers"][0]["digest"].as_str().unwrap())).unwrap();
        let hex = manifests[0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        assert_eq!(statement["subject"][0]["digest"]["sha256"], hex);
        assert_eq!(statement["predicateType"], attestation["layers"][0]["annotations"]["in-toto.io/predicate-type"]);
        statement
    };

    let max = push("mode=max,builder-id=here,capture-usage=true");
    assert_eq!(max["predicateType"], "https://slsa.dev/provenance/v1");
    let (definition, run) = (&max["predicate"]["buildDefinition"], &max["predicate"]["runDetails"]);
    let base_digest = oci::Digest::of(registry.get("/v2/base/manifests/latest").body);
    assert_eq!(definition["resolvedDependencies"].as_array().unwrap().len(), 1);
    assert!(definition["resolvedDependencies"][0]["uri"].as_str().unwrap().contains("/base@latest?platform=linux%2Famd64"));
    assert_eq!(definition["resolvedDependencies"][0]["digest"]["sha256"], base_digest.hex());
    let request = &definition["externalParameters"]["request"];
    assert_eq!((&request["args"]["build-arg:WORD"], &request["secrets"]), (&json!("w"), &json!([{"id": "token", "optional": true}])));
    let steps = definition["internalParameters"]["buildConfig"]["llbDefinition"].as_array().unwrap();
    assert_eq!(steps.iter().map(|s| s["id"].as_str().unwrap()).collect::<Vec<_>>(), ["step0", "step1", "step2"]);
    assert_eq!(steps[1]["inputs"], json!(["step0:0"]));
    let used = &steps[1]["resourceUsage"]["samples"][0];
    assert!(used["timestamp"].is_string() && used["memoryStat"]["pgfault"].as_u64().is_some_and(|faults| faults > 0), "{steps:#?}");
    assert_eq!(steps[0].get("resourceUsage"), None, "an image uses nothing");
    let metadata = &run["metadata"]["buildkit_metadata"];
    let source = &metadata["source"]["infos"][0];
    assert_eq!((&source["filename"], &source["language"]), (&json!("Dockerfile"), &json!("Dockerfile")));
    assert_eq!(metadata["layers"]["step1:0"][0].as_array().unwrap().len(), 2, "the base image's layer and the step's");
    assert_eq!((&run["builder"]["id"], &run["metadata"]["buildkit_completeness"]["request"]), (&json!("here"), &json!(true)));

    let min = push("mode=min,version=v0.2");
    assert_eq!(min["predicateType"], "https://slsa.dev/provenance/v0.2");
    let predicate = &min["predicate"];
    assert_eq!((predicate.get("buildConfig"), predicate["invocation"]["parameters"].get("secrets")), (None, None));
    assert_eq!(predicate["metadata"]["completeness"]["parameters"], false, "the argument is left out");
    assert_eq!(predicate["materials"], definition["resolvedDependencies"]);
    assert_eq!(predicate["metadata"]["https://mobyproject.org/buildkit@v1#metadata"], json!({}));
}

#[test]
fn statements_lie_beside_local_results_but_not_those_meant_for_images() {
    let daemon = Daemon::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), "FROM scratch\nCOPY a /a\n").unwrap();
    fs::write(dir.path().join("a"), "a\n").unwrap();
    let export = |attest: &str, to: &str| {
        let dest = daemon.home().join(to);
        let output = format!("type=local,dest={}", dest.display());
        daemon.ok(&["build", "--opt", attest, "-o", &output, text(dir.path())]);
        dest
    };
    let dest = export("attest:provenance=mode=max,filename=origin.json", "1");
    let statement: Value = serde_json::from_slice(&fs::read(dest.join("origin.json")).unwrap()).unwrap();
    assert_eq!(statement["subject"], json!([{"name": "a", "digest": {"sha256": oci::Digest::of("a\n").hex()}}]));
    assert_eq!(statement["predicate"]["runDetails"]["metadata"]["buildkit_completeness"]["resolvedDependencies"], false);
    assert!(!export("attest:provenance=inline-only=true", "2").join("provenance.json").exists());
    let nameless = daemon.kiln(&["build", "--opt", "attest:provenance=filename=", text(dir.path())]).output().unwrap();
    assert!(String::from_utf8_lossy(&nameless.stderr).contains("attestation does not have set path"), "{nameless:?}");
    let refused = daemon.kiln(&["build", "--opt", "attest:provenance=complete-materials=true", text(dir.path())]).output().unwrap();
    let log = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && log.contains("provenance materials are incomplete") && log.contains("- context"), "{log}");
}

#[test]
fn a_platform_that_fails_leaves_no_part_of_an_image() {
    let registry = Registry::start();
    let daemon = Daemon::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), "FROM scratch\nARG TARGETARCH\nCOPY only-${TARGETARCH} /\n").unwrap();
    fs::write(dir.path().join("only-amd64"), "a").unwrap();
    let name = format!("{}/both:v1", registry.host());
    let build = ["build", "--opt", "platform=linux/amd64,linux/arm64", "--push", "-t", &name, text(dir.path())];
    let failed = daemon.kiln(&build).output().unwrap();
    let log = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && log.contains("only-arm64"), "{log}");
    assert_eq!(registry.get("/v2/both/manifests/v1").status, 404);
    assert_eq!(registry.get("/v2/both/tags/list").status, 404, "not even the repository");

    fs::write(dir.path().join("only-arm64"), "b").unwrap();
    daemon.ok(&build);
    let whole = registry.get("/v2/both/manifests/v1").body;
    fs::remove_file(dir.path().join("only-amd64")).unwrap();
    assert!(!daemon.kiln(&build).output().unwrap().status.success());
    assert_eq!(registry.get("/v2/both/manifests/v1").body, whole, "the tag is the last whole image");
}
