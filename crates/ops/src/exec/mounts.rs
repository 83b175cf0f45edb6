//! The mounts of a container: which trees it sees, which of them it may write, and what becomes of them.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fault::{Context as _, Fault, Kind, Result};
use layers::{Cell, Draft, Layer, LayerId, Properties, Sharing as CellSharing};
use llb::{MountKind, Sharing};
use sandbox::{Mount, MountSource};
use session::{Forward, Group};
use snapshot::{MountSpec, View};
use task::Cancel;

use super::environment::{find_secret, missing_secret};
use super::trust::Trusted;
use super::{Exec, stubs};

/// The mounts to prepare, and for whom.
pub struct Wanted<'a> {
    pub mounts: &'a [llb::Mount],
    /// What the mounts' inputs count in; realized.
    pub inputs: &'a [Option<Layer>],
    /// Where relative destinations start.
    pub cwd: &'a str,
    /// Who it is, in the words of descriptions.
    pub owner: &'a str,
    /// Empty cache mounts first.
    pub fresh_caches: bool,
    pub sessions: &'a Group,
    pub cancel: &'a Cancel,
}

/// One mount with what stands behind it.
#[expect(clippy::large_enum_variant, reason = "a container has a few")]
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
        cell: Arc<Cell>,
    },
    /// Kept alive for as long as the process runs.
    Socket {
        forward: Forward,
    },
    Nothing,
}

/// The mounts of one container. What was written to them is thrown away with it, unless it is committed.
pub struct Prepared {
    backings: Vec<Backing>,
    /// Which mount is the root.
    root_index: Option<usize>,
    root: MountSpec,
    root_readonly: bool,
    mounts: Vec<Mount>,
    outputs: usize,
}

/// The cells of one container so far, by key and base: a cache that it mounts twice is one, whatever its sharing.
type Cells = Vec<(String, Option<LayerId>, Arc<Cell>)>;

impl Prepared {
    /// Once no process is left: what they reached at the client is closed there when this resolves.
    pub async fn hang_up(&self) {
        for backing in &self.backings {
            if let Backing::Socket { forward } = backing {
                forward.finish().await;
            }
        }
    }

    pub async fn new(exec: &Exec, wanted: &Wanted<'_>) -> Result<Self> {
        let count = wanted.mounts.len();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&i| depth(&destination(wanted, i)));
        let mut prepared = Self {
            backings: (0..count).map(|_| Backing::Nothing).collect(),
            root_index: None,
            root: MountSpec::Bind { path: PathBuf::new(), readonly: true },
            root_readonly: false,
            mounts: Vec::new(),
            outputs: wanted.mounts.iter().filter(|m| has_output(m)).count(),
        };
        let mut cells = Cells::new();
        for index in order {
            prepared.add(exec, wanted, index, &mut cells).await?;
        }
        match prepared.root_index {
            Some(_) => Ok(prepared),
            None => Err(Fault::invalid("a container needs a mount at /")),
        }
    }

    async fn add(&mut self, exec: &Exec, wanted: &Wanted<'_>, index: usize, cells: &mut Cells) -> Result<()> {
        let mount = &wanted.mounts[index];
        let dest = destination(wanted, index);
        if dest == "/" && !matches!(mount.kind, MountKind::Bind) {
            return Err(Fault::invalid("invalid mount type for /: the root is a bind mount"));
        }
        let input = match mount.input {
            Some(input) => wanted
                .inputs
                .get(input as usize)
                .cloned()
                .ok_or_else(|| Fault::invalid(format!("mount {dest}: input {input} does not exist")))?,
            None => None,
        };
        let (source, backing) = match &mount.kind {
            MountKind::Bind => self.bind(exec, wanted, index, input)?,
            MountKind::Cache { id, sharing } => {
                let cell = cache(exec, wanted, &dest, id, *sharing, input.as_ref(), cells).await?;
                let spec = cell.mount_spec()?;
                (Some(spec), Backing::Cache { cell })
            }
            MountKind::Tmpfs { size } => {
                let size = u64::try_from(*size).ok().filter(|s| *s > 0);
                self.mounts.push(Mount { dest, source: MountSource::Tmpfs { size }, readonly: mount.readonly });
                return Ok(());
            }
            MountKind::Secret(opt) => {
                match find_secret(wanted.sessions, &opt.id).await? {
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
                let opened = match Forward::open(&exec.sockets, wanted.sessions, &opt.id).await {
                    // A client that says why it has no such agent has none.
                    Err(_) if opt.optional => None,
                    opened => opened?,
                };
                match opened {
                    Some(forward) => {
                        let source =
                            MountSource::Socket { path: forward.path().to_owned(), uid: opt.uid, gid: opt.gid, mode: opt.mode & 0o777 };
                        self.mounts.push(Mount { dest, source, readonly: false });
                        self.backings[index] = Backing::Socket { forward };
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
            self.root_index = Some(index);
            self.root_readonly = mount.readonly;
        } else {
            let selector = mount.selector.trim_matches('/').to_owned();
            self.mounts.push(Mount { dest, source: MountSource::Spec { spec, selector }, readonly: mount.readonly });
        }
        Ok(())
    }

    fn bind(&self, exec: &Exec, wanted: &Wanted<'_>, index: usize, input: Option<Layer>) -> Result<(Option<MountSpec>, Backing)> {
        let mount = &wanted.mounts[index];
        // A read-only root still gets mount points.
        let is_root = destination(wanted, index) == "/";
        if mount.readonly
            && !is_root
            && let Some(layer) = input
        {
            let spec = layer.mount_spec()?;
            return Ok((Some(spec), Backing::Input { layer: Some(layer), output: mount.output }));
        }
        let description = describe("mount", &destination(wanted, index), wanted);
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

    /// What the mount with this index shows now; `None` if it holds no files of ours.
    pub fn view(&self, index: usize) -> Result<Option<View>> {
        Ok(match self.backings.get(index) {
            Some(Backing::Draft { draft, .. }) => Some(draft.view()?),
            Some(Backing::Input { layer: Some(layer), .. }) => Some(layer.view()?),
            Some(Backing::Input { layer: None, .. }) => Some(View::empty()),
            Some(Backing::Cache { cell }) => Some(cell.view()?),
            Some(Backing::Socket { .. } | Backing::Nothing) | None => None,
        })
    }

    /// Has programs in the container trust a certificate, until [`Prepared::distrust`].
    pub(super) fn trust(&mut self, certificate: &str) -> Result<Option<Trusted>> {
        match self.root_draft() {
            Some(draft) => Trusted::add(draft, certificate),
            None => Ok(None),
        }
    }

    pub(super) fn distrust(&mut self, trusted: Trusted) -> Result<()> {
        self.root_draft().map_or(Ok(()), |draft| trusted.remove(draft))
    }

    fn root_draft(&mut self) -> Option<&mut Draft> {
        match self.backings.get_mut(self.root_index?) {
            Some(Backing::Draft { draft, .. }) => Some(draft),
            _ => None,
        }
    }

    /// Makes layers of what is kept. `stubs` are mount points that were made in the root for other mounts; they are no part of the result.
    pub async fn commit(self, stubs: Vec<PathBuf>) -> Result<Vec<Option<Layer>>> {
        task::blocking(move || {
            let mut results: Vec<Option<Layer>> = vec![None; self.outputs];
            for (index, backing) in self.backings.into_iter().enumerate() {
                let (output, layer) = match backing {
                    Backing::Draft { draft, output: Some(output) } => {
                        let stubs = if self.root_index == Some(index) { stubs.as_slice() } else { &[] };
                        (output, Some(committed(draft, stubs)?))
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

    /// Lets go of all but what may have been written: the process is gone.
    pub(super) fn retire(&mut self) {
        for backing in &mut self.backings {
            if !matches!(backing, Backing::Draft { .. }) {
                *backing = Backing::Nothing;
            }
        }
    }

    /// Makes layers of all that was written, kept or not, in the places of `inputs`, which has one for each mount.
    pub(super) async fn salvage(self, mut inputs: Vec<Option<Layer>>, stubs: Vec<PathBuf>) -> Result<Vec<Option<Layer>>> {
        task::blocking(move || {
            for (index, (backing, place)) in self.backings.into_iter().zip(&mut inputs).enumerate() {
                if let Backing::Draft { draft, .. } = backing {
                    let stubs = if self.root_index == Some(index) { stubs.as_slice() } else { &[] };
                    *place = Some(committed(draft, stubs)?);
                }
            }
            Ok(inputs)
        })
        .await
    }
}

/// The cell behind a cache mount: of all of this container that name it, the first decides how it is shared.
async fn cache(
    exec: &Exec,
    wanted: &Wanted<'_>,
    dest: &str,
    id: &str,
    sharing: Sharing,
    base: Option<&Layer>,
    cells: &mut Cells,
) -> Result<Arc<Cell>> {
    let key = if id.is_empty() { dest } else { id };
    let base_id = base.map(Layer::id);
    if let Some((_, _, cell)) = cells.iter().find(|(known, over, _)| known == key && *over == base_id) {
        return Ok(cell.clone());
    }
    if wanted.fresh_caches {
        exec.layers.clear_cells(key, base)?;
    }
    let mut description = describe("cached mount", dest, wanted);
    if key != dest {
        description.push_str(&format!(" with id {key:?}"));
    }
    let properties = Properties::new(description).of_type("exec.cachemount");
    let cell = Arc::new(exec.layers.cell(key, base, cell_sharing(sharing), properties, wanted.cancel).await?);
    cells.push((key.to_owned(), base_id, cell.clone()));
    Ok(cell)
}

fn committed(draft: Draft, stubs: &[PathBuf]) -> Result<Layer> {
    stubs::remove(&draft.mounted_files(), stubs).context("failed to remove mount points")?;
    Ok(draft.commit()?)
}

/// How many outputs an exec has: one for each bind mount that keeps its changes.
fn has_output(mount: &llb::Mount) -> bool {
    matches!(mount.kind, MountKind::Bind) && mount.output.is_some()
}

/// A relative destination starts at the working directory.
fn destination(wanted: &Wanted<'_>, index: usize) -> String {
    let path = Path::new("/").join(wanted.cwd).join(&wanted.mounts[index].dest);
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

fn describe(what: &str, dest: &str, wanted: &Wanted<'_>) -> String {
    format!("{what} {dest} from {}", wanted.owner)
}

fn cell_sharing(sharing: Sharing) -> CellSharing {
    match sharing {
        Sharing::Shared => CellSharing::Shared,
        Sharing::Private => CellSharing::Private,
        Sharing::Locked => CellSharing::Locked,
    }
}
