//! A Solve message as a [`job::Request`]: legacy fields folded in, graphs loaded, numbers checked.
use std::collections::BTreeMap;

use fault::{Fault, Kind};
use job::{Request, Typed};
use llb::Graph;
use proto::moby::buildkit::v1 as pb;
use tonic::Status;
use wire::status;

use crate::convert;

const COMPATIBILITY: [i64; 3] = [10, 20, 30];

pub fn load(message: pb::SolveRequest) -> Result<Request, Status> {
    let compatibility = compatibility(message.compatibility_version)?;
    let definition = message.definition.as_ref().map(graph).transpose()?;
    let frontend_inputs = graphs(&message.frontend_inputs)?;
    let cache = message.cache.unwrap_or_default();
    let mut exporters: Vec<Typed> = message.exporters.into_iter().map(|e| Typed { kind: e.r#type, attrs: e.attrs }).collect();
    if exporters.is_empty() && !message.exporter_deprecated.is_empty() {
        exporters.push(Typed { kind: message.exporter_deprecated, attrs: message.exporter_attrs_deprecated });
    }
    if let Some(epoch) = source_date_epoch(&message.frontend_attrs) {
        for exporter in &mut exporters {
            exporter.attrs.entry("source-date-epoch".into()).or_insert_with(|| epoch.to_owned());
        }
    }
    Ok(Request {
        id: message.r#ref,
        session: message.session,
        definition,
        frontend: message.frontend,
        frontend_attrs: message.frontend_attrs,
        frontend_inputs,
        exporters,
        session_exporters: message.enable_session_exporter,
        cache_exports: cache_exports(cache.exports, cache.export_ref_deprecated, cache.export_attrs_deprecated),
        cache_imports: cache_imports(cache.imports, cache.import_refs_deprecated),
        entitlements: message.entitlements,
        internal: message.internal,
        source_policy: message.source_policy.map(convert::policy).transpose()?,
        policy_session: message.source_policy_session,
        compatibility,
        proxy_network: message.proxy_network,
        parent: None,
    })
}

/// A definition with no ops is the empty graph: scratch.
pub fn graph(definition: &proto::pb::Definition) -> Result<Graph, Status> {
    if definition.def.is_empty() {
        return Ok(Graph::default());
    }
    let failed = |error| status::of_build(&Fault::of(Kind::Invalid, error).context("failed to load LLB"));
    Graph::load(definition).map_err(failed)
}

pub fn graphs(definitions: &BTreeMap<String, proto::pb::Definition>) -> Result<BTreeMap<String, Graph>, Status> {
    definitions.iter().map(|(name, definition)| Ok((name.clone(), graph(definition)?))).collect()
}

fn compatibility(version: i64) -> Result<u32, Status> {
    let current = COMPATIBILITY[COMPATIBILITY.len() - 1];
    match version {
        0 => Ok(current as u32),
        known if COMPATIBILITY.contains(&known) => Ok(known as u32),
        newer if newer > current => {
            Err(Status::unknown(format!("unsupported compatibility-version {newer}: upgrade buildkit (max supported: {current})")))
        }
        other => Err(Status::unknown(format!("unsupported compatibility-version {other} (supported: [10 20 30])"))),
    }
}

/// Clients fill the old fields beside the new ones; whoever fills only the old ones is older than exporter lists.
fn cache_exports(entries: Vec<pb::CacheOptionsEntry>, legacy: String, attrs: BTreeMap<String, String>) -> Vec<Typed> {
    let mut exports: Vec<Typed> = entries.into_iter().map(entry).collect();
    if !legacy.is_empty() {
        let mut attrs = attrs;
        attrs.insert("ref".into(), legacy);
        exports.push(Typed { kind: "registry".into(), attrs });
    }
    exports
}

fn cache_imports(entries: Vec<pb::CacheOptionsEntry>, legacy: Vec<String>) -> Vec<Typed> {
    let legacy = legacy.into_iter().map(|reference| Typed { kind: "registry".into(), attrs: [("ref".to_owned(), reference)].into() });
    entries.into_iter().map(entry).chain(legacy).collect()
}

fn entry(entry: pb::CacheOptionsEntry) -> Typed {
    Typed { kind: entry.r#type, attrs: entry.attrs }
}

/// The build argument that exporters take their timestamps from: a number, or nothing at all.
fn source_date_epoch(attrs: &BTreeMap<String, String>) -> Option<&str> {
    let value = attrs.get("build-arg:SOURCE_DATE_EPOCH")?;
    (value.is_empty() || value.parse::<i64>().is_ok()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn old_and_new_fields_are_not_both_executed() {
        let old = pb::SolveRequest {
            exporter_deprecated: "image".into(),
            exporter_attrs_deprecated: attrs(&[("name", "x")]),
            cache: Some(pb::CacheOptions {
                export_ref_deprecated: "r/c".into(),
                import_refs_deprecated: vec!["r/i".into()],
                ..Default::default()
            }),
            ..Default::default()
        };
        let both =
            pb::SolveRequest { exporters: vec![pb::Exporter { r#type: "image".into(), attrs: attrs(&[("name", "x")]) }], ..old.clone() };
        for message in [old, both] {
            let request = load(message).unwrap();
            assert_eq!(request.exporters, [Typed { kind: "image".into(), attrs: attrs(&[("name", "x")]) }]);
            assert_eq!(request.cache_exports, [Typed { kind: "registry".into(), attrs: attrs(&[("ref", "r/c")]) }]);
            assert_eq!(request.cache_imports, [Typed { kind: "registry".into(), attrs: attrs(&[("ref", "r/i")]) }]);
            assert!(request.client_driven() && request.compatibility == 30);
        }
    }

    #[test]
    fn an_empty_definition_is_scratch_and_not_client_driven() {
        let request = load(pb::SolveRequest { definition: Some(Default::default()), ..Default::default() }).unwrap();
        assert!(!request.client_driven());
    }

    #[test]
    fn versions_that_we_do_not_speak_are_refused() {
        let refused =
            |version| load(pb::SolveRequest { compatibility_version: version, ..Default::default() }).unwrap_err().message().to_owned();
        assert_eq!(refused(40), "unsupported compatibility-version 40: upgrade buildkit (max supported: 30)");
        assert_eq!(refused(15), "unsupported compatibility-version 15 (supported: [10 20 30])");
        assert_eq!(load(pb::SolveRequest { compatibility_version: 20, ..Default::default() }).unwrap().compatibility, 20);
    }

    #[test]
    fn the_epoch_reaches_exporters_that_have_none() {
        let exporter = |attrs| pb::Exporter { r#type: "image".into(), attrs };
        let load = |value: &str| {
            let message = pb::SolveRequest {
                frontend_attrs: attrs(&[("build-arg:SOURCE_DATE_EPOCH", value)]),
                exporters: vec![exporter(attrs(&[])), exporter(attrs(&[("source-date-epoch", "5")]))],
                ..Default::default()
            };
            load(message).unwrap().exporters.into_iter().map(|e| e.attrs.get("source-date-epoch").cloned()).collect::<Vec<_>>()
        };
        assert_eq!(load("7"), [Some("7".to_owned()), Some("5".to_owned())]);
        assert_eq!(load("context"), [None, Some("5".to_owned())]);
    }

    #[test]
    fn a_broken_definition_dies_here() {
        let definition = proto::pb::Definition { def: vec![bytes::Bytes::from_static(&[0xff, 0xff])], ..Default::default() };
        let status = load(pb::SolveRequest { definition: Some(definition), ..Default::default() }).unwrap_err();
        assert!(status.message().starts_with("failed to load LLB"), "{status:?}");
    }
}
