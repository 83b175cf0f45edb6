//! The mounts of an exec: which trees it sees, which of them it may write, and what becomes of them.
use std::path::{Path, PathBuf};

use fault::{Context as _, Fault, Kind, Result};
use layers::{Cell, Draft, Layer, Properties, Sharing as CellSharing};
use llb::{ExecOp, MountKind, Sharing};
use sandbox::{Mount, MountSource};
use snapshot::MountSpec;

use super::environment::{find_secret, missing_secret};
use super::{Exec, Request, stubs};
use crate::ssh::Forward;

/// One mount of the op with what stands behind it.
enum Backing {
    /// Changes are kept as the output with this index, or thrown away.
    Draft {
        draft: Draft,
        output: Option<u32>,
    },
    /// Read only; the output, if it has one, is the input itself.
    Input {
        layer: Option<Layer>,
        output: Option<u32>,
    },
    Cache {
        _cell: Cell,
    },
    /// Kept alive for as long as the process runs.
    Socket {
        _forward: Forward,
    },
    Nothing,
}

/// The mounts of one run.
pub struct Prepared {
    backings: Vec<Backing>,
    root: MountSpec,
    root_readonly: bool,
    mounts: Vec<Mount>,
    outputs: usize,
}

impl Prepared {
    pub async fn new(exec: &Exec, request: &Request<'_>) -> Result<Self> {
        let op = request.op;
        let mut order: Vec<usize> = (0..op.mounts.len()).collect();
        order.sort_by_key(|&i| depth(&destination(op, i)));
        let mut prepared = Self {
            backings: (0..op.mounts.len()).map(|_| Backing::Nothing).collect(),
            root: MountSpec::Bind { path: PathBuf::new(), readonly: true },
            root_readonly: false,
            mounts: Vec::new(),
            outputs: op.mounts.iter().filter(|m| has_output(m)).count(),
        };
        for index in order {
            prepared.add(exec, request, index).await?;
        }
        Ok(prepared)
    }

    async fn add(&mut self, exec: &Exec, request: &Request<'_>, index: usize) -> Result<()> {
        let mount = &request.op.mounts[index];
        let dest = destination(request.op, index);
        let input = match mount.input {
            Some(input) => request
                .inputs
                .get(input as usize)
                .cloned()
                .ok_or_else(|| Fault::invalid(format!("mount {dest}: input {input} does not exist")))?,
            None => None,
        };
        let (source, backing) = match &mount.kind {
            MountKind::Bind => self.bind(exec, request, index, input)?,
            MountKind::Cache { id, sharing } => {
                let key = if id.is_empty() { &dest } else { id };
                if request.vertex.metadata.ignore_cache {
                    exec.layers.clear_cells(key, input.as_ref())?;
                }
                let properties = Properties::new(describe("cached mount", &dest, request.op)).of_type("exec.cachemount");
                let cell = exec.layers.cell(key, input.as_ref(), cell_sharing(*sharing), properties, request.cancel).await?;
                let spec = cell.mount_spec()?;
                (Some(spec), Backing::Cache { _cell: cell })
            }
            MountKind::Tmpfs { size } => {
                let size = u64::try_from(*size).ok().filter(|s| *s > 0);
                self.mounts.push(Mount { dest, source: MountSource::Tmpfs { size }, readonly: mount.readonly });
                return Ok(());
            }
            MountKind::Secret(opt) => {
                match find_secret(request.sessions, &opt.id).await? {
                    Some(data) => {
                        let source = MountSource::Secret { data, uid: opt.uid, gid: opt.gid, mode: opt.mode & 0o777 };
                        self.mounts.push(Mount { dest, source, readonly: true });
                    }
                    None if opt.optional => {}
                    None => return Err(missing_secret(&opt.id)),
                }
                return Ok(());
            }
            MountKind::Ssh(opt) => {
                match Forward::open(&exec.sockets, request.sessions, &opt.id).await? {
                    Some(forward) => {
                        let source =
                            MountSource::Socket { path: forward.path().to_owned(), uid: opt.uid, gid: opt.gid, mode: opt.mode & 0o777 };
                        self.mounts.push(Mount { dest, source, readonly: false });
                        self.backings[index] = Backing::Socket { _forward: forward };
                    }
                    None if opt.optional => {}
                    None => return Err(Fault::new(Kind::NotFound, format!("no SSH key {:?} forwarded from the client", opt.id))),
                }
                return Ok(());
            }
        };
        self.backings[index] = backing;
        let Some(spec) = source else { return Ok(()) };
        if dest == "/" {
            self.root = spec;
            self.root_readonly = mount.readonly;
        } else {
            let selector = mount.selector.trim_matches('/').to_owned();
            self.mounts.push(Mount { dest, source: MountSource::Spec { spec, selector }, readonly: mount.readonly });
        }
        Ok(())
    }

    fn bind(&self, exec: &Exec, request: &Request<'_>, index: usize, input: Option<Layer>) -> Result<(Option<MountSpec>, Backing)> {
        let mount = &request.op.mounts[index];
        if mount.readonly
            && let Some(layer) = input
        {
            let spec = layer.mount_spec()?;
            return Ok((Some(spec), Backing::Input { layer: Some(layer), output: mount.output }));
        }
        let dest = destination(request.op, index);
        let description = describe("mount", &dest, request.op);
        let draft = exec.layers.draft(input.as_ref(), Properties::new(description))?;
        let spec = draft.mount_spec()?;
        Ok((Some(spec), Backing::Draft { draft, output: mount.output }))
    }

    pub fn root(&self) -> MountSpec {
        self.root.clone()
    }

    pub fn root_readonly(&self) -> bool {
        self.root_readonly
    }

    pub fn take_mounts(&mut self) -> Vec<Mount> {
        std::mem::take(&mut self.mounts)
    }

    /// Throws away what was written.
    pub async fn discard(self) {
        drop(self.backings);
    }

    /// Makes layers of what is kept. `stubs` are mount points that were made in the root for other mounts; they are no part of the result.
    pub async fn commit(self, op: &ExecOp, stubs: Vec<PathBuf>) -> Result<Vec<Option<Layer>>> {
        let outputs = self.outputs;
        let roots: Vec<bool> = (0..op.mounts.len()).map(|i| destination(op, i) == "/").collect();
        task::blocking(move || {
            let mut results: Vec<Option<Layer>> = vec![None; outputs];
            for (backing, is_root) in self.backings.into_iter().zip(roots) {
                let (output, layer) = match backing {
                    Backing::Draft { draft, output: Some(output) } => {
                        if is_root {
                            stubs::remove(&draft.own_files(), &stubs).context("failed to remove mount points")?;
                        }
                        (output, Some(draft.commit()?))
                    }
                    Backing::Input { layer, output: Some(output) } => (output, layer),
                    _ => continue,
                };
                let slot = results
                    .get_mut(output as usize)
                    .ok_or_else(|| Fault::invalid(format!("mount output {output} is out of range: outputs count from 0 without gaps")))?;
                *slot = layer;
            }
            Ok(results)
        })
        .await
    }
}

/// How many outputs an exec has: one for each bind mount that keeps its changes.
fn has_output(mount: &llb::Mount) -> bool {
    matches!(mount.kind, MountKind::Bind) && mount.output.is_some()
}

/// A relative destination starts at the working directory.
fn destination(op: &ExecOp, index: usize) -> String {
    let path = Path::new("/").join(&op.meta.cwd).join(&op.mounts[index].dest);
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean.to_string_lossy().into_owned()
}

/// Parents before children.
fn depth(dest: &str) -> (usize, String) {
    (dest.split('/').filter(|p| !p.is_empty()).count(), dest.to_owned())
}

fn describe(what: &str, dest: &str, op: &ExecOp) -> String {
    format!("{what} {dest} from exec {}", op.meta.args.join(" "))
}

fn cell_sharing(sharing: Sharing) -> CellSharing {
    match sharing {
        Sharing::Shared => CellSharing::Shared,
        Sharing::Private => CellSharing::Private,
        Sharing::Locked => CellSharing::Locked,
    }
}
