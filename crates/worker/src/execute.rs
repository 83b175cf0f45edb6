//! Runs one op at a time for the engine.
use std::sync::Arc;

use async_trait::async_trait;
use engine::{CacheMap, Context, Execute, InputMap};
use fault::{Fault, Kind, Result};
use layers::{Draft, Layer, LayerId, Layers, Properties, Room};
use llb::{Op, Vertex, cache_key};
use oci::{Digest, Platform};
use ops::exec::{Exec, Failure, Proxied, Request};
use ops::{build, checksum, file};
use proxy::Captured;
use sandbox::Sample;
use snapshot::{Editor, View};
use sources::Sources;

use crate::devices::Devices;
use crate::notes::Notes;
use crate::platforms::{Platforms, Runner};
use crate::proxied::Builders;
use crate::remains::Remains;

/// What steps run with.
pub struct Steps {
    pub layers: Layers,
    pub sources: Sources,
    pub exec: Arc<Exec>,
    pub host: Platform,
    pub pins: Notes<String>,
    pub captures: Notes<Arc<Captured>>,
    pub usage: Notes<Arc<Vec<Sample>>>,
    pub platforms: Arc<Platforms>,
    pub devices: Devices,
}

impl Steps {
    fn platform(&self, vertex: &Vertex) -> Platform {
        vertex.platform.clone().map_or_else(|| self.host.clone(), Platform::normalized)
    }
}

#[async_trait]
impl Execute for Steps {
    async fn cache_map(&self, vertex: &Arc<Vertex>, index: usize, context: &Context) -> Result<CacheMap> {
        self.key(vertex, index, context).await.map_err(|fault| Remains::of_step(vertex, fault))
    }

    async fn content_digest(&self, vertex: &Arc<Vertex>, input: usize, layer: Option<&Layer>, context: &Context) -> Result<Digest> {
        self.content_key(vertex, input, layer, context).await.map_err(|fault| Remains::of_content(vertex, input, layer, fault))
    }

    async fn run(&self, vertex: &Arc<Vertex>, inputs: Vec<Option<Layer>>, context: &Context) -> Result<Vec<Option<Layer>>> {
        let outcome = match self.room(vertex, context).await {
            Ok(_room) => self.outputs(vertex, inputs, context).await,
            Err(fault) => Err(fault),
        };
        outcome.map_err(|fault| Remains::of_step(vertex, self.name_full_disk(fault)))
    }

    fn load(&self, id: &LayerId) -> Option<Layer> {
        let layer = self.layers.get(id).unwrap_or_else(|error| {
            tracing::warn!(%error, layer = %id, "a recorded layer cannot be read");
            None
        })?;
        // Left lazy by a build whose client is gone: going through its source again is what makes it whole.
        layer.missing().is_ok_and(|missing| missing.is_empty()).then_some(layer)
    }

    fn is_limited(&self, vertex: &Vertex) -> bool {
        matches!(vertex.op, Op::Source(_) | Op::Exec(_) | Op::File(_))
    }
}

impl Steps {
    /// What writes waits until the store is below its ceiling.
    async fn room(&self, vertex: &Vertex, context: &Context) -> Result<Option<Room>> {
        if !self.is_limited(vertex) {
            return Ok(None);
        }
        self.layers.room(&context.cancel).await.map(Some)
    }

    /// A step that failed while the disk is full most likely failed because of that, whatever it says itself.
    fn name_full_disk(&self, fault: Fault) -> Fault {
        if fault.kind() == Kind::Canceled {
            return fault;
        }
        let Some(free) = self.layers.short_of_space() else { return fault };
        self.layers.collect_now();
        let root = self.layers.trees().root().display();
        fault.context(format!(
            "the disk of the build cache is full ({free} bytes are free at {root}): make room, or let the cache keep less"
        ))
    }

    async fn key(&self, vertex: &Arc<Vertex>, index: usize, context: &Context) -> Result<CacheMap> {
        if let Op::Source(op) = &vertex.op {
            let key = self.sources.cache_key(vertex, op, index, &source_context(context)).await?;
            if !key.pin.is_empty() {
                self.pins.put(&vertex.digest, key.pin);
            }
            return Ok(CacheMap { digest: key.digest, inputs: Vec::new(), more: key.more });
        }
        let key = cache_key::of(vertex, &self.platform(vertex)).map_err(|e| Fault::of(Kind::Invalid, e))?;
        let inputs = key.deps.into_iter().map(|dep| InputMap { selector: dep.selector, content: dep.content.is_some() }).collect();
        Ok(CacheMap { digest: key.digest, inputs, more: false })
    }

    async fn content_key(&self, vertex: &Arc<Vertex>, input: usize, layer: Option<&Layer>, context: &Context) -> Result<Digest> {
        let key = cache_key::of(vertex, &self.platform(vertex)).map_err(|e| Fault::of(Kind::Invalid, e))?;
        let selectors = key.deps.into_iter().nth(input).and_then(|dep| dep.content);
        let selectors = selectors.ok_or_else(|| Fault::internal(format!("input {input} of {} is not keyed by content", vertex.digest)))?;
        checksum::of_selectors(layer, &selectors, &context.cancel, &context.reporter).await
    }

    async fn outputs(&self, vertex: &Arc<Vertex>, inputs: Vec<Option<Layer>>, context: &Context) -> Result<Vec<Option<Layer>>> {
        match &vertex.op {
            Op::Source(op) => Ok(vec![self.sources.fetch(vertex, op, &source_context(context)).await?]),
            Op::Merge(order) => {
                let stack: Vec<Option<Layer>> = order.iter().map(|i| i.and_then(|i| inputs.get(i as usize).cloned().flatten())).collect();
                Ok(vec![self.layers.merge(&stack, Properties::new(&vertex.name))])
            }
            Op::Diff { lower, upper } => {
                let side = |i: &Option<u32>| i.and_then(|i| inputs.get(i as usize).cloned().flatten());
                let (lower, upper) = (side(lower), side(upper));
                Ok(vec![self.layers.diff(lower.as_ref(), upper.as_ref(), Properties::new(&vertex.name))])
            }
            Op::Passthrough { outputs, .. } => Ok(outputs.iter().map(|&i| inputs.get(i as usize).cloned().flatten()).collect()),
            Op::Build(op) => Ok(vec![self.nested(op, &inputs, context).await?]),
            Op::File(op) => {
                realize(&inputs, context).await?;
                self.run_file(vertex, op, inputs, context).await
            }
            Op::Exec(op) => {
                realize(&inputs, context).await?;
                // It is tried in any case: images of one platform are often used for another.
                let (runner, hint) = match self.platforms.runner(&self.platform(vertex)) {
                    Ok(runner) => (runner, None),
                    Err(hint) => (Runner::Machine, Some(hint)),
                };
                let Context { cancel, reporter, sessions, .. } = context;
                let _shown = runner.emulated_by().map(|name| reporter.row(format!("emulated by {name}"), "", 0));
                let emulator = runner.emulator();
                let extras = self.devices.extras(&op.cdi_devices)?;
                let captured = |captured| self.captures.put(&vertex.digest, Arc::new(captured));
                let judge = || Arc::new(Builders(context.builders.clone()));
                let proxied = vertex.proxied.then(|| Proxied { judge: judge(), captured: &captured });
                let used = |samples| self.usage.put(&vertex.digest, Arc::new(samples));
                let request = Request { vertex, op, inputs: &inputs, sessions, reporter, cancel, emulator, extras, proxied, used: &used };
                self.exec.run(request).await.map_err(|failure| {
                    let fault = failure.fault;
                    let fault = match hint {
                        Some(hint) if fault.kind() != Kind::Canceled => fault.context(hint.to_string()),
                        _ => fault,
                    };
                    Remains::of_exec(vertex, Failure { fault, left: failure.left })
                })
            }
        }
    }

    /// Builds the graph that is in one of the inputs, as part of a build that wants it.
    async fn nested(&self, op: &llb::BuildOp, inputs: &[Option<Layer>], context: &Context) -> Result<Option<Layer>> {
        let index = build::definition_input(op)?;
        let layer = inputs.get(index).ok_or_else(|| Fault::invalid(format!("invalid index {index}")))?.clone();
        realize(std::slice::from_ref(&layer), context).await?;
        let op = op.clone();
        let graph = task::blocking(move || build::definition(&op, layer.as_ref())).await?;
        let mut outcome = Err(Fault::new(Kind::Precondition, "no build is there to build a graph in"));
        for builder in &context.builders {
            outcome = builder.build(graph.clone()).await;
            // A build that is given up does not take the others with it.
            if !outcome.as_ref().is_err_and(|fault| fault.kind() == Kind::Canceled) {
                break;
            }
        }
        outcome
    }

    async fn run_file(
        &self,
        vertex: &Arc<Vertex>,
        op: &llb::FileOp,
        inputs: Vec<Option<Layer>>,
        context: &Context,
    ) -> Result<Vec<Option<Layer>>> {
        let workspace = LayerWorkspace { layers: self.layers.clone(), description: vertex.name.clone() };
        let (op, cancel, vertex) = (op.clone(), context.cancel.clone(), vertex.clone());
        task::blocking(move || {
            let outputs = file::apply(&op, &inputs, &workspace, &cancel);
            let outputs = outputs.map_err(|failure| Remains::of_file(&vertex, &inputs, op.actions.len(), failure))?;
            Ok(outputs.into_iter().map(Some).collect())
        })
        .await
    }
}

/// File ops work on drafts of layers.
struct LayerWorkspace {
    layers: Layers,
    description: String,
}

impl file::Workspace for LayerWorkspace {
    type Stack = Layer;
    type Draft = Draft;

    fn view(&self, stack: &Layer) -> Result<View> {
        Ok(stack.view()?)
    }

    fn draft(&self, base: Option<&Layer>) -> Result<Draft> {
        Ok(self.layers.draft(base, Properties::new(&self.description))?)
    }

    fn edit<'d>(&self, draft: &'d mut Draft) -> Result<Editor<'d>> {
        Ok(draft.editor()?)
    }

    fn commit(&self, draft: Draft) -> Result<Layer> {
        Ok(draft.commit()?)
    }
}

/// The files of all inputs are brought here, side by side.
async fn realize(inputs: &[Option<Layer>], context: &Context) -> Result<()> {
    let all = inputs.iter().flatten().map(|layer| layer.realize(&context.cancel, &context.reporter));
    futures_util::future::try_join_all(all).await?;
    Ok(())
}

fn source_context(context: &Context) -> sources::Context {
    let Context { cancel, reporter, sessions, pins, .. } = context.clone();
    sources::Context { cancel, reporter, sessions, pins }
}
