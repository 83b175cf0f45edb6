//! Bills of materials learn which layer each of their files is in.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use fault::Result;
use layers::Layer;
use oci::{Digest, gojson};
use serde_json::Value;

use crate::api::Context;
use crate::attestation::Written;
use crate::image::assemble::Part;

const SPDX: &str = "https://spdx.dev/Document";
const TOOL: &str = concat!("Tool: kiln-", env!("CARGO_PKG_VERSION"));

/// Completes the document about the result as a whole. One that is no SPDX, or not of a version that is known here, stays as it is.
pub async fn supplement(statement: &mut Written, part: &Part, layers: &BTreeMap<Digest, Layer>, context: &Context) -> Result<()> {
    if part.layers.is_empty() || !is_core(statement) {
        return Ok(());
    }
    let Some(mut document) = parse(&statement.predicate) else { return Ok(()) };
    if !unplaced(&mut document).is_empty() {
        let chain: Vec<(Digest, Layer)> = part
            .layers
            .iter()
            .filter_map(|packed| Some((packed.descriptor.digest.clone(), layers.get(&packed.descriptor.digest)?.clone())))
            .collect();
        for (_, layer) in &chain {
            layer.realize_with_room(&context.cancel, &context.reporter).await?;
        }
        let homes = task::blocking(move || homes(&chain)).await?;
        place(&mut document, &homes);
    }
    credit(&mut document);
    statement.predicate = gojson::to_vec(&document).into();
    Ok(())
}

fn is_core(statement: &Written) -> bool {
    let base = statement.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let stem = base.split('.').next().unwrap_or_default();
    statement.predicate_type == SPDX && statement.sbom_core.as_deref() == Some(stem)
}

fn parse(predicate: &[u8]) -> Option<Value> {
    let document: Value = serde_json::from_slice(predicate).ok()?;
    let version = document.get("spdxVersion")?.as_str()?;
    matches!(version, "SPDX-2.1" | "SPDX-2.2" | "SPDX-2.3").then_some(document)
}

/// The topmost layer that has each path.
fn homes(chain: &[(Digest, Layer)]) -> Result<HashMap<PathBuf, Digest>> {
    let mut homes = HashMap::new();
    for (digest, layer) in chain {
        for path in layer.own_paths()? {
            homes.insert(Path::new("/").join(path), digest.clone());
        }
    }
    Ok(homes)
}

/// Files that say nothing of themselves; what is said is the scanner's own and stays.
fn unplaced(document: &mut Value) -> Vec<&mut serde_json::Map<String, Value>> {
    let files = document.get_mut("files").and_then(Value::as_array_mut);
    let objects = files.into_iter().flatten().filter_map(Value::as_object_mut);
    objects.filter(|file| file.get("comment").and_then(Value::as_str).unwrap_or_default().is_empty()).collect()
}

fn place(document: &mut Value, homes: &HashMap<PathBuf, Digest>) {
    for file in unplaced(document) {
        let Some(name) = file.get("fileName").and_then(Value::as_str) else { continue };
        if let Some(digest) = homes.get(&clean(name)) {
            file.insert("comment".into(), format!("layerID: {digest}").into());
        }
    }
}

/// The path from the root, without `.`, `..` and doubled slashes.
fn clean(name: &str) -> PathBuf {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    Path::new("/").join(parts.join("/"))
}

fn credit(document: &mut Value) {
    let Some(object) = document.as_object_mut() else { return };
    let info = object.entry("creationInfo").or_insert_with(|| Value::Object(Default::default()));
    let Some(info) = info.as_object_mut() else { return };
    if let Some(creators) = info.entry("creators").or_insert_with(|| Value::Array(Vec::new())).as_array_mut() {
        // The built-in scanner has named itself.
        if !creators.iter().any(|creator| creator == TOOL) {
            creators.push(TOOL.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn statement(path: &str, core: Option<&str>) -> Written {
        Written {
            predicate_type: SPDX.into(),
            predicate: Default::default(),
            path: path.into(),
            inline_only: false,
            subjects: Vec::new(),
            sbom_core: core.map(str::to_owned),
        }
    }

    #[test]
    fn only_the_core_document_is_about_the_layers() {
        assert!(is_core(&statement("out/sbom.spdx.json", Some("sbom"))));
        assert!(!is_core(&statement("sbom-base.spdx.json", Some("sbom"))));
        assert!(!is_core(&statement("sbom.spdx.json", None)));
        assert!(parse(br#"{"spdxVersion":"SPDX-3.0"}"#).is_none() && parse(b"{}").is_none() && parse(b"[").is_none());
    }

    #[test]
    fn files_are_placed_and_the_tool_is_named() {
        let digest = Digest::of("layer");
        let homes = HashMap::from([("/etc/x", digest.clone()), ("/y", digest.clone())].map(|(p, d)| (PathBuf::from(p), d)));
        let mut document = json!({
            "spdxVersion": "SPDX-2.3",
            "files": [{"fileName": "./etc//x"}, {"fileName": "/y", "comment": "mine"}, {"fileName": "/gone"}],
        });
        place(&mut document, &homes);
        credit(&mut document);
        credit(&mut document);
        assert_eq!(document["files"][0]["comment"], format!("layerID: {digest}"));
        assert_eq!(document["files"][1]["comment"], "mine");
        assert_eq!(document["files"][2].get("comment"), None);
        assert_eq!(document["creationInfo"]["creators"], json!([TOOL]));
    }
}
