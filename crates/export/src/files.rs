//! What `local` and `tar` exports have in common: options, and the file tree of each platform's result.
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fault::{Fault, Result};
use oci::{Hasher, gojson};

use crate::api::{Context, PlatformResult, Source};
use crate::attestation::{Target, Written};
use crate::attrs::{Attrs, Epoch, parse_bool};
use crate::tree::{Directory, Empty, Entry, LayerTree, Shared, WithFiles};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Adds to what the client has.
    Copy,
    /// The client removes what the result lacks.
    Delete,
}

#[derive(Debug, Clone)]
pub struct FilesOptions {
    pub epoch: Epoch,
    pub mode: Mode,
    attestation_prefix: String,
    split: Option<bool>,
}

impl FilesOptions {
    pub fn take(mut attrs: Attrs) -> Result<Self> {
        let split = attrs.text("platform-split");
        let given = attrs.text("mode").unwrap_or_default();
        let mode = match given.trim().to_lowercase().as_str() {
            "" | "copy" => Mode::Copy,
            "delete" => Mode::Delete,
            _ => return Err(Fault::invalid(format!("invalid local exporter mode {given:?}"))),
        };
        Ok(Self {
            epoch: attrs.epoch()?,
            mode,
            attestation_prefix: attrs.text("attestation-prefix").unwrap_or_default(),
            split: split.map(|value| parse_bool(&value, &format!("non-bool value for platform-split: {value}"))).transpose()?,
        })
    }

    /// Whether each platform has a directory of its own.
    pub fn split(&self, source: &Source) -> bool {
        self.split.unwrap_or(source.is_map)
    }
}

/// The files of one platform's result.
pub struct Output {
    pub id: String,
    /// Seconds since 1970.
    pub epoch: Option<i64>,
    pub tree: Shared,
}

impl Output {
    pub fn into_directory(self) -> Directory {
        Directory::of_platform(&self.id, self.epoch, self.tree)
    }
}

/// The trees of all platforms, their layers' files here.
pub async fn outputs(source: &Source, options: &FilesOptions, context: &Context) -> Result<Vec<Output>> {
    if !source.is_map && source.results.len() > 1 {
        return Err(Fault::invalid("unable to export multiple platforms without map"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let mut outputs = Vec::new();
    for result in &source.results {
        outputs.push(output(source, result, options, now, context).await?);
    }
    Ok(outputs)
}

async fn output(source: &Source, result: &PlatformResult, options: &FilesOptions, now: i64, context: &Context) -> Result<Output> {
    let epoch = options.epoch.resolve(&source.metadata, &result.id)?;
    let tree: Shared = match &result.layer {
        None => Arc::new(Empty),
        Some(layer) => {
            context.cancel.run(layer.realize_with_room(&context.cancel, &context.reporter)).await?;
            Arc::new(LayerTree::new(layer.view()?, epoch))
        }
    };
    let mut statements = Vec::new();
    for statement in source.attestations.get(&result.id).into_iter().flatten().filter(|statement| !statement.inline_only) {
        statements.push(Written::of(statement).await?);
    }
    let mut output = Output { id: result.id.clone(), epoch, tree };
    if !statements.is_empty() {
        // Where several platforms share a directory, the name has to say which one it is about.
        let platform = (source.is_map && !options.split(source)).then(|| result.id.replace('/', "_"));
        let naming = Naming { prefix: options.attestation_prefix.clone(), platform };
        let tree = output.tree.clone();
        let mtime = epoch.unwrap_or(now).saturating_mul(1_000_000_000);
        let files = task::blocking(move || statement_files(&tree, &statements, &naming, mtime)).await?;
        output.tree = Arc::new(WithFiles::new(output.tree, files));
    }
    Ok(output)
}

struct Naming {
    prefix: String,
    platform: Option<String>,
}

impl Naming {
    fn name(&self, path: &str) -> String {
        let base = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let name = format!("{}{base}", self.prefix);
        let Some(platform) = &self.platform else { return name };
        match name.rfind('.').filter(|dot| !name[*dot..].contains('/')) {
            Some(dot) => format!("{}.{platform}{}", &name[..dot], &name[dot..]),
            None => format!("{name}.{platform}"),
        }
    }
}

/// Statements about every file of the tree, each a file. Reads the whole tree.
fn statement_files(tree: &Shared, statements: &[Written], naming: &Naming, mtime: i64) -> Result<Vec<(Entry, Bytes)>> {
    let mut targets = Vec::new();
    tree.walk(&mut |entry| {
        if entry.is_file() {
            let mut hasher = Hasher::new();
            std::io::copy(&mut tree.open(&entry.path)?, &mut hasher)?;
            targets.push(Target { name: entry.path.to_string_lossy().into_owned(), digest: hasher.finish() });
        }
        Ok(())
    })?;
    let mut files: Vec<(Entry, Bytes)> = Vec::new();
    for statement in statements {
        let json = Bytes::from(gojson::indent(&statement.render(&targets)?));
        let name = naming.name(&statement.path);
        if files.iter().any(|(entry, _)| entry.path.as_os_str() == name.as_str()) {
            return Err(Fault::invalid(format!("duplicate attestation path name {name}")));
        }
        files.push((Entry::file(name, 0o600, mtime, json.len() as u64), json));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tree::tests::Listed;

    fn take(pairs: &[(&str, &str)]) -> Result<FilesOptions> {
        FilesOptions::take(Attrs::new(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()))
    }

    #[test]
    fn reads_options() {
        assert_eq!(take(&[("mode", " Delete ")]).unwrap().mode, Mode::Delete);
        assert_eq!(take(&[("mode", "mirror")]).unwrap_err().to_string(), "invalid local exporter mode \"mirror\"");
        assert!(take(&[("platform-split", "x")]).unwrap_err().to_string().starts_with("non-bool value for platform-split: x: strconv"));
        let map = Source { is_map: true, ..Source::default() };
        assert!(take(&[]).unwrap().split(&map) && !take(&[]).unwrap().split(&Source::default()));
        assert!(!take(&[("platform-split", "0")]).unwrap().split(&map));
    }

    #[test]
    fn statements_are_about_every_file() {
        let tree = Listed::default().dir("d").file("d/a", b"x").shared();
        let statement = |path: &str| Written {
            predicate_type: "t".into(),
            predicate: "{\"k\":[1]}".into(),
            path: path.into(),
            inline_only: false,
            subjects: Vec::new(),
            sbom_core: None,
        };
        let naming = Naming { prefix: "pre-".into(), platform: Some("linux_amd64".into()) };
        let files = statement_files(&tree, &[statement("/sbom.spdx.json"), statement("plain")], &naming, 7).unwrap();
        let (entry, json) = &files[0];
        assert_eq!((entry.path.to_str().unwrap(), entry.mode & 0o777, entry.mtime), ("pre-sbom.spdx.linux_amd64.json", 0o600, 7));
        assert_eq!(files[1].0.path.to_str(), Some("pre-plain.linux_amd64"));
        let hex = oci::Digest::of("x").hex().to_owned();
        let want = format!(
            "{{\n  \"_type\": \"https://in-toto.io/Statement/v1\",\n  \"predicateType\": \"t\",\n  \"subject\": [\n    {{\n      \"name\": \"d/a\",\n      \
             \"digest\": {{\n        \"sha256\": \"{hex}\"\n      }}\n    }}\n  ],\n  \"predicate\": {{\n    \"k\": [\n      1\n    ]\n  }}\n}}"
        );
        assert_eq!(json, &want);
        let plain = Naming { prefix: String::new(), platform: None };
        let failure = statement_files(&tree, &[statement("a/x"), statement("b/x")], &plain, 0).unwrap_err();
        assert_eq!(failure.to_string(), "duplicate attestation path name x");
    }
}
