//! `--export-cache` and `--import-cache`.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use client::build::Typed;
use client::layout;
use client::session::BlobDir;

use crate::cli::args::csv_pairs;
use crate::cli::environment::Environment;

#[derive(Default)]
pub struct Caches {
    pub exports: Vec<Typed>,
    pub imports: Vec<Typed>,
    pub stores: BTreeMap<String, BlobDir>,
    /// Directories of exports, with the tag of the new entry.
    pub to_index: Vec<(PathBuf, String)>,
}

pub fn parse(exports: &[String], imports: &[String], environment: &Environment) -> Result<Caches, String> {
    let mut caches = Caches::default();
    for flag in exports {
        let mut entry = entry("--export-cache", flag, environment)?;
        entry.attrs.entry("mode".into()).or_insert_with(|| "min".into());
        if entry.kind == "local" {
            let dir = entry.attrs.get("dest").filter(|dir| !dir.is_empty()).ok_or("local cache exporter requires dest")?;
            std::fs::create_dir_all(dir).map_err(|e| format!("failed to create {dir}: {e}"))?;
            let tag = entry.attrs.get("tag").cloned().unwrap_or_else(|| "latest".into());
            caches.stores.insert(format!("local:{dir}"), BlobDir::new(dir));
            caches.to_index.push((dir.into(), tag));
        }
        needs_ref(&entry, "exporter")?;
        caches.exports.push(entry);
    }
    for flag in imports {
        let mut entry = entry("--import-cache", flag, environment)?;
        needs_ref(&entry, "importer")?;
        if entry.kind != "local" || caches.add_local_import(&mut entry)? {
            caches.imports.push(entry);
        }
    }
    Ok(caches)
}

impl Caches {
    /// What the frontend is told, so that it can ask for caches itself.
    pub fn imports_json(&self) -> Option<String> {
        let entries = self.imports.iter().map(|import| serde_json::json!({"Type": import.kind, "Attrs": import.attrs}));
        (!self.imports.is_empty()).then(|| serde_json::Value::Array(entries.collect()).to_string())
    }

    /// A local cache that is not there is no failure: the first build has none.
    fn add_local_import(&mut self, entry: &mut Typed) -> Result<bool, String> {
        let dir = entry.attrs.get("src").filter(|dir| !dir.is_empty()).ok_or("local cache importer requires src")?.clone();
        let skip = |why: String| {
            tracing::warn!("local cache import at {dir} skipped: {why}");
            Ok(false)
        };
        if entry.attrs.get("digest").is_none_or(String::is_empty) {
            let tag = entry.attrs.get("tag").cloned().unwrap_or_else(|| "latest".into());
            match layout::find(Path::new(&dir), &tag) {
                Ok(Some(descriptor)) => drop(entry.attrs.insert("digest".into(), descriptor.digest.to_string())),
                Ok(None) => return skip(format!("no digest found for tag {tag}")),
                Err(error) => return skip(fault::chain(&error)),
            }
        }
        let digest = entry.attrs["digest"].clone();
        let store = BlobDir::new(&dir);
        match digest.parse() {
            Ok(parsed) if store.has(&parsed) => {}
            Ok(_) => return skip(format!("digest {digest} unavailable")),
            Err(error) => return Err(format!("local cache importer: {error}")),
        }
        self.stores.insert(format!("local:{dir}"), store);
        Ok(true)
    }
}

fn needs_ref(entry: &Typed, side: &str) -> Result<(), String> {
    let missing = entry.kind == "registry" && entry.attrs.get("ref").is_none_or(String::is_empty);
    if missing { Err(format!("registry cache {side} requires ref")) } else { Ok(()) }
}

fn entry(flag: &str, text: &str, environment: &Environment) -> Result<Typed, String> {
    if !text.contains("type=") {
        // The oldest form: a reference alone.
        return Ok(Typed { kind: "registry".into(), attrs: [("ref".to_owned(), text.to_owned())].into() });
    }
    let mut attrs: BTreeMap<String, String> = csv_pairs(text)?.into_iter().collect();
    let kind = attrs.remove("type").filter(|kind| !kind.is_empty()).ok_or_else(|| format!("{flag} requires type=<type>"))?;
    if kind == "gha" {
        let from = [("url", "ACTIONS_CACHE_URL"), ("url_v2", "ACTIONS_RESULTS_URL"), ("token", "ACTIONS_RUNTIME_TOKEN")];
        for (key, variable) in from {
            if let Some(value) = environment.filled(variable) {
                attrs.entry(key.into()).or_insert_with(|| value.to_owned());
            }
        }
        if let Some(version) = environment.filled("ACTIONS_CACHE_SERVICE_V2").and_then(crate::cli::args::boolean).filter(|on| *on) {
            attrs.entry("version".into()).or_insert_with(|| if version { "2".into() } else { "1".into() });
        }
    }
    Ok(Typed { kind, attrs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_both(export: &str, import: &str) -> Result<Caches, String> {
        let list = |flag: &str| if flag.is_empty() { vec![] } else { vec![flag.to_owned()] };
        parse(&list(export), &list(import), &Environment::default())
    }

    #[test]
    fn registry_and_local_caches() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("c").to_str().unwrap().to_owned();
        let caches = parse_both(&format!("type=local,dest={at},mode=max"), &format!("type=local,src={at}")).unwrap();
        assert_eq!((caches.exports.len(), caches.imports.len()), (1, 0), "an import of what is not there is skipped");
        assert_eq!(caches.to_index, [(PathBuf::from(&at), "latest".to_owned())]);
        assert!(caches.stores.contains_key(&format!("local:{at}")));
        let old = parse_both("r/x", "r/y").unwrap();
        assert_eq!(old.exports[0].attrs["mode"], "min");
        assert_eq!(old.imports_json().unwrap(), r#"[{"Type":"registry","Attrs":{"ref":"r/y"}}]"#);
    }

    #[test]
    fn what_is_refused() {
        let refused = |export: &str, import: &str| parse_both(export, import).map(|_| ()).unwrap_err();
        assert_eq!(refused("type=registry", ""), "registry cache exporter requires ref");
        assert_eq!(refused("type=local", ""), "local cache exporter requires dest");
        assert_eq!(refused("", "type=local"), "local cache importer requires src");
        assert_eq!(refused("type=", ""), "--export-cache requires type=<type>");
    }
}
