//! Statements about a build's result: those that frontends give, bills of materials that the daemon has made or makes, and provenance.
mod contents;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dockerfile::source::ResolveMode;
use export::{Predicate, Statement};
use fault::{Context as _, Fault, Kind, Result};
use frontend::attestations::{SbomRequest, Wanted};
use frontend::bridge::{Attestation, AttestationKind, SubjectKind};
use frontend::sbom::{SCAN, SPDX, Scanner, Subject as Scanned};
use frontend::{Bridge, Outcome};
use oci::{Digest, Platform, gojson};
use serde::Deserialize;
use serde_json::Value;

use crate::bridge::BuildBridge;
use crate::build::Build;
use crate::files::Tree;
use crate::platforms;
use crate::provenance::Options;

/// Bytes of one document.
const MAX_DOCUMENT: u64 = 40 << 20;
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// What a build is to state.
#[derive(Debug, Clone, Default)]
pub struct Attests {
    sbom: Option<SbomRequest>,
    pub provenance: Option<Options>,
}

impl Attests {
    pub fn parse(opts: &BTreeMap<String, String>) -> Result<Self> {
        let wanted = Wanted::parse(opts, "generator")?;
        Ok(Self { sbom: wanted.sbom, provenance: wanted.provenance.as_ref().map(Options::parse).transpose()? })
    }
}

/// Has the results scanned, unless the frontend saw to that.
pub async fn scan(build: &Arc<Build>, outcome: &mut Outcome, wanted: &Attests) -> Result<()> {
    let Some(request) = &wanted.sbom else { return Ok(()) };
    if outcome.attestations.values().flatten().any(|statement| statement.predicate_type == SPDX) {
        return Ok(());
    }
    let platforms = platforms::of(outcome)?;
    let opts = build.attrs();
    let bridge = BuildBridge::new(build.clone(), opts.clone(), BTreeMap::new(), build.scope().clone());
    let mode = match opts.get("image-resolve-mode").map_or("", String::as_str) {
        "pull" => ResolveMode::ForcePull,
        "local" => ResolveMode::PreferLocal,
        _ => ResolveMode::Default,
    };
    let native = build.worker.facts(false).platforms.into_iter().next().unwrap_or_else(Platform::host);
    let bridge: &dyn Bridge = &bridge;
    let scanner = Scanner::prepare(bridge, request, &native, mode).await?;
    for (id, _) in platforms {
        let Some(reference) = outcome.reference(&id) else { continue };
        let subject = Scanned {
            platform_id: &id,
            core: reference.graph(),
            extras: &BTreeMap::new(),
            ignore_cache: opts.get("no-cache").is_some_and(String::is_empty),
        };
        let statements = scanner.scan(bridge, &subject).await?;
        outcome.attestations.entry(id).or_default().extend(statements);
    }
    Ok(())
}

/// Has what statements are read from made.
pub async fn evaluate(build: &Build, outcome: &Outcome) -> Result<()> {
    let stated = outcome.attestations.values().flatten().filter_map(|statement| statement.reference.as_ref());
    futures_util::future::try_join_all(stated.map(|reference| build.layer_of(reference))).await?;
    Ok(())
}

/// All statements as exporters take them, by platform id: those of the outcome, and then the provenance.
pub async fn statements(
    build: &Build,
    outcome: &Outcome,
    provenance: BTreeMap<String, Statement>,
) -> Result<BTreeMap<String, Vec<Statement>>> {
    let mut all: BTreeMap<String, Vec<Statement>> = BTreeMap::new();
    for (id, given) in &outcome.attestations {
        let mut read = Vec::new();
        for attestation in given {
            match attestation.metadata.get(SCAN) {
                Some(why) => read.push(contents::statement(build, outcome, id, attestation, why).await?),
                None => read.extend(self::read(build, attestation).await?),
            }
        }
        all.insert(id.clone(), read);
    }
    for (id, statement) in provenance {
        all.entry(id).or_default().push(statement);
    }
    for statements in all.values_mut() {
        // Documents about the result as a whole come first.
        statements.sort_by_key(|statement| !is_core(statement));
    }
    Ok(all)
}

fn is_core(statement: &Statement) -> bool {
    statement.sbom_core.as_deref() == statement.path.split('.').next()
}

fn failed(message: impl Into<String>) -> Fault {
    // BuildKit gives these no code of their own.
    Fault::new(Kind::Unknown, message)
}

async fn read(build: &Build, attestation: &Attestation) -> Result<Vec<Statement>> {
    let is_bundle = attestation.kind == AttestationKind::Bundle;
    if !is_bundle && attestation.path.is_empty() {
        return Err(failed("attestation does not have set path"));
    }
    let Some(reference) = &attestation.reference else { return Err(failed("attestation does not have available content")) };
    if !is_bundle && attestation.predicate_type.starts_with(PROVENANCE) {
        return Err(failed("frontend may not set provenance attestations"));
    }
    let tree = Tree::open(build.layer_of(reference).await?, &build.cancel).await?;
    if is_bundle {
        return unbundle(&tree, attestation).await;
    }
    let predicate = tree.read_whole(&attestation.path, MAX_DOCUMENT).await.context("cannot read in-toto attestation")?;
    let subject = |subject: &frontend::bridge::Subject| match subject.kind {
        SubjectKind::Own => export::Subject::Own { name: subject.name.clone() },
        SubjectKind::Raw => export::Subject::Raw { name: subject.name.clone(), digests: subject.digests.clone() },
    };
    let subjects = attestation.subjects.iter().map(subject).collect();
    Ok(vec![statement(attestation, attestation.predicate_type.clone(), attestation.path.clone(), predicate, subjects)])
}

fn statement(from: &Attestation, predicate_type: String, path: String, predicate: Bytes, subjects: Vec<export::Subject>) -> Statement {
    let text = |key: &str| from.metadata.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
    Statement {
        predicate_type,
        predicate: Predicate::Given(predicate),
        path,
        inline_only: text("inline-only").as_deref() == Some("true"),
        subjects,
        sbom_core: text("sbom-core"),
    }
}

/// A file of a bundle. Keys go by any case, as Go reads them.
#[derive(Deserialize)]
struct InToto {
    #[serde(rename = "predicateType", default)]
    predicate_type: String,
    #[serde(default)]
    subject: Option<Vec<InTotoSubject>>,
    #[serde(default)]
    predicate: Value,
}

#[derive(Deserialize)]
struct InTotoSubject {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

impl InTotoSubject {
    fn into_subject(self) -> export::Subject {
        let digest = |(algorithm, hex): (String, String)| format!("{algorithm}:{hex}").parse::<Digest>().ok();
        export::Subject::Raw { name: self.name, digests: self.digest.into_iter().filter_map(digest).collect() }
    }
}

/// Each file of the directory is a statement.
async fn unbundle(tree: &Tree, bundle: &Attestation) -> Result<Vec<Statement>> {
    let mut all = Vec::new();
    for entry in tree.read_dir(&bundle.path, "").await? {
        let path = patterns::join(&[&bundle.path, &entry.path]);
        let data = tree.read_whole(&path, MAX_DOCUMENT).await?;
        let found = decode(&data)?;
        if !bundle.predicate_type.is_empty() && found.predicate_type != bundle.predicate_type {
            return Err(failed(format!(
                "bundle entry {} does not match required predicate type {}",
                found.predicate_type, bundle.predicate_type
            )));
        }
        if found.predicate_type.starts_with(PROVENANCE) {
            return Err(failed("frontend may not bundle provenance attestations"));
        }
        let predicate = gojson::to_vec(&gojson::sorted(found.predicate));
        let subjects = found.subject.unwrap_or_default().into_iter().map(InTotoSubject::into_subject).collect();
        all.push(statement(bundle, found.predicate_type, path, predicate.into(), subjects));
    }
    Ok(all)
}

fn decode(data: &[u8]) -> Result<InToto> {
    let mut documents = serde_json::Deserializer::from_slice(data).into_iter::<InToto>();
    let first = documents.next().unwrap_or_else(|| Err(serde::de::Error::custom("EOF")));
    let first = first.map_err(|e| failed(format!("cannot decode in-toto statement: {e}")))?;
    if data[documents.byte_offset()..].iter().any(|b| !b.is_ascii_whitespace()) {
        return Err(failed("in-toto statement is not a single JSON object"));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundles_file_is_one_statement() {
        let text = r#"{"_type":"x","predicateType":"t","subject":[{"name":"n","digest":{"sha256":"%"}}],"predicate":{"b":1,"a":2}} "#;
        let text = text.replace('%', Digest::of("x").hex());
        let found = decode(text.as_bytes()).unwrap();
        assert_eq!((found.predicate_type.as_str(), found.predicate.to_string().as_str()), ("t", r#"{"b":1,"a":2}"#));
        let subject = found.subject.unwrap().remove(0).into_subject();
        assert_eq!(subject, export::Subject::Raw { name: "n".into(), digests: vec![Digest::of("x")] });
        assert_eq!(decode(b"{}{}").err().unwrap().to_string(), "in-toto statement is not a single JSON object");
        assert!(decode(b"[").err().unwrap().to_string().starts_with("cannot decode in-toto statement: "));
        assert!(decode(b"").err().unwrap().to_string().starts_with("cannot decode in-toto statement: "));
    }

    #[test]
    fn the_core_document_is_told_by_its_name() {
        let statement = |path: &str, core: Option<&str>| Statement {
            predicate_type: SPDX.into(),
            predicate: Predicate::Given(Bytes::new()),
            path: path.into(),
            inline_only: false,
            subjects: Vec::new(),
            sbom_core: core.map(str::to_owned),
        };
        assert!(is_core(&statement("sbom.spdx.json", Some("sbom"))));
        assert!(!is_core(&statement("sbom-base.spdx.json", Some("sbom"))) && !is_core(&statement("sbom.json", None)));
    }
}
