//! Registries that lie, and layers that want out.
use std::collections::BTreeMap;
use std::fs;

use oci::Digest;
use serde_json::json;
use testkit::{BaseImage, Daemon, Tar, busybox_image};

use crate::lives_on;
use crate::registry::{Answer, MANIFEST, Scripted, blob_path};

/// Builds on `bad:latest` of the registry with one more step, and gives what the client said.
fn build(daemon: &Daemon, registry: &Scripted) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), format!("FROM {}/bad:latest\nCOPY Dockerfile /copied\n", registry.host())).unwrap();
    let out = dir.path().join("out");
    let dest = format!("type=local,dest={}", out.display());
    let output = daemon.kiln(&["build", "--progress", "plain", "-o", &dest, dir.path().to_str().unwrap()]).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn refused(daemon: &Daemon, registry: &Scripted, wants: &[&str]) {
    let (built, said) = build(daemon, registry);
    assert!(!built, "it built:\n{said}");
    for want in wants {
        assert!(said.contains(want), "no {want:?} in\n{said}");
    }
    assert!(said.contains(&format!("{}/bad:latest", registry.host())) || said.contains("FROM"), "names no image:\n{said}");
}

fn plain() -> BaseImage {
    BaseImage::of_layers(vec![Tar::new().file("a", 0o644, "a").finish()], json!({}))
}

#[test]
fn other_bytes_than_their_digest_says() {
    let daemon = Daemon::start(&[]);
    let image = plain();
    let manifest = image.digest().to_string();
    let lie = Scripted::of(&image, |answers| {
        for name in ["latest", &manifest] {
            answers.get_mut(&format!("bad/manifests/{name}")).unwrap().body.push(b'\n');
        }
    });
    refused(&daemon, &lie, &[&manifest]);
    let config = Digest::of(&image.config).to_string();
    let lie = Scripted::of(&image, |answers| {
        let body = &mut answers.get_mut(&blob_path(&image.config)).unwrap().body;
        *body = body.iter().map(|b| if *b == b'6' { b'7' } else { *b }).collect();
    });
    refused(&daemon, &lie, &[&config]);
    // Every lie about a layer of its own: a layer that is known is not asked for again.
    type Change = fn(&mut BTreeMap<String, Answer>, &str);
    let changes: [(Change, &str); 4] = [
        (|answers, path| answers.get_mut(path).unwrap().body[0] = b'b', "unexpected content"),
        (|answers, path| answers.get_mut(path).unwrap().body.truncate(700), ""),
        (|answers, path| answers.get_mut(path).unwrap().body.extend([0; 4096]), ""),
        (|answers, path| drop(answers.remove(path)), "not found"),
    ];
    for (number, (change, want)) in changes.into_iter().enumerate() {
        let image = BaseImage::of_layers(vec![Tar::new().file("a", 0o644, number.to_string()).finish()], json!({}));
        let layer = Digest::of(&image.layers[0]).to_string();
        let lie = Scripted::of(&image, |answers| change(answers, &blob_path(&image.layers[0])));
        refused(&daemon, &lie, &[&layer, want]);
    }
    lives_on(&daemon);
}

#[test]
fn a_layer_that_is_not_what_the_config_says() {
    let daemon = Daemon::start(&[]);
    let mut image = plain();
    let real = Digest::of(&image.layers[0]).to_string();
    let other = Digest::of("other").to_string();
    image.config = String::from_utf8(image.config).unwrap().replace(&real, &other).into_bytes();
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"]["digest"] = json!(Digest::of(&image.config).to_string());
    image.manifest = manifest.to_string().into_bytes();
    refused(&daemon, &Scripted::of(&image, |_| {}), &[&other]);
    manifest["layers"] = json!([manifest["layers"][0], manifest["layers"][0]]);
    image.manifest = manifest.to_string().into_bytes();
    refused(&daemon, &Scripted::of(&image, |_| {}), &["mismatched image rootfs and manifest layers"]);
    lives_on(&daemon);
}

#[test]
fn answers_that_are_no_manifest() {
    let daemon = Daemon::start(&[]);
    let html = "<html><body>Sign in to the hotel's network</body></html>";
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": MANIFEST, "digest": Digest::of("x").to_string(), "size": 1, "platform": {"os": "plan9", "architecture": "mips"}}]});
    let both = json!({"schemaVersion": 2, "config": {}, "layers": [], "manifests": []}).to_string();
    for (answer, want) in [
        (Answer::new(200, "text/html", html), "invalid manifest"),
        (Answer::new(200, MANIFEST, html), "manifest"),
        (Answer::new(200, MANIFEST, [0xff, 0xfe, 0, 1, 2]), "manifest"),
        (Answer::new(200, MANIFEST, ""), "manifest"),
        (Answer::new(200, MANIFEST, "[".repeat(200_000)), "manifest"),
        (Answer::new(200, MANIFEST, r#"{"schemaVersion":2,"config":{"digest":"sha256:zz","size":-1},"layers":[]}"#), "manifest"),
        (Answer::new(200, MANIFEST, both), "both an image and an index"),
        (Answer::new(200, "application/vnd.oci.image.index.v1+json", index.to_string()), "no match for platform"),
        (Answer::new(200, MANIFEST, vec![b' '; 40 << 20]), "bytes"),
        (Answer::new(500, "text/html", html), "500 Internal Server Error"),
        (Answer::new(404, "text/html", html), "not found"),
        (Answer::new(418, "text/plain", "teapot"), "418"),
    ] {
        let mut answers = BTreeMap::new();
        answers.insert(format!("bad/manifests/{}", Digest::of(&answer.body)), answer.clone());
        answers.insert("bad/manifests/latest".to_owned(), answer);
        refused(&daemon, &Scripted::start(answers), &[want]);
    }
    lives_on(&daemon);
}

#[test]
fn configs_that_are_none() {
    let daemon = Daemon::start(&[]);
    for config in ["", "[]", "null", "{\"rootfs\":7}", "\u{1}"] {
        let mut image = plain();
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["config"]["digest"] = json!(Digest::of(config).to_string());
        manifest["config"]["size"] = json!(config.len());
        image.manifest = manifest.to_string().into_bytes();
        image.config = config.into();
        refused(&daemon, &Scripted::of(&image, |_| {}), &[]);
    }
    lives_on(&daemon);
}

#[test]
fn layers_that_want_out_stay_in() {
    let daemon = Daemon::start(&[]);
    let outside = tempfile::Builder::new().prefix("out").tempdir().unwrap();
    let canary = outside.path().join("canary");
    fs::write(&canary, "alive").unwrap();
    let (out, file) = (outside.path().to_str().unwrap(), canary.to_str().unwrap());
    let up = format!("../../../../../../../../../../..{out}");
    // Taken as if the tree's root were the root of everything.
    for tar in [
        Tar::new().file(&format!("{up}/evil"), 0o644, "x"),
        Tar::new().file(&format!("{out}/evil"), 0o644, "x"),
        Tar::new().symlink("l", out).file("l/evil", 0o644, "x"),
        Tar::new().symlink("l", &up).file("l/evil", 0o644, "x"),
        Tar::new().symlink("l", out).file("l/canary", 0o644, "dead"),
        Tar::new().symlink("f", file).file("f", 0o644, "dead"),
        Tar::new().symlink("l", out).file("l/.wh.canary", 0o644, ""),
        Tar::new().symlink("l", out).file("l/.wh..wh..opq", 0o644, ""),
        Tar::new().symlink("copied", file),
        Tar::new().symlink("copied", &up[3..]),
        // A whiteout by hand, and things under a device.
        Tar::new().entry("c", b'3', 0o666, "", b"").file("c2", 0o644, ""),
        Tar::new().entry("p", b'6', 0o666, "", b""),
    ] {
        let image = BaseImage::of_layers(vec![tar.finish()], json!({}));
        let (_, said) = build(&daemon, &Scripted::of(&image, |_| {}));
        assert_eq!(fs::read(&canary).unwrap(), b"alive", "{said}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{said}");
    }
    for target in [file, &up, "/etc/passwd", "../../../../../../../../etc/passwd", "missing", "l/canary"] {
        let tar = Tar::new().symlink("l", out).entry("stolen", b'1', 0o644, target, b"");
        let image = BaseImage::of_layers(vec![tar.finish()], json!({}));
        refused(&daemon, &Scripted::of(&image, |_| {}), &["could not link to", target.rsplit('/').next().unwrap()]);
    }
    for (tar, want) in [
        (Tar::new().file(".wh..", 0o644, ""), "invalid whiteout name"),
        (Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", 0o644, ""), "too many links"),
        (Tar::new().entry("x", b'Z', 0o644, "", b""), "unsupported tar entry type"),
        (Tar::new().file("a", 0o644, "").file("a/b", 0o644, ""), "a"),
        (Tar::new().entry("c", b'3', 0o644, "", b"").file("c/x", 0o644, "").file("d", 0o644, "").file("d/x", 0o644, ""), "d"),
    ] {
        let image = BaseImage::of_layers(vec![tar.finish()], json!({}));
        refused(&daemon, &Scripted::of(&image, |_| {}), &[want]);
    }
    for cut in [100, 512, 700] {
        let whole = Tar::new().file("a", 0o644, vec![7; 2000]).finish();
        let image = BaseImage::of_layers(vec![whole[..cut].to_vec()], json!({}));
        refused(&daemon, &Scripted::of(&image, |_| {}), &[&Digest::of(&image.layers[0]).to_string()]);
    }
    lives_on(&daemon);
}

/// What the same daemon makes of a good image from such a registry, lest the tests above pass for the wrong reason.
#[test]
fn a_scripted_registry_can_serve_a_good_image() {
    let daemon = Daemon::start(&[]);
    let (built, said) = build(&daemon, &Scripted::of(&busybox_image(), |_| {}));
    assert!(built, "{said}");
}
