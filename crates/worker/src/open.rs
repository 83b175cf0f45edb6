//! A worker from its settings to its running engine.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache::remote::Remotes;
use cache::{Caches, Index};
use engine::{Engine, Options};
use export::Exporters;
use fault::{Context as _, Fault, Kind};
use layers::{Layers, Rule};
use oci::Platform;
use ops::exec::{Exec, LogLimits};
use proxy::{Captured, Proxy};
use registry::Traffic;
use sandbox::Sample;
use sandbox::network::Networks;
use snapshot::Backend;
use sources::{GitSettings, Sources};

use crate::background::Background;
use crate::devices::{Device, Devices};
use crate::execute::Steps;
use crate::notes::Notes;
use crate::platforms::Platforms;

/// Of how many steps it is remembered what they used: they are a few kilobytes each.
const MOST_USAGE: usize = 1 << 10;

/// What runs the processes of steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Runtime {
    #[default]
    Builtin,
    /// An OCI runtime's program.
    Oci(PathBuf),
}

pub struct Settings {
    /// Everything that the worker keeps is below it.
    pub root: PathBuf,
    pub backend: Backend,
    pub runtime: Runtime,
    /// Its networks are made from `network`.
    pub sandbox: sandbox::Settings,
    pub network: sandbox::network::Setup,
    pub registry: registry::Config,
    /// Added to the worker's own labels; theirs win.
    pub labels: BTreeMap<String, String>,
    /// Empty: detected.
    pub platforms: Vec<Platform>,
    /// How long a scan for platforms is good.
    pub platforms_max_age: Duration,
    /// Directories with user-mode emulators.
    pub emulators: Vec<PathBuf>,
    pub devices: Devices,
    pub parallelism: Option<usize>,
    pub log_limits: LogLimits,
    pub hostname: String,
    /// Where the programs that the worker runs by itself are looked for, such as git.
    pub program_path: std::ffi::OsString,
    /// `HTTPS_PROXY` and the like, for those programs.
    pub proxy: Vec<(String, String)>,
    /// What the build cache may keep; applied in this order.
    pub gc_rules: Vec<Rule>,
    /// Bytes that the store never exceeds, one running step's writes excepted; 0 is no ceiling.
    pub ceiling: u64,
    /// What caches in object stores take their defaults and credentials from.
    pub environment: cache::remote::Environment,
}

/// What a worker tells of itself.
#[derive(Debug, Clone)]
pub struct Facts {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    pub platforms: Vec<Platform>,
    pub devices: Vec<Device>,
}

/// The platforms that were found, and when.
struct Known {
    scanned: Instant,
    platforms: Vec<Platform>,
    /// Those of them that an emulator runs.
    emulated: Vec<Platform>,
}

/// Names the platforms that an emulator runs; the worker runs the others itself.
const EMULATED_LABEL: &str = "kiln.platforms.emulated";

/// One worker with its store and engine.
pub struct Worker {
    id: String,
    labels: BTreeMap<String, String>,
    platforms: Mutex<Known>,
    platforms_max_age: Duration,
    runs: Arc<Platforms>,
    devices: Devices,
    layers: Layers,
    content: content::Store,
    pub(crate) sources: Sources,
    exporters: Exporters,
    remotes: Remotes,
    registry: registry::Client,
    exec: Arc<Exec>,
    networks: Networks,
    engine: Engine,
    index: Index,
    gc_rules: Vec<Rule>,
    pins: Notes<String>,
    captures: Notes<Arc<Captured>>,
    usage: Notes<Arc<Vec<Sample>>>,
    db: kv::Db,
    _background: Background,
}

impl Worker {
    /// Opens or creates the worker below `settings.root`, and starts its engine. Must be called within a runtime.
    pub fn open(mut settings: Settings) -> fault::Result<Self> {
        let root = &settings.root;
        std::fs::create_dir_all(root).with_context(|| format!("failed to create {}", root.display()))?;
        let id = worker_id(&root.join("workerid"))?;
        let db = kv::Db::open(&root.join("kiln.db"), kv::Options::default())?;
        let content = content::Store::open(&root.join("content"), db.clone())?;
        let options = snapshot::Options { backend: settings.backend, ..snapshot::Options::default() };
        let trees = snapshot::Store::open(&root.join("snapshots"), options)
            .map_err(|e| Fault::of(Kind::Unknown, e).context("failed to open the snapshot store"))?;
        let snapshotter = if trees.backend() == Backend::Native { "native" } else { "overlayfs" };
        let layers = Layers::open(db.clone(), content.clone(), trees)?;
        let client = registry::Client::new(settings.registry);
        let git = GitSettings { path: settings.program_path, proxy: settings.proxy, scratch: root.join("sockets") };
        let sources = Sources::new(layers.clone(), content.clone(), client.clone(), db.clone(), git);
        let remotes = Remotes::new(layers.clone(), client.clone(), settings.environment);
        let exporters = Exporters::new(content.clone(), client.clone());
        let networks = Networks::open(settings.network, &root.join("sandbox/network"))?;
        let network = networks.label();
        settings.sandbox.networks = networks.clone();
        let labels = labels(settings.labels, snapshotter, network, settings.hostname, &settings.sandbox.confinement);
        let runtime: Arc<dyn sandbox::Runtime> = match &settings.runtime {
            Runtime::Builtin => Arc::new(sandbox::Builtin::new(settings.sandbox)?),
            Runtime::Oci(binary) => Arc::new(sandbox::OciRuntime::new(binary.clone(), settings.sandbox)?),
        };
        let runs = Arc::new(Platforms::new(settings.emulators));
        runs.verify_in_background(root.join("sandbox"));
        let found = if settings.platforms.is_empty() { runs.detect() } else { settings.platforms };
        let proxy = Arc::new(Proxy::new(registry::system_roots(None))?);
        let exec = Exec {
            layers: layers.clone(),
            runtime,
            networks: networks.clone(),
            proxy,
            log_limits: settings.log_limits,
            sockets: root.join("sockets"),
        };
        let exec = Arc::new(exec);
        let (pins, captures, usage) = (Notes::default(), Notes::default(), Notes::with_limit(MOST_USAGE));
        let steps = Steps {
            layers: layers.clone(),
            sources: sources.clone(),
            exec: exec.clone(),
            host: Platform::host(),
            pins: pins.clone(),
            captures: captures.clone(),
            usage: usage.clone(),
            platforms: runs.clone(),
            devices: settings.devices.clone(),
        };
        let index = Index::new(db.clone());
        layers.set_ceiling(settings.ceiling);
        let engine = Engine::new(Arc::new(steps), Caches::new(index.clone()), Options { parallelism: settings.parallelism });
        Ok(Self {
            labels,
            platforms: Mutex::new(Known { scanned: Instant::now(), emulated: runs.emulated(&found), platforms: found }),
            platforms_max_age: settings.platforms_max_age,
            runs,
            devices: settings.devices,
            id,
            _background: Background::start(layers.clone(), index.clone(), settings.gc_rules.clone()),
            gc_rules: settings.gc_rules,
            layers,
            content,
            sources,
            exporters,
            remotes,
            registry: client,
            exec,
            networks,
            engine,
            index,
            pins,
            captures,
            usage,
            db,
        })
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where other rooms keep their tables.
    pub fn db(&self) -> &kv::Db {
        &self.db
    }

    /// Which key gave which result.
    pub fn index(&self) -> &Index {
        &self.index
    }

    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// What the build cache may keep.
    pub fn gc_rules(&self) -> &[Rule] {
        &self.gc_rules
    }

    pub fn content(&self) -> &content::Store {
        &self.content
    }

    pub fn exporters(&self) -> &Exporters {
        &self.exporters
    }

    /// Where caches come from and go to.
    pub fn remotes(&self) -> &Remotes {
        &self.remotes
    }

    /// What went to and from registries, HTTP sources and object stores.
    pub fn traffic(&self) -> Traffic {
        self.registry.traffic()
    }

    /// Removes blobs that only memory keeps. For when no build runs: one that does may be about to use them.
    pub async fn sweep(&self) -> fault::Result<()> {
        self.sources.forget();
        let content = self.content.clone();
        task::blocking(move || Ok(content.sweep(Duration::ZERO).map(|_| ())?)).await
    }

    /// What the source vertex was last pinned to: a manifest's digest, a commit, a checksum. `None` if it was not used, or has no pin.
    pub fn pin(&self, vertex: &oci::Digest) -> Option<String> {
        self.pins.get(vertex)
    }

    /// What an exec vertex fetched through the proxy when it last ran; `None` if it did not run behind it.
    pub fn captured(&self, vertex: &oci::Digest) -> Option<Arc<Captured>> {
        self.captures.get(vertex)
    }

    /// What an exec vertex used of the machine when it last ran, oldest first; `None` if that is not known any more.
    pub fn used(&self, vertex: &oci::Digest) -> Option<Arc<Vec<Sample>>> {
        self.usage.get(vertex)
    }

    /// Takes away what is kept ready for steps. The last call.
    pub async fn close(&self) {
        self.networks.close().await;
    }

    /// What runs processes.
    pub fn exec(&self) -> &Arc<Exec> {
        &self.exec
    }

    /// The devices that steps may ask for.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// What a container of that platform must be given to run its programs.
    pub fn emulator(&self, platform: &Platform) -> fault::Result<Option<sandbox::Emulator>> {
        Ok(self.runs.runner(&platform.clone().normalized())?.emulator())
    }

    /// What caches know a step by, without its inputs.
    pub fn cache_digest(&self, vertex: &llb::Vertex) -> Option<oci::Digest> {
        let platform = vertex.platform.clone().map_or_else(Platform::host, Platform::normalized);
        llb::cache_key::of(vertex, &platform).ok().map(|key| key.digest)
    }

    /// With `rescan`, platforms that became executable since are added; none ever leaves.
    pub fn facts(&self, rescan: bool) -> Facts {
        let mut known = self.platforms.lock().expect("no holder of this lock panics");
        if rescan && known.scanned.elapsed() >= self.platforms_max_age {
            for platform in self.runs.detect() {
                if !known.platforms.contains(&platform) {
                    known.platforms.push(platform);
                }
            }
            known.emulated = self.runs.emulated(&known.platforms);
            known.scanned = Instant::now();
        }
        let mut labels = self.labels.clone();
        let emulated = known.emulated.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        labels.extend((!emulated.is_empty()).then(|| (EMULATED_LABEL.to_owned(), emulated)));
        Facts { id: self.id.clone(), labels, platforms: known.platforms.clone(), devices: self.devices.list() }
    }
}

fn labels(
    given: BTreeMap<String, String>,
    snapshotter: &str,
    network: &str,
    hostname: String,
    confinement: &sandbox::Confinement,
) -> BTreeMap<String, String> {
    let selinux = confinement.selinux.to_string();
    let own = [
        ("executor", "oci"),
        ("snapshotter", snapshotter),
        ("hostname", if hostname.is_empty() { "unknown" } else { &hostname }),
        ("network", network),
        ("selinux.enabled", selinux.as_str()),
        ("oci.process-mode", "sandbox"),
    ];
    let own = own.into_iter().chain(confinement.apparmor.as_deref().map(|profile| ("apparmor.profile", profile)));
    let mut labels: BTreeMap<String, String> =
        own.map(|(key, value)| (format!("org.mobyproject.buildkit.worker.{key}"), value.to_owned())).collect();
    labels.extend(given);
    labels
}

/// The id kept in `path`, made on the first start: 25 characters of lower-case base 36.
fn worker_id(path: &Path) -> fault::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Fault::from(error).context(format!("failed to read {}", path.display()))),
    }
    let random = std::fs::read("/proc/sys/kernel/random/uuid").context("failed to read random bytes")?;
    let id = base36(oci::Digest::of(random).hex());
    std::fs::write(path, &id).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(id)
}

/// 25 characters out of a hex digest.
fn base36(hex: &str) -> String {
    let mut number = u128::from_str_radix(&hex[..32], 16).expect("a digest is hex");
    let mut id = String::new();
    while id.len() < 25 {
        id.push(char::from_digit((number % 36) as u32, 36).expect("below the radix"));
        number /= 36;
    }
    id
}
