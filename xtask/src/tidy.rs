//! The invariants that ARCHITECTURE.md prints, checked from `cargo metadata` and the sources.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::Outcome;

/// The floors of the house, lowest first. An arrow points down, or sideways where [`SIDEWAYS`] says so.
const FLOORS: [&[&str]; 7] = [
    &["fault", "oci", "llb", "dockerfile", "patterns", "treehash", "solver", "progress", "proto", "task"],
    &["kv", "content", "snapshot", "layers"],
    &["registry", "sandbox", "session", "wire", "proxy"],
    &["frontend", "ops", "sources", "export", "cache", "engine", "sbom"],
    &["job", "worker"],
    &["grpc", "client", "dashboard"],
    &["kiln"],
];

/// Arrows within floors 1 to 5. Within floor 0 any arrow is fine as long as cargo accepts it (no cycles).
const SIDEWAYS: [(&str, &str); 11] = [
    ("content", "kv"),
    ("layers", "kv"),
    ("layers", "content"),
    ("layers", "snapshot"),
    ("ops", "sources"),
    ("engine", "cache"),
    ("registry", "session"),
    ("wire", "session"),
    ("job", "worker"),
    ("export", "cache"),
    ("cache", "export"),
];

/// Rooms without tokio: floor 0 but `task`.
const NO_TOKIO: &[&str] = &["fault", "oci", "llb", "dockerfile", "patterns", "treehash", "solver", "progress"];
const TONIC: &[&str] = &["proto", "wire", "grpc", "client", "kiln", "worker"];
/// `proto` messages do not travel above these.
const PROTO: &[&str] = &["llb", "wire", "grpc", "client", "kiln"];
const UNSAFE: &[&str] = &["crates/snapshot/src/sys", "crates/sandbox/src/sys"];
const BANNED_NAMES: &[&str] = &["util", "utils", "common", "helpers", "helper", "misc"];

pub fn run(root: &Path) -> Outcome {
    let mut broken = Vec::new();
    let rooms = rooms(root)?;
    arrows(&rooms, &mut broken);
    words(root, &mut broken)?;
    if broken.is_empty() { Ok(()) } else { Err(format!("the house is untidy:\n  {}", broken.join("\n  ")).into()) }
}

/// Room -> what it depends on outside of tests.
fn rooms(root: &Path) -> Result<BTreeMap<String, BTreeSet<String>>, Box<dyn std::error::Error>> {
    let output = Command::new("cargo").args(["metadata", "--format-version=1", "--no-deps", "--offline"]).current_dir(root).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut rooms = BTreeMap::new();
    for package in metadata["packages"].as_array().ok_or("cargo metadata has no packages")? {
        let deps = package["dependencies"].as_array().ok_or("a package has no dependency list")?;
        let normal = deps.iter().filter(|d| d["kind"].is_null()).filter_map(|d| d["name"].as_str().map(str::to_owned)).collect();
        rooms.insert(package["name"].as_str().ok_or("a package has no name")?.to_owned(), normal);
    }
    Ok(rooms)
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn arrows(rooms: &BTreeMap<String, BTreeSet<String>>, broken: &mut Vec<String>) {
    for (room, deps) in rooms {
        if ["xtask", "kiln-tests", "kiln-benches", "testkit"].contains(&room.as_str()) {
            continue;
        }
        let Some(from) = floor(room) else {
            broken.push(format!("room {room} stands on no floor: name it in xtask/src/tidy.rs and ARCHITECTURE.md"));
            continue;
        };
        if BANNED_NAMES.contains(&room.as_str()) {
            broken.push(format!("room {room}: say what it owns"));
        }
        for dep in deps {
            let level = floor(dep);
            let sideways = level == Some(from) && (from == 0 || SIDEWAYS.contains(&(room.as_str(), dep.as_str())));
            if level.is_some_and(|to| to > from || (to == from && !sideways)) {
                broken.push(format!("arrow {room} -> {dep} points up or sideways"));
            }
            let only = |allowed: &[&str], what: &str| dep == what && !allowed.contains(&room.as_str());
            if dep == "tokio" && NO_TOKIO.contains(&room.as_str()) {
                broken.push(format!("{room} is on the floor of words and must not know tokio"));
            }
            if only(TONIC, "tonic") {
                broken.push(format!("{room} must not know tonic"));
            }
            if only(PROTO, "proto") {
                broken.push(format!("proto messages must not travel into {room}"));
            }
            if dep == "testkit" {
                broken.push(format!("{room} depends on testkit outside its tests"));
            }
        }
    }
}

/// Rules that only the text shows.
fn words(root: &Path, broken: &mut Vec<String>) -> Outcome {
    for room in std::fs::read_dir(root.join("crates"))? {
        let room = room?;
        let name = room.file_name().to_string_lossy().into_owned();
        for file in sources(&room.path().join("src"))? {
            let text = std::fs::read_to_string(&file)?;
            let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let in_sys = UNSAFE.iter().any(|place| shown.starts_with(place));
            if !in_sys && (code.contains("allow(unsafe_code)") || code.contains("unsafe {") || code.contains("unsafe fn")) {
                broken.push(format!("{shown}: unsafe outside snapshot::sys and sandbox::sys"));
            }
            if name != "kiln" && (code.contains("env::var(") || code.contains("env::var_os(") || code.contains("env::vars")) {
                broken.push(format!("{shown}: only kiln reads the environment"));
            }
            if name != "task" && code.contains("tokio::spawn(") {
                broken.push(format!("{shown}: spawn through task"));
            }
            if NO_TOKIO.contains(&name.as_str()) {
                for banned in ["std::fs::", "SystemTime::now", "Instant::now"] {
                    if code.contains(banned) {
                        broken.push(format!("{shown}: {banned} on the floor of words (no files, no clock)"));
                    }
                }
            }
        }
        let lib = room.path().join("src/lib.rs");
        if lib.exists() && !std::fs::read_to_string(&lib)?.starts_with("//!") {
            broken.push(format!("crates/{name}/src/lib.rs does not open with what the room owns"));
        }
    }
    Ok(())
}

fn sources(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "generated") {
                found.extend(sources(&path)?);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(room: &str, dep: &str) -> Vec<String> {
        let mut broken = Vec::new();
        arrows(&BTreeMap::from([(room.to_owned(), BTreeSet::from([dep.to_owned()]))]), &mut broken);
        broken
    }

    #[test]
    fn finds_what_it_should() {
        assert_eq!(house("layers", "content"), Vec::<String>::new());
        for (room, dep) in [("kv", "layers"), ("solver", "tokio"), ("ops", "tonic"), ("job", "proto"), ("frontend", "ops"), ("attic", "kv")]
        {
            assert_eq!(house(room, dep).len(), 1, "{room} -> {dep}");
        }
    }
}
