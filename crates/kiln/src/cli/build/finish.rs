//! What is left to do at our side once a build has ended well.
use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::build::Outcome;
use client::layout::{self, Name};
use fault::{Context as _, Fault, Result};
use oci::Descriptor;
use serde_json::Value;

use super::plan::After;
use crate::cli::{Call, output};

pub fn after(call: &Call, after: &After, outcome: &Outcome) -> Result<()> {
    let response = &outcome.exporter;
    if let Some(manifest) = response.get("cache.manifest").filter(|_| !after.caches.is_empty()) {
        let descriptor = descriptor(manifest)?;
        for (dir, tag) in &after.caches {
            layout::put(dir, &descriptor, &[Name::Tag(tag.clone())])?;
        }
    }
    if let Some(encoded) = response.get("containerimage.descriptor").filter(|_| !after.layouts.is_empty()) {
        let decoded = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let descriptor = descriptor(&decoded.ok_or_else(|| Fault::invalid("the daemon's image descriptor is not base64"))?)?;
        let names: Option<Vec<Name>> =
            response.get("image.name").map(|names| names.split(',').map(|name| Name::Image(name.to_owned())).collect());
        for dir in &after.layouts {
            layout::put(dir, &descriptor, names.as_deref().unwrap_or(&[Name::Tag("latest".into())]))?;
        }
    }
    if let Some(file) = call.args.get("metadata-file") {
        write(file, metadata(response).as_bytes())?;
    }
    if let Some(file) = call.args.get("iidfile") {
        let id = response.get("containerimage.config.digest").or_else(|| response.get("containerimage.digest"));
        write(file, id.map(String::as_str).unwrap_or_default().as_bytes())?;
    }
    print_answers(call, &outcome.metadata);
    if call.args.is_set("quiet")
        && let Some(digest) = response.get("containerimage.digest")
    {
        output::print_line(digest);
    }
    Ok(())
}

fn descriptor(json: &str) -> Result<Descriptor> {
    serde_json::from_str(json).map_err(|e| Fault::invalid(format!("the daemon's descriptor is malformed: {e}")))
}

/// The answer of a subrequest, such as an outline.
fn print_answers(call: &Call, metadata: &BTreeMap<String, Vec<u8>>) {
    if !call.args.all("opt").iter().any(|opt| opt.starts_with("requestid=")) {
        return;
    }
    let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
    match metadata.get("result.txt") {
        Some(answer) => output::print(&text(answer)),
        None => metadata
            .iter()
            .filter(|(key, _)| key.starts_with("result."))
            .for_each(|(key, value)| output::print_line(format!("{key}\n{}", text(value)))),
    }
}

/// Values that are base64 of a JSON object are written as that object.
fn metadata(response: &BTreeMap<String, String>) -> String {
    let expand = |value: &String| {
        let object = STANDARD.decode(value).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        object.filter(|object| object.as_object().is_some_and(|members| !members.is_empty())).unwrap_or_else(|| value.as_str().into())
    };
    let members: serde_json::Map<String, Value> = response.iter().map(|(key, value)| (key.clone(), expand(value))).collect();
    serde_json::to_string_pretty(&Value::Object(members)).expect("strings and objects always print")
}

/// Whole or not at all.
pub fn write(file: &str, bytes: &[u8]) -> Result<()> {
    let path = Path::new(file);
    let fresh = path.with_file_name(format!(".{}.{}", path.file_name().unwrap_or_default().to_string_lossy(), std::process::id()));
    std::fs::write(&fresh, bytes).and_then(|()| std::fs::rename(&fresh, path)).with_context(|| format!("failed to write {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_values_are_expanded() {
        let response =
            [("a", "plain"), ("b", "eyJ4IjoxfQ=="), ("c", "W10="), ("d", "e30=")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let written: Value = serde_json::from_str(&metadata(&response)).unwrap();
        assert_eq!(written, serde_json::json!({"a": "plain", "b": {"x": 1}, "c": "W10=", "d": "e30="}));
    }
}
