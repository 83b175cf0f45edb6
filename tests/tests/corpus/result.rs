//! A build's result in lines that can be compared: config, history, and the files of every layer that the build added.
use serde_json::{Value, json};
use testkit::{BaseImage, Tar, read_tar};

/// An image that a build may start from: everything in its config that can be handed down, and triggers.
pub fn parent_image() -> BaseImage {
    let layers = testkit::busybox_image().layers;
    BaseImage::of_layers(
        [layers, vec![Tar::new().dir("opt/", 0o755).dir("opt/app/", 0o750).file("opt/app/tool", 0o755, "tool").finish()]].concat(),
        json!({
            "Env": ["PATH=/opt/app:/bin", "PARENT=yes"],
            "Cmd": ["serve"],
            "Entrypoint": ["/opt/app/tool"],
            "User": "1000",
            "WorkingDir": "/opt/app",
            "Labels": {"org.example.parent": "1"},
            "ExposedPorts": {"8080/tcp": {}},
            "Volumes": {"/data": {}},
            "StopSignal": "SIGINT",
            "OnBuild": ["COPY app.conf /opt/app/", "LABEL built.on=parent"],
        }),
    )
}

/// Layers of the base images, which every result may have.
fn base_layers() -> Vec<String> {
    let images = [testkit::busybox_image(), parent_image()];
    images.iter().flat_map(|image| &image.layers).map(|layer| oci::Digest::of(layer).to_string()).collect()
}

/// From an OCI layout in a tar.
pub fn describe(archive: &[u8]) -> String {
    let files = read_tar(archive);
    let json = |digest: &str| -> Value { serde_json::from_slice(&files[&blob_path(digest)].data).unwrap() };
    let index: Value = serde_json::from_slice(&files["index.json"].data).unwrap();
    let mut text = String::new();
    let mut manifests: Vec<Value> = vec![json(index["manifests"][0]["digest"].as_str().unwrap())];
    if let Some(children) = manifests[0]["manifests"].as_array() {
        manifests = children.iter().map(|child| json(child["digest"].as_str().unwrap())).collect();
    }
    let ignored = base_layers();
    for manifest in manifests {
        let config = json(manifest["config"]["digest"].as_str().unwrap());
        describe_config(&config, &mut text);
        let diff_ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten();
        for (layer, diff_id) in manifest["layers"].as_array().into_iter().flatten().zip(diff_ids) {
            if ignored.iter().any(|known| *known == diff_id.as_str().unwrap()) {
                continue;
            }
            text.push_str("layer\n");
            describe_layer(&files[&blob_path(layer["digest"].as_str().unwrap())].data, &mut text);
        }
    }
    text
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn describe_config(config: &Value, text: &mut String) {
    let variant = config["variant"].as_str().map(|v| format!("/{v}")).unwrap_or_default();
    text.push_str(&format!("platform {}/{}{variant}\n", config["os"].as_str().unwrap(), config["architecture"].as_str().unwrap()));
    for (key, value) in config["config"].as_object().into_iter().flatten() {
        match value {
            Value::Object(map) if key == "Labels" => {
                map.iter().for_each(|(k, v)| text.push_str(&format!("config Labels {k}={}\n", v.as_str().unwrap())))
            }
            _ => text.push_str(&format!("config {key} {value}\n")),
        }
    }
    for entry in config["history"].as_array().into_iter().flatten() {
        let created_by = entry["created_by"].as_str().unwrap_or_default().replace('\n', "\\n").replace('\t', "\\t");
        let layer = if entry["empty_layer"] == true { "empty" } else { "layer" };
        let comment = entry["comment"].as_str().filter(|c| *c != "buildkit.dockerfile.v0").map(|c| format!(" ({c})")).unwrap_or_default();
        text.push_str(&format!("history {layer} {created_by}{comment}\n"));
    }
}

fn describe_layer(tar: &[u8], text: &mut String) {
    for (name, entry) in read_tar(tar) {
        let content = match entry.kind {
            b'0' | 0 => format!(" {}", content(&entry.data)),
            b'1' | b'2' => format!(" -> {}", entry.link),
            _ => String::new(),
        };
        let kind = match entry.kind {
            b'5' => 'd',
            b'0' | 0 => '-',
            b'2' => 'l',
            b'1' => 'h',
            other => other as char,
        };
        text.push_str(&format!("  {kind} {:04o} {}:{} {name}{content}\n", entry.mode, entry.uid, entry.gid));
    }
}

fn content(data: &[u8]) -> String {
    match std::str::from_utf8(data) {
        Ok(text) if data.len() <= 200 => format!("{text:?}"),
        _ => format!("{} bytes", data.len()),
    }
}

/// The message alone, without what differs from run to run.
pub fn describe_failure(stderr: &str) -> String {
    let line = stderr.lines().rev().find(|line| line.to_lowercase().starts_with("error")).unwrap_or(stderr);
    let message = line.split_once(": ").map_or(line, |(_, message)| message);
    let words = message.split(' ').map(|word| {
        let id = word.trim_end_matches(':').split("::").next().unwrap_or_default();
        let random = id.len() == 25 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        // Where the daemon had mounted what it was writing to.
        let mounted = word.split_once("/cachemounts/buildkit").and_then(|(_, rest)| rest.split_once('/'));
        match mounted {
            Some((_, inside)) => format!("/{inside}"),
            None if random => "ID:".to_owned(),
            None => word.to_owned(),
        }
    });
    format!("error {}\n", words.collect::<Vec<_>>().join(" "))
}
