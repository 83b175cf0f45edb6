//! What the operator wants provenance to say of this builder: JSON objects in the files of a directory.
use std::path::Path;

use serde_json::{Map, Value};

/// Files whose name ends in `.json`, in the order of their names; a later one wins. A directory that is not there says nothing.
pub fn load(directory: &Path) -> Result<Map<String, Value>, String> {
    let failed = |e: std::io::Error| format!("failed to read {}: {e}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>().map_err(failed)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    let mut all = Map::new();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json") && !path.is_dir()) {
        let text = std::fs::read(&path).map_err(|e| format!("failed to read {}: {e}", path.display()))?;
        let object: Map<String, Value> = serde_json::from_slice(&text).map_err(|e| format!("failed to parse {}: {e}", path.display()))?;
        all.extend(object);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_merged_in_order() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(&dir.path().join("none")).unwrap().is_empty());
        std::fs::write(dir.path().join("a.json"), r#"{"x":1,"y":1}"#).unwrap();
        std::fs::write(dir.path().join("b.json"), r#"{"x":{"z":2}}"#).unwrap();
        std::fs::write(dir.path().join("c.txt"), "no").unwrap();
        assert_eq!(Value::Object(load(dir.path()).unwrap()), serde_json::json!({"x": {"z": 2}, "y": 1}));
        std::fs::write(dir.path().join("d.json"), "[]").unwrap();
        assert!(load(dir.path()).unwrap_err().starts_with("failed to parse "));
    }
}
