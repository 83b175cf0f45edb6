//! What a build may take from where: the request's policies, those of the frontend's calls, and the client's verifier.
use std::sync::Arc;

use fault::{Context as _, Detail, Fault, Kind, Result};
use frontend::{ResolveRequest, SourceMeta};
use futures_util::future::try_join_all;
use llb::policy::{self, Policy};
use llb::{Graph, Op, Rewrite, SourceOp};
use oci::Platform;
use serde_json::json;

use crate::api::{Verdict, Verifier};
use crate::build::Build;

/// How often the verifier may ask back or convert for one source.
const MAX_ROUNDS: usize = 10;

impl Build {
    /// The source that policy puts in the place of `op`, which may be `op` itself.
    pub(crate) async fn police(&self, op: &SourceOp, platform: Option<&Platform>, extra: &[Policy]) -> Result<SourceOp> {
        let mut source = self.apply(op, extra)?;
        let Some(verifier) = self.verifier().await? else { return Ok(source) };
        let mut meta = SourceMeta { op: source.clone(), ..SourceMeta::default() };
        for _ in 0..MAX_ROUNDS {
            match verifier.check(platform, &meta).await? {
                Verdict::Allow => return Ok(source),
                Verdict::Deny { action, messages } => return Err(denied(&source, &action, &messages)),
                Verdict::Convert(converted) => {
                    source = self.apply(&converted, extra)?;
                    meta = SourceMeta { op: source.clone(), ..SourceMeta::default() };
                }
                Verdict::Resolve(request) => {
                    same_source(&source, &request.op)?;
                    let request = ResolveRequest { source_policies: extra.to_vec(), ..*request };
                    meta = self.resolve_for_policy(request).await.context("error resolving source metadata from policy request")?;
                }
            }
        }
        Err(Fault::new(Kind::Invalid, "too many policy requests"))
    }

    /// The graph with every source as policy wants it.
    pub(crate) async fn police_graph(&self, graph: Arc<Graph>, extra: &[Policy]) -> Result<Arc<Graph>> {
        let sources = graph.vertices.iter().filter_map(|vertex| match &vertex.op {
            Op::Source(op) => Some((vertex, op)),
            _ => None,
        });
        let checked = sources.map(|(vertex, op)| async move {
            let policed = self.police(op, vertex.platform.as_ref(), extra).await.context("error evaluating the source policy")?;
            Ok::<_, Fault>((policed != *op).then(|| (vertex.digest.clone(), policed)))
        });
        let changed = try_join_all(checked).await.context("failed to load LLB")?;
        self.invite(&graph).await?;
        let proxy_network = self.request.proxy_network || self.settings.proxy_network;
        let rewrite = Rewrite { sources: changed.into_iter().flatten().collect(), proxy_network };
        Ok(if rewrite.sources.is_empty() && !proxy_network { graph } else { Arc::new((*graph).clone().rewrite(&rewrite)) })
    }

    /// Lets in the sessions that sources name and that are not the build's own.
    async fn invite(&self, graph: &Graph) -> Result<()> {
        for vertex in &graph.vertices {
            let Op::Source(op) = &vertex.op else { continue };
            for id in ["local.session", "oci.session"].iter().filter_map(|key| op.attrs.get(*key)).filter(|id| !id.is_empty()) {
                if *id == self.request.session || self.group.find(id).is_some() {
                    continue;
                }
                match self.sessions().get(id).await {
                    Ok(session) => self.group.invite(session),
                    // Whoever needs it will say that it is missing.
                    Err(fault) if matches!(fault.kind(), Kind::NotFound | Kind::Deadline) => {}
                    Err(fault) => return Err(fault),
                }
            }
        }
        Ok(())
    }

    /// The policies that are written down.
    fn apply(&self, op: &SourceOp, extra: &[Policy]) -> Result<SourceOp> {
        let own = self.request.source_policy.iter().filter(|policy| !policy.rules.is_empty());
        let policies: Vec<Policy> = own.chain(extra).cloned().collect();
        let source = SourceOp { identifier: worker::normal_identifier(op), attrs: op.attrs.clone() };
        policy::evaluate(&policies, source).map_err(|error| {
            let kind = if matches!(error, policy::PolicyError::Denied { .. }) { Kind::Denied } else { Kind::Invalid };
            Fault::of(kind, error)
        })
    }

    async fn verifier(&self) -> Result<Option<Arc<dyn Verifier>>> {
        match self.request.policy_session.as_str() {
            "" => Ok(None),
            id => self.sessions().verifier(id).await.map(Some),
        }
    }

    async fn resolve_for_policy(&self, request: ResolveRequest) -> Result<SourceMeta> {
        let op = self.apply(&request.op, &request.source_policies).context("could not resolve image due to policy")?;
        self.resolve_pinned(ResolveRequest { op, source_policies: Vec::new(), ..request }).await
    }

    /// Asks the worker; policy has had its say.
    pub(crate) async fn resolve_pinned(&self, request: ResolveRequest) -> Result<SourceMeta> {
        let named = !request.log_name.is_empty();
        let name = if named { request.log_name.clone() } else { format!("resolve image config for {}", request.op.identifier) };
        let digest = self.vertex_digest(&name);
        let resolve = async |reporter| self.worker.resolve(request, &self.group, self.job.pins(), &reporter, &self.cancel).await;
        self.in_vertex(digest, &name, resolve).await
    }
}

/// A verifier may look closer at the source that it was asked about, not at others.
fn same_source(asked: &SourceOp, wanted: &SourceOp) -> Result<()> {
    if asked.identifier != wanted.identifier {
        let (asked, wanted) = (&asked.identifier, &wanted.identifier);
        return Err(Fault::invalid(format!("policy requested different source identifier: {wanted:?} != {asked:?}")));
    }
    if asked.attrs != wanted.attrs {
        return Err(Fault::invalid(format!("policy requested different source attrs: {:?} != {:?}", wanted.attrs, asked.attrs)));
    }
    Ok(())
}

fn denied(source: &SourceOp, action: &str, messages: &[String]) -> Fault {
    let fault = Fault::new(Kind::Denied, format!("source {:?} not allowed by policy: action {action}", source.identifier));
    if messages.is_empty() {
        return fault;
    }
    let messages: Vec<_> = messages.iter().map(|message| json!({ "message": message })).collect();
    fault.with_detail(Detail::Other {
        type_url: "github.com/moby/buildkit/policysession.DecisionResponse+json".into(),
        // 1 is the wire's number of a denial.
        value: json!({ "action": 1, "denyMessages": messages }).to_string().into_bytes(),
    })
}
