//! Steps of a platform that nothing here runs are refused before any step of the build has run, where it is certain that they would fail.
//!
//! A platform's name alone is no proof: images of one platform are often used for another. The image that the step starts from must say
//! itself that it is of that platform. And a step that a cache may hold need not run at all: caches are asked first, as far as they can answer
//! without any step having run.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use fault::{Detail, Fault, Result};
use frontend::ResolveRequest;
use llb::{Edge, Graph, Op, SourceOp, Vertex};
use oci::Platform;
use progress::Reporter;

use crate::build::Build;
use crate::caches::Importing;
use crate::platforms;

impl Build {
    /// Fails with what would help, and where in the client's files the step is. Waits for the imports, but only where a step is about to be refused.
    pub(crate) async fn refuse_foreign(&self, graph: &Graph, imports: &[Arc<Importing>]) -> Result<()> {
        let mut refusals: HashMap<&Platform, Option<Fault>> = HashMap::new();
        let mut refused = Vec::new();
        for vertex in &graph.vertices {
            let (Op::Exec(_), Some(platform)) = (&vertex.op, &vertex.platform) else { continue };
            let refusal = refusals.entry(platform).or_insert_with(|| self.worker.emulator(platform).err());
            refused.extend(refusal.clone().map(|refusal| (vertex, platform, refusal)));
        }
        if refused.is_empty() {
            return Ok(());
        }
        let vertices = graph.index();
        let input = |edge: &Edge| vertices.get(&edge.vertex).map(|at| &graph.vertices[*at]);
        for (vertex, platform, refusal) in refused {
            let Some(image) = image_below(vertex, &input) else { continue };
            if self.is_of(image, platform).await && !self.may_be_cached(vertex, graph, imports).await? {
                let detail = Detail::Vertex { digest: vertex.digest.to_string() };
                return Err(engine::for_client(refusal.context(vertex.name.clone()).with_detail(detail), graph));
            }
        }
        Ok(())
    }

    /// Whether a cache may hold what the step would make.
    async fn may_be_cached(&self, step: &Vertex, graph: &Graph, imports: &[Arc<Importing>]) -> Result<bool> {
        let Op::Exec(op) = &step.op else { return Ok(true) };
        let outputs: BTreeSet<u32> = op.mounts.iter().filter_map(|mount| mount.output).collect();
        let Some(output) = outputs.first().copied() else { return Ok(true) };
        let mut caches = BTreeSet::new();
        for import in imports {
            caches.extend(self.cancel.run(async { Ok::<_, Fault>(import.arrived().await.unwrap_or_default()) }).await?);
        }
        let Some(digest) = self.worker.cache_digest(step) else { return Ok(false) };
        let (all, count) = (self.worker.engine().caches().clone(), outputs.last().map_or(0, |last| last + 1));
        if !task::blocking(move || Ok(all.has_recorded(&caches, &digest, count))).await? {
            return Ok(false);
        }
        if stands_on_steps(step, graph) {
            return Ok(true); // what it is known by may depend on what those make
        }
        let only = Graph { result: Some(Edge { vertex: step.digest.clone(), output }), ..graph.clone() };
        let known = self.job.load_with(Arc::new(only), imports.iter().map(|import| import.cache).collect()).keys().await;
        // A source that cannot be had is for its own vertex to complain about.
        Ok(known.map_or(true, |keys| !keys.is_empty()))
    }

    /// Whether the image's own config names that platform. An image that cannot be had is for its own vertex to complain about.
    async fn is_of(&self, image: &SourceOp, platform: &Platform) -> bool {
        let request = ResolveRequest { op: image.clone(), platform: Some(platform.clone()), ..ResolveRequest::default() };
        let resolved = self.worker.resolve(request, &self.group, self.job.pins(), &Reporter::silent(), &self.cancel).await;
        let Some(image) = resolved.ok().and_then(|meta| meta.image) else { return false };
        let normal = platform.clone().normalized();
        let same = |own: Platform| (own.os, own.architecture) == (normal.os.clone(), normal.architecture.clone());
        platforms::of_config(Some(&image.config)).is_ok_and(|own| same(own.normalized()))
    }
}

/// Whether anything would have to run for what a step is made of, beside sources and file operations.
fn stands_on_steps(step: &Vertex, graph: &Graph) -> bool {
    let vertices = graph.index();
    let (mut seen, mut open) = (HashSet::new(), vec![step]);
    while let Some(vertex) = open.pop() {
        for at in vertex.inputs.iter().filter_map(|edge| vertices.get(&edge.vertex)).filter(|at| seen.insert(**at)) {
            let below = &graph.vertices[*at];
            if matches!(below.op, Op::Exec(_) | Op::Build(_)) {
                return true;
            }
            open.push(below);
        }
    }
    false
}

/// The image that an exec's root is made of by file operations alone. What another step has had its hands in may be of any platform.
fn image_below<'g>(exec: &'g Vertex, input: &impl Fn(&Edge) -> Option<&'g Vertex>) -> Option<&'g SourceOp> {
    let Op::Exec(op) = &exec.op else { return None };
    let root = op.mounts.iter().find(|mount| mount.dest == "/")?;
    let mut edge = exec.inputs.get(root.input? as usize)?;
    loop {
        let below = input(edge)?;
        match &below.op {
            Op::Source(source) => {
                let is_image = ["docker-image://", "oci-layout://"].iter().any(|scheme| source.identifier.starts_with(scheme));
                return is_image.then_some(source);
            }
            Op::File(file) => {
                let mut at = file.actions.iter().position(|action| action.output == Some(edge.output))?;
                // Numbers from the count of inputs on are earlier actions.
                edge = loop {
                    let from = file.actions[at].input? as usize;
                    match from.checked_sub(below.inputs.len()) {
                        None => break &below.inputs[from],
                        Some(earlier) if earlier < at => at = earlier,
                        Some(_) => return None,
                    }
                };
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use llb::FileActionKind::Rm;
    use llb::{ContentCache, ExecOp, FileAction, FileOp, Meta, Mount, MountKind};
    use oci::Digest;

    use super::*;

    fn vertex(name: &str, op: Op, inputs: &[&str]) -> Vertex {
        let edge = |input: &&str| Edge { vertex: Digest::of(input), output: 0 };
        Vertex {
            digest: Digest::of(name),
            encoded: Default::default(),
            op,
            inputs: inputs.iter().map(edge).collect(),
            platform: None,
            constraints: Vec::new(),
            metadata: Default::default(),
            name: name.into(),
            proxied: false,
        }
    }

    #[test]
    fn an_image_is_found_below_file_operations_only() {
        let source = |identifier: &str| Op::Source(SourceOp { identifier: identifier.into(), attrs: Default::default() });
        let exec = || {
            let root = Mount {
                dest: "/".into(),
                input: Some(0),
                selector: String::new(),
                output: Some(0),
                readonly: false,
                kind: MountKind::Bind,
                content_cache: ContentCache::Default,
                result_id: String::new(),
            };
            Op::Exec(Box::new(ExecOp { meta: Meta::default(), mounts: vec![root], ..ExecOp::default() }))
        };
        let action = |input, output| FileAction {
            input: Some(input),
            secondary_input: None,
            output,
            kind: Rm { path: "/x".into(), allow_not_found: true, allow_wildcard: false },
        };
        // The second action continues what the first has done with the second input.
        let file = || Op::File(FileOp { actions: vec![action(1, None), action(2, Some(0))] });
        let all = [
            vertex("local", source("local://context"), &[]),
            vertex("image", source("docker-image://docker.io/library/x:latest"), &[]),
            vertex("copied", file(), &["local", "image"]),
            vertex("first", exec(), &["copied"]),
            vertex("second", exec(), &["first"]),
            vertex("elsewhere", exec(), &["local"]),
        ];
        let input = |edge: &Edge| all.iter().find(|vertex| vertex.digest == edge.vertex);
        let found = |name: &str| {
            let exec = all.iter().find(|vertex| vertex.name == name).unwrap();
            image_below(exec, &input).map(|source| source.identifier.as_str())
        };
        assert_eq!(found("first"), Some("docker-image://docker.io/library/x:latest"));
        assert_eq!(found("second"), None);
        assert_eq!(found("elsewhere"), None);
    }
}
