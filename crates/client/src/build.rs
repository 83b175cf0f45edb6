//! One build, driven by the client: session, Solve, Status and the gateway side by side.
use std::collections::BTreeMap;
use std::time::Duration;

use fault::{Context as _, Fault, Result};
use proto::google::rpc;
use proto::moby::buildkit::v1 as pb;
use proto::moby::buildkit::v1::frontend as gateway;
use tokio::sync::mpsc;
use tonic::{Request, Status};
use wire::status::into_fault;

use crate::Client;
use crate::session::Session;

/// What to build. Exactly one of `frontend` and `definition` is given.
#[derive(Debug, Clone, Default)]
pub struct Build {
    /// Unique; see [`crate::new_id`].
    pub id: String,
    pub frontend: String,
    pub frontend_attrs: BTreeMap<String, String>,
    pub definition: Option<proto::pb::Definition>,
    pub exporters: Vec<Typed>,
    pub cache_exports: Vec<Typed>,
    pub cache_imports: Vec<Typed>,
    pub entitlements: Vec<String>,
    pub source_policy: Option<pb::sourcepolicy::Policy>,
    pub internal: bool,
    pub proxy_network: bool,
}

/// An exporter or a cache location.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Typed {
    pub kind: String,
    pub attrs: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub exporter: BTreeMap<String, String>,
    /// Metadata of the frontend's result, such as answers to subrequests.
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// How long to wait for more progress once the build is over.
const QUIET: Duration = Duration::from_secs(5);

/// Runs the build; progress goes to `progress` until it is complete. Dropping the future cancels the build.
pub async fn run(client: &Client, session: Session, build: Build, progress: mpsc::Sender<pb::StatusResponse>) -> Result<Outcome> {
    let session = session.open(client).await?;
    let (over, mut is_over) = tokio::sync::watch::channel(false);
    let solve = async {
        let answer = client.control().solve(solve_request(&build, session.id())).await;
        let _ = over.send(true);
        answer.map_err(|status| into_fault(&status)).context("failed to solve")
    };
    let drive = async {
        match drive(client, &build).await {
            Ok(metadata) => Ok(metadata),
            // The same failure reaches us through the solve, with all that was added to it; if it does not, this one counts.
            Err(fault) => match tokio::time::timeout(QUIET, is_over.clone().wait_for(|over| *over)).await {
                Ok(_) => Ok(BTreeMap::new()),
                Err(_) => Err(fault),
            },
        }
    };
    let watch = watch(client, &build.id, progress, is_over.clone());
    let building = async { tokio::try_join!(solve, drive) };
    let (built, watched) = tokio::join!(building, watch);
    drop(session);
    let (answer, metadata) = built?;
    watched?;
    let _ = is_over.borrow_and_update();
    Ok(Outcome { exporter: answer.into_inner().exporter_response, metadata })
}

fn solve_request(build: &Build, session: &str) -> pb::SolveRequest {
    let entry = |typed: &Typed| pb::CacheOptionsEntry { r#type: typed.kind.clone(), attrs: typed.attrs.clone() };
    let exporters: Vec<pb::Exporter> =
        build.exporters.iter().map(|typed| pb::Exporter { r#type: typed.kind.clone(), attrs: typed.attrs.clone() }).collect();
    let first = exporters.first().cloned().unwrap_or_default();
    pb::SolveRequest {
        r#ref: build.id.clone(),
        exporter_deprecated: first.r#type,
        exporter_attrs_deprecated: first.attrs,
        session: session.to_owned(),
        frontend_attrs: build.frontend_attrs.clone(),
        cache: Some(pb::CacheOptions {
            exports: build.cache_exports.iter().map(entry).collect(),
            imports: build.cache_imports.iter().map(entry).collect(),
            ..Default::default()
        }),
        entitlements: build.entitlements.clone(),
        internal: build.internal,
        source_policy: build.source_policy.clone(),
        exporters,
        proxy_network: build.proxy_network,
        ..Default::default()
    }
}

/// Asks the daemon for the result and hands it back as the build's.
async fn drive(client: &Client, build: &Build) -> Result<BTreeMap<String, Vec<u8>>> {
    let imports = build.cache_imports.iter();
    let request = gateway::SolveRequest {
        definition: build.definition.clone(),
        frontend: build.frontend.clone(),
        frontend_opt: build.frontend_attrs.clone(),
        allow_result_return: true,
        allow_result_array_ref: true,
        cache_imports: imports.map(|typed| gateway::CacheOptionsEntry { r#type: typed.kind.clone(), attrs: typed.attrs.clone() }).collect(),
        ..Default::default()
    };
    let mut bridge = client.bridge();
    let (result, error, outcome) = match bridge.solve(of_build(&build.id, request)?).await {
        Ok(answer) => {
            let result = returnable(answer.into_inner().result.unwrap_or_default());
            let metadata = result.metadata.clone();
            (Some(result), None, Ok(metadata))
        }
        Err(status) => (None, Some(message(&status)), Err(into_fault(&status))),
    };
    bridge.r#return(of_build(&build.id, gateway::ReturnRequest { result, error })?).await.map_err(|status| into_fault(&status))?;
    outcome
}

/// A result that may be handed back. The empty message, as a value in a map, is left out on the wire, and a daemon in Go takes that for a null.
fn returnable(mut result: gateway::Result) -> gateway::Result {
    if let Some(gateway::result::Result::Refs(map)) = &mut result.result {
        for reference in map.refs.values_mut() {
            reference.def.get_or_insert_default();
        }
    }
    result.attestations.retain(|_, all| !all.attestation.is_empty());
    result
}

fn of_build<T>(build: &str, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let id = build.parse().map_err(|_| Fault::invalid(format!("build id {build:?} cannot be sent as metadata")))?;
    request.metadata_mut().insert("buildkit-controlapi-buildid", id);
    Ok(request)
}

/// A status as it came, with its details.
fn message(status: &Status) -> rpc::Status {
    use prost::Message as _;
    let full = rpc::Status::decode(status.details()).ok().filter(|full| full.code != 0);
    full.unwrap_or_else(|| rpc::Status { code: status.code() as i32, message: status.message().to_owned(), details: Vec::new() })
}

/// Forwards progress until it ends, or is silent for long after the build is over.
async fn watch(
    client: &Client,
    build: &str,
    progress: mpsc::Sender<pb::StatusResponse>,
    mut over: tokio::sync::watch::Receiver<bool>,
) -> Result<()> {
    let answer = client.control().status(pb::StatusRequest { r#ref: build.to_owned() }).await;
    let mut parts = match answer {
        Ok(answer) => answer.into_inner(),
        // The build ended before it began; its own error says why.
        Err(_) if *over.borrow() => return Ok(()),
        Err(status) => return Err(into_fault(&status)).context("failed to get status"),
    };
    loop {
        let silent = async {
            let _ = over.wait_for(|over| *over).await;
            tokio::time::sleep(QUIET).await;
        };
        let part = tokio::select! {
            part = parts.message() => part,
            () = silent => return Ok(()),
        };
        match part {
            Ok(Some(part)) => drop(progress.send(part).await),
            Ok(None) => return Ok(()),
            Err(_) if *over.borrow() => return Ok(()),
            Err(status) => return Err(into_fault(&status)).context("failed to receive status"),
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn an_empty_result_in_a_map_is_there_on_the_wire() {
        let refs = BTreeMap::from([("k".to_owned(), gateway::Ref::default())]);
        let result = Some(gateway::result::Result::Refs(gateway::RefMap { refs }));
        let attestations = BTreeMap::from([("k".to_owned(), gateway::Attestations::default())]);
        let sent = returnable(gateway::Result { result, attestations, ..gateway::Result::default() });
        assert!(sent.attestations.is_empty());
        let Some(gateway::result::Result::Refs(map)) = sent.result else { panic!("a map") };
        // One entry: the key, and a value with an empty definition.
        assert_eq!(map.encode_to_vec(), [0x0a, 7, 0x0a, 1, b'k', 0x12, 2, 0x12, 0]);
    }
}
