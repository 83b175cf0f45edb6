//! Runs the daemon: listeners first, so that early clients wait rather than fail; then the store; then builds, until it is told to stop.
use std::sync::Arc;
use std::time::Duration;

use dashboard::Dashboard;
use grpc::{Server, Sessions, WireEncoding};
use job::{Builds, Version};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use worker::{Runtime, Worker};

use super::config::Config;
use super::listen::{Connection, Counter, Listener};
use super::{listen, lock, notify};

/// How long clients that hold on to their connections keep an idle daemon from ending.
const LEAVE_TAKING: Duration = Duration::from_millis(500);

/// After the last build, and after the first time.
const GIVE_BACK_AFTER: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(190)];

pub async fn run(config: Config, open_files: Option<u64>) -> Result<(), String> {
    let _lock = lock::hold(&config.root, &config.addresses)?;
    if config.addresses.is_empty() {
        return Err("--addr cannot be empty".into());
    }
    let tls = config.tls.acceptor()?;
    sandbox::limit_memory_pools();
    let listeners: Vec<Listener> =
        config.addresses.iter().map(|address| listen::open(address, config.socket_owner, tls.as_ref())).collect::<Result<_, _>>()?;
    let debug_listener = config.debug_address.as_deref().map(listen::open_debug).transpose()?;
    let (grace, idle) = (config.grace_period, config.idle_exit);
    let sessions = Sessions::new();
    let builds = Arc::new(open(config, open_files, &sessions)?);
    let server = Server::new(builds.clone(), sessions);
    let counter = Counter::default();
    let stop = task::Cancel::new();
    for listener in listeners {
        let server = server.clone();
        task::spawn("listener", accept(listener, counter.clone(), stop.clone(), move |connection| server.connection(connection)));
    }
    if let Some(listener) = debug_listener {
        let (dashboard, end) = (Dashboard::new(builds.clone()), stop.clone());
        let show = move |connection| _ = task::spawn("debug connection", dashboard.clone().connection(connection, end.clone()));
        // Who only looks does not keep the daemon from ending.
        task::spawn("debug listener", accept(listener, Counter::default(), stop.clone(), show));
    }
    let (running, end) = (builds.running_count(), stop.clone());
    task::spawn("memory", async move {
        tokio::select! {
            () = give_back_memory(running) => {}
            () = end.cancelled() => {}
        }
    });
    notify::state("READY=1");
    let reason = tokio::select! {
        reason = told_to_stop() => reason?,
        () = idle_for(idle, &counter, &builds) => "idle",
    };
    tracing::info!(reason, "stopping");
    notify::state("STOPPING=1");
    stop.cancel("the daemon is stopping");
    drain(&server, &builds, grace).await;
    builds.flush().await;
    builds.close().await;
    Ok(())
}

fn open(config: Config, open_files: Option<u64>, sessions: &Sessions) -> Result<Builds, String> {
    let sandbox = sandbox::Settings {
        dns: config.dns,
        cgroup_parent: config.cgroup_parent,
        host_proc: config.host_proc,
        confinement: config.confinement,
        open_files,
        ..sandbox::Settings::new(config.root.join("sandbox"))
    };
    let mut emulators: Vec<_> = std::env::split_paths(&config.program_path).collect();
    emulators.extend(std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned())));
    let worker = Worker::open(worker::Settings {
        root: config.root,
        backend: config.snapshotter,
        runtime: config.binary.map_or(Runtime::Builtin, Runtime::Oci),
        sandbox,
        network: config.network,
        registry: config.registry,
        labels: config.labels,
        platforms: config.platforms,
        platforms_max_age: config.platforms_max_age,
        emulators,
        devices: config.devices,
        parallelism: config.parallelism,
        log_limits: config.log_limits,
        gc_rules: config.gc_rules,
        ceiling: config.ceiling,
        hostname: hostname(),
        program_path: config.program_path,
        proxy: config.program_proxy,
        environment: cache::remote::Environment::new(
            std::env::vars_os().filter_map(|(k, v)| k.into_string().ok().zip(v.into_string().ok())),
        ),
    })
    .map_err(|e| e.to_string())?;
    let version = Version {
        package: crate::version::PACKAGE.into(),
        version: crate::version::VERSION.into(),
        revision: crate::version::revision().into(),
        dockerfile: crate::version::DOCKERFILE.into(),
    };
    let encoding = WireEncoding { version: version.clone() };
    let settings = job::Settings {
        version,
        entitlements: config.entitlements,
        proxy_network: config.proxy_network,
        dockerfile_enabled: config.dockerfile_enabled,
        gateway_enabled: config.gateway_enabled,
        gateway_sources: config.gateway_sources,
        frontend_door: Arc::new(grpc::Door),
        provenance_env: config.provenance_env,
        sbom_generator: config.sbom_generator,
        retention: config.history,
    };
    Ok(Builds::new(Arc::new(worker), Arc::new(sessions.clone()), settings, Arc::new(encoding)))
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

async fn accept(listener: Listener, counter: Counter, stop: task::Cancel, serve: impl Fn(Connection) + Clone + Send + 'static) {
    loop {
        let incoming = tokio::select! {
            incoming = listener.accept() => incoming,
            () = stop.cancelled() => return,
        };
        match incoming {
            Ok(incoming) => {
                let (serve, counter) = (serve.clone(), counter.clone());
                task::spawn("handshake", async move {
                    match incoming.establish(&counter).await {
                        Ok(connection) => serve(connection),
                        Err(error) => tracing::debug!(%error, "a client failed to connect"),
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others will be closed.
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Once no build is left, what they took goes back to the system: the C library keeps it otherwise, in pieces too small for it to return. Once
/// soon, and once when what is kept of ended builds for late clients has gone, too.
async fn give_back_memory(mut running: watch::Receiver<usize>) {
    // Fails only when the daemon ends.
    while running.changed().await.is_ok() {
        while running.wait_for(|count| *count == 0).await.is_ok() && !stays_quiet(&mut running).await {}
    }
}

/// `false` as soon as a build comes before all is given back.
async fn stays_quiet(running: &mut watch::Receiver<usize>) -> bool {
    for pause in GIVE_BACK_AFTER {
        if tokio::time::timeout(pause, running.changed()).await.is_ok() {
            return false;
        }
        let giving = task::blocking(|| {
            sandbox::give_back_memory();
            Ok(())
        });
        // Fails only when the runtime is ending.
        let _ = giving.await;
    }
    true
}

async fn told_to_stop() -> Result<&'static str, String> {
    let failed = |e: std::io::Error| format!("failed to listen for signals: {e}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Resolves once there has been no client and no build for so long; never without a limit.
async fn idle_for(limit: Option<Duration>, counter: &Counter, builds: &Builds) {
    let Some(limit) = limit else { return std::future::pending().await };
    let (mut clients, mut running) = (counter.count(), builds.running_count());
    loop {
        if *clients.borrow_and_update() == 0 && *running.borrow_and_update() == 0 {
            let changed = async {
                tokio::select! { _ = clients.changed() => {}, _ = running.changed() => {} }
            };
            if tokio::time::timeout(limit, changed).await.is_err() {
                return;
            }
        } else {
            // Neither fails: both senders outlive this.
            tokio::select! { _ = clients.changed() => {}, _ = running.changed() => {} }
        }
    }
}

/// Lets running builds end within the grace period; a second signal or the period's end cancels them.
async fn drain(server: &Server, builds: &Builds, grace: Duration) {
    let mut running = builds.running_count();
    let finished = async { _ = running.wait_for(|count| *count == 0).await };
    tokio::select! {
        () = finished => {}
        () = tokio::time::sleep(grace) => builds.cancel_all("the daemon is shutting down"),
        _ = told_to_stop() => builds.cancel_all("the daemon was told to stop at once"),
    }
    builds.dismiss_listeners();
    let _ = tokio::time::timeout(LEAVE_TAKING, server.stop()).await;
}
