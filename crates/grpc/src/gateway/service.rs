//! The calls of `moby.buildkit.v1.frontend.LLBBridge`.
use std::pin::Pin;
use std::sync::Arc;

use fault::{Fault, Kind};
use frontend::bridge::CacheImport;
use frontend::{Outcome, Refs, ResolveRequest};
use futures_core::Stream;
use job::{ContainerMount, ContainerRequest, Service};
use llb::SourceOp;
use proto::moby::buildkit::v1::frontend as pb;
use proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridge;
use proto::moby::buildkit::v1::{apicaps::ApiCap, types};
use tonic::{Request, Response, Status, Streaming};
use wire::status;

use super::messages::{self, RefForm};
use super::{Drive, Gateways, process};
use crate::{convert, request};

/// Serves the bridge of one build, or of the build that a call names.
pub struct Bridge(Builds);

enum Builds {
    One(Arc<Drive>),
    Named { service: Arc<dyn Service>, gateways: Gateways },
}

impl Bridge {
    pub fn of_one(drive: Arc<Drive>) -> Self {
        Self(Builds::One(drive))
    }

    pub fn of_named(service: Arc<dyn Service>, gateways: Gateways) -> Self {
        Self(Builds::Named { service, gateways })
    }

    async fn drive<T>(&self, request: &Request<T>) -> Result<Arc<Drive>, Status> {
        match &self.0 {
            Builds::One(drive) => Ok(drive.clone()),
            Builds::Named { service, gateways } => gateways.of_call(service.as_ref(), request).await,
        }
    }
}

/// Failures of a driven build's own work.
fn failed(fault: Fault) -> Status {
    status::of_build(&fault)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl LlbBridge for Bridge {
    async fn resolve_image_config(&self, request: Request<pb::ResolveImageConfigRequest>) -> Answer<pb::ResolveImageConfigResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let from_layout = request.resolver_type == 1;
        let scheme = if from_layout { "oci-layout://" } else { "docker-image://" };
        let identifier = format!("{scheme}{}", request.r#ref);
        let store = [("oci.session", request.session_id), ("oci.store", request.store_id)];
        let attrs =
            store.into_iter().filter(|(_, value)| from_layout && !value.is_empty()).map(|(key, value)| (key.to_owned(), value)).collect();
        let question = ResolveRequest {
            op: SourceOp { identifier: identifier.clone(), attrs },
            platform: request.platform.map(llb::parts::platform),
            log_name: request.log_name,
            resolve_mode: request.resolve_mode,
            source_policies: convert::policies(request.source_policies)?,
            ..ResolveRequest::default()
        };
        let meta = drive.gateway.bridge().resolve_source(question).await.map_err(failed)?;
        let Some(reference) = meta.op.identifier.strip_prefix(scheme).map(str::to_owned) else {
            return Err(Status::unknown(format!("ref mutated by policy to non-image: {identifier} -> {}", meta.op.identifier)));
        };
        let image = meta.image.ok_or_else(|| Status::unknown(format!("no image found for {identifier}")))?;
        Ok(Response::new(pb::ResolveImageConfigResponse {
            digest: image.digest.to_string(),
            config: image.config.into(),
            r#ref: reference,
        }))
    }

    async fn resolve_source_meta(&self, request: Request<pb::ResolveSourceMetaRequest>) -> Answer<pb::ResolveSourceMetaResponse> {
        let drive = self.drive(&request).await?;
        let question = messages::source_question(request.into_inner())?;
        let meta = drive.gateway.bridge().resolve_source(question).await.map_err(failed)?;
        Ok(Response::new(messages::source_answer(meta)))
    }

    async fn solve(&self, request: Request<pb::SolveRequest>) -> Answer<pb::SolveResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let graph = request.definition.as_ref().filter(|definition| !definition.def.is_empty()).map(request::graph).transpose()?;
        let inputs = request::graphs(&request.frontend_inputs)?;
        let asked = frontend::SolveRequest {
            graph: graph.map(Arc::new),
            frontend: request.frontend,
            frontend_opts: request.frontend_opt,
            frontend_inputs: inputs.into_iter().map(|(name, graph)| (name, Arc::new(graph))).collect(),
            evaluate: request.evaluate,
            cache_imports: request.cache_imports.into_iter().map(|c| CacheImport { kind: c.r#type, attrs: c.attrs }).collect(),
            source_policies: convert::policies(request.source_policies)?,
        };
        let outcome = drive.told(drive.gateway.bridge().solve(asked).await).await?;
        if matches!(outcome.refs, Refs::Map(_)) && !request.allow_result_return {
            return Err(Status::unknown("solve did not return default result"));
        }
        let form = if request.allow_result_array_ref { RefForm::IdAndGraph } else { RefForm::Id };
        let result = drive.outcome_message(&outcome, form);
        let legacy_id = match &outcome.refs {
            Refs::Single(Some(reference)) if !request.allow_result_return => reference.id().to_owned(),
            _ => String::new(),
        };
        if request.r#final {
            finish_with_attrs(&drive, outcome, &request.exporter_attr).await?;
        }
        Ok(Response::new(pb::SolveResponse { r#ref: legacy_id, result: Some(result) }))
    }

    async fn read_file(&self, request: Request<pb::ReadFileRequest>) -> Answer<pb::ReadFileResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let data = reference(&drive, &request.r#ref)?.read_file(&request.file_path, range(request.range)).await;
        let data = drive.told(data).await?;
        Ok(Response::new(pb::ReadFileResponse { data: data.into() }))
    }

    async fn read_dir(&self, request: Request<pb::ReadDirRequest>) -> Answer<pb::ReadDirResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let entries = reference(&drive, &request.r#ref)?.read_dir(&request.dir_path, &request.include_pattern).await;
        let entries = drive.told(entries).await?;
        Ok(Response::new(pb::ReadDirResponse { entries: entries.into_iter().map(wire::from_stat).collect() }))
    }

    async fn stat_file(&self, request: Request<pb::StatFileRequest>) -> Answer<pb::StatFileResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let stat = drive.told(reference(&drive, &request.r#ref)?.stat_file(&request.path).await).await?;
        Ok(Response::new(pb::StatFileResponse { stat: Some(wire::from_stat(stat)) }))
    }

    async fn evaluate(&self, request: Request<pb::EvaluateRequest>) -> Answer<pb::EvaluateResponse> {
        let drive = self.drive(&request).await?;
        drive.told(reference(&drive, &request.into_inner().r#ref)?.evaluate().await).await?;
        Ok(Response::new(pb::EvaluateResponse {}))
    }

    async fn ping(&self, request: Request<pb::PingRequest>) -> Answer<pb::PongResponse> {
        let drive = self.drive(&request).await?;
        let bridge = drive.gateway.bridge();
        let build = bridge.build();
        let caps = |caps: &frontend::bridge::Caps| {
            caps.iter().map(|id| ApiCap { id: id.to_owned(), enabled: true, ..Default::default() }).collect()
        };
        let worker = |w: &frontend::bridge::WorkerPlatforms| types::WorkerRecord {
            id: w.id.clone(),
            labels: w.labels.clone(),
            platforms: w.platforms.iter().map(llb::parts::platform_message).collect(),
            ..Default::default()
        };
        Ok(Response::new(pb::PongResponse {
            frontend_api_caps: caps(&build.gateway_caps),
            llb_caps: caps(&build.llb_caps),
            workers: build.workers.iter().map(worker).collect(),
        }))
    }

    async fn r#return(&self, request: Request<pb::ReturnRequest>) -> Answer<pb::ReturnResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let outcome = match request.error {
            Some(error) => Err(status::message_into_fault(&error)),
            None => Ok(drive.read_outcome(request.result.unwrap_or_default()).map_err(failed)?),
        };
        drive.gateway.finish(outcome).await.map_err(|fault| Status::unknown(fault.to_string()))?;
        Ok(Response::new(pb::ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<pb::InputsRequest>) -> Answer<pb::InputsResponse> {
        let drive = self.drive(&request).await?;
        let inputs = drive.gateway.bridge().inputs().await.map_err(failed)?;
        Ok(Response::new(pb::InputsResponse { definitions: inputs.into_iter().map(|(name, graph)| (name, graph.encode())).collect() }))
    }

    async fn new_container(&self, request: Request<pb::NewContainerRequest>) -> Answer<pb::NewContainerResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let id = request.container_id.clone();
        let exists = || Status::already_exists(format!("Container {id} already exists"));
        if drive.container(&id).is_some() {
            return Err(exists());
        }
        let container = drive.told(drive.gateway.container(container_request(&drive, request)?).await).await?;
        let replaced = match drive.held().containers.entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => true,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(container.clone());
                false
            }
        };
        if replaced {
            container.release().await.map_err(failed)?;
            return Err(exists());
        }
        Ok(Response::new(pb::NewContainerResponse {}))
    }

    async fn release_container(&self, request: Request<pb::ReleaseContainerRequest>) -> Answer<pb::ReleaseContainerResponse> {
        let drive = self.drive(&request).await?;
        let id = request.into_inner().container_id;
        let container = drive.held().containers.remove(&id);
        let container = container.ok_or_else(|| Status::unknown(format!("container details for {id} not found")))?;
        container.release().await.map_err(failed)?;
        Ok(Response::new(pb::ReleaseContainerResponse {}))
    }

    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<pb::ExecMessage, Status>> + Send>>;

    async fn exec_process(&self, request: Request<Streaming<pb::ExecMessage>>) -> Answer<Self::ExecProcessStream> {
        let drive = self.drive(&request).await?;
        Ok(Response::new(process::serve(drive, request.into_inner())))
    }

    async fn read_file_container(&self, request: Request<pb::ReadFileRequest>) -> Answer<pb::ReadFileResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let (container, mount) = container_mount(&drive, &request.r#ref, request.mount_index)?;
        let data = container.read_file(mount, &request.file_path, range(request.range)).await.map_err(failed)?;
        Ok(Response::new(pb::ReadFileResponse { data: data.into() }))
    }

    async fn read_dir_container(&self, request: Request<pb::ReadDirRequest>) -> Answer<pb::ReadDirResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let (container, mount) = container_mount(&drive, &request.r#ref, request.mount_index)?;
        let entries = container.read_dir(mount, &request.dir_path, &request.include_pattern).await.map_err(failed)?;
        Ok(Response::new(pb::ReadDirResponse { entries: entries.into_iter().map(wire::from_stat).collect() }))
    }

    async fn stat_file_container(&self, request: Request<pb::StatFileRequest>) -> Answer<pb::StatFileResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let (container, mount) = container_mount(&drive, &request.r#ref, request.mount_index)?;
        let stat = container.stat_file(mount, &request.path).await.map_err(failed)?;
        Ok(Response::new(pb::StatFileResponse { stat: Some(wire::from_stat(stat)) }))
    }

    async fn warn(&self, request: Request<pb::WarnRequest>) -> Answer<pb::WarnResponse> {
        let drive = self.drive(&request).await?;
        let request = request.into_inner();
        let vertex = request.digest.parse().map_err(|_| Status::invalid_argument(format!("invalid digest {:?}", request.digest)))?;
        let warning = progress::Warning {
            vertex,
            level: request.level,
            short: request.short.into(),
            detail: request.detail.into_iter().map(Into::into).collect(),
            url: request.url,
            source: request.info.map(|info| convert::into_source_range(info, &request.ranges)),
        };
        drive.gateway.bridge().warn(warning).await.map_err(failed)?;
        Ok(Response::new(pb::WarnResponse {}))
    }
}

/// What very old clients do instead of `Return`: metadata comes as a JSON map of base64 values.
async fn finish_with_attrs(drive: &Drive, mut outcome: Outcome, attrs: &[u8]) -> Result<(), Status> {
    use base64::Engine as _;
    let attrs: std::collections::BTreeMap<String, String> =
        serde_json::from_slice(attrs).map_err(|e| Status::invalid_argument(format!("exporter attributes: {e}")))?;
    for (key, value) in attrs {
        let value = base64::engine::general_purpose::STANDARD.decode(value);
        let value = value.map_err(|e| Status::invalid_argument(format!("exporter attribute {key}: {e}")))?;
        outcome.metadata.entry(key).or_insert(value.into());
    }
    drive.gateway.finish(Ok(outcome)).await.map_err(failed)
}

fn reference(drive: &Drive, id: &str) -> Result<Arc<dyn frontend::Ref>, Status> {
    drive.reference(id).ok_or_else(|| Status::unknown(format!("no such ref: {id}")))
}

fn range(range: Option<pb::FileRange>) -> Option<(u64, u64)> {
    range.map(|r| (r.offset.max(0) as u64, r.length.max(0) as u64))
}

fn container_mount(drive: &Drive, id: &str, mount: i32) -> Result<(Arc<dyn job::Container>, usize), Status> {
    let missing = || Status::unknown(format!("container details for {id}@{mount} not found"));
    let index = usize::try_from(mount).map_err(|_| missing())?;
    Ok((drive.container(id).ok_or_else(missing)?, index))
}

fn container_request(drive: &Drive, request: pb::NewContainerRequest) -> Result<ContainerRequest, Status> {
    let mount = |message: proto::pb::Mount| -> Result<ContainerMount, Status> {
        let mount = llb::parts::mount(message).map_err(|e| Status::invalid_argument(fault::chain(&e)))?;
        let reference = match mount.result_id.as_str() {
            "" => None,
            id => Some(drive.reference(id).ok_or_else(|| {
                Status::unknown(format!("failed to find ref {id} for {:?} mount: return reference {id} not found", mount.dest))
            })?),
        };
        Ok(ContainerMount { mount, reference })
    };
    let network = match proto::pb::NetMode::try_from(request.network) {
        Ok(proto::pb::NetMode::Unset) => llb::NetMode::Unset,
        Ok(proto::pb::NetMode::Host) => llb::NetMode::Host,
        Ok(proto::pb::NetMode::None) => llb::NetMode::None,
        Err(_) => return Err(Status::invalid_argument(format!("unknown network mode {}", request.network))),
    };
    if request.container_id.is_empty() {
        return Err(failed(Fault::new(Kind::Invalid, "a container needs an id")));
    }
    Ok(ContainerRequest {
        id: request.container_id,
        mounts: request.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
        network,
        platform: request.platform.map(llb::parts::platform),
        constraints: request.constraints.unwrap_or_default().filter,
        extra_hosts: request.extra_hosts.into_iter().map(|h| llb::HostIp { host: h.host, ip: h.ip }).collect(),
        hostname: request.hostname,
    })
}
