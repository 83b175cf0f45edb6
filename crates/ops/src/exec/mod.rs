//! The exec op: one process in a container, on the layers that are its inputs.
//!
//! Start at [`Exec::run`]. Containers that are no steps use the parts of it: [`Prepared`] turns mounts into trees and the sandbox's mounts, and commits them afterwards;
//! `environment` makes what the process sees; `log` carries its output.
mod environment;
mod failure;
mod log;
mod mounts;
mod proxied;
mod stubs;
mod trust;

use std::sync::{Arc, Mutex};

use layers::{Layer, Layers};
use llb::{ExecOp, LinuxResources, Meta, NetMode, SecurityMode, Vertex};
use progress::Reporter;
use proxied::Behind;
use proxy::Proxy;
use sandbox::network::Networks;
use sandbox::{Container, Exit, Input, Io, Network, Output, Process, Resources, Rlimit, Runtime, Security};
use session::Group;
use task::Cancel;

pub use environment::{UNIX_PATH, WINDOWS_PATH, hosts, variables};
pub use failure::{ExitError, Failure, Leftovers};
pub use log::{LogLimits, StepLog};
pub use mounts::{Prepared, Wanted};
pub use proxied::Proxied;

/// What all exec ops of a worker share.
pub struct Exec {
    pub layers: Layers,
    pub runtime: Arc<dyn Runtime>,
    /// Those that `runtime` puts containers in.
    pub networks: Networks,
    pub proxy: Arc<Proxy>,
    pub log_limits: LogLimits,
    /// Where forwarded sockets live.
    pub sockets: std::path::PathBuf,
}

/// One exec to run.
pub struct Request<'a> {
    pub vertex: &'a Vertex,
    pub op: &'a ExecOp,
    pub inputs: &'a [Option<Layer>],
    pub sessions: &'a Group,
    pub reporter: &'a Reporter,
    pub cancel: &'a Cancel,
    /// For programs that the kernel alone cannot run.
    pub emulator: Option<sandbox::Emulator>,
    pub extras: Extras,
    /// For steps that reach the network through the proxy only.
    pub proxied: Option<Proxied<'a>>,
    /// Is told what the step used of the machine.
    pub used: &'a (dyn Fn(Vec<sandbox::Sample>) + Send + Sync),
}

/// What a step gets with the devices that it asks for.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// `NAME=value`; these win over the step's own.
    pub env: Vec<String>,
    pub mounts: Vec<sandbox::Mount>,
    pub devices: Vec<sandbox::DeviceNode>,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Exec {
    /// Runs the op; one result for each of its outputs.
    pub async fn run(&self, request: Request<'_>) -> Result<Vec<Option<Layer>>, Failure> {
        let Request { vertex, op, inputs, sessions, cancel, .. } = request;
        let owner = format!("exec {}", op.meta.args.join(" "));
        let wanted = Wanted {
            mounts: &op.mounts,
            inputs,
            cwd: &op.meta.cwd,
            owner: &owner,
            fresh_caches: vertex.metadata.ignore_cache,
            sessions,
            cancel,
        };
        let inputs: Vec<Option<Layer>> =
            op.mounts.iter().map(|m| m.input.and_then(|i| inputs.get(i as usize).cloned().flatten())).collect();
        let mut prepared = match Prepared::new(self, &wanted).await {
            Ok(prepared) => prepared,
            Err(fault) => return Err(Failure { fault, left: Leftovers::none(inputs) }),
        };
        let mut exit = match self.execute(&request, &mut prepared).await {
            Ok(exit) => exit,
            Err(fault) => {
                let process = quote(&op.meta.args.join(" "));
                let fault = match fault.kind() {
                    fault::Kind::Canceled => fault,
                    _ => fault.context(format!("process {process} did not complete successfully")),
                };
                return Err(Failure { fault, left: Leftovers::of(inputs, prepared, Vec::new()) });
            }
        };
        (request.used)(std::mem::take(&mut exit.usage));
        if !allowed(op, &exit) {
            let fault = ExitError { command: quote(&op.meta.args.join(" ")), code: exit.code, oom: exit.oom_killed }.into();
            return Err(Failure { fault, left: Leftovers::of(inputs, prepared, exit.stubs) });
        }
        prepared.commit(exit.stubs).await.map_err(|fault| Failure { fault, left: Leftovers::none(inputs) })
    }

    async fn execute(&self, request: &Request<'_>, prepared: &mut Prepared) -> fault::Result<Exit> {
        let Request { vertex, op, sessions, reporter, cancel, extras, .. } = request;
        let behind = match &request.proxied {
            Some(proxied) => Some(Behind::open(self, proxied.judge.clone(), &network(op.network)).await?),
            None => None,
        };
        let mut env = variables(&op.meta, &op.secret_env, &[UNIX_PATH], sessions).await?;
        if let Some(behind) = &behind {
            behind.set_variables(&mut env);
        }
        let hosts = hosts(&op.meta.extra_hosts)?;
        let trusted = behind.as_ref().map(|_| prepared.trust(self.proxy.certificate())).transpose()?.flatten();
        let mut mounts = prepared.take_mounts();
        mounts.extend(extras.mounts.iter().cloned());
        let container = Container {
            root_readonly: prepared.root_readonly(),
            mounts,
            devices: extras.devices.clone(),
            hostname: op.meta.hostname.clone(),
            hosts,
            network: behind.as_ref().map_or_else(|| network(op.network), Behind::network),
            resources: resources(vertex.metadata.linux_resources.as_ref()),
            cgroup_parent: op.meta.cgroup_parent.clone(),
            security: security(op.security),
            recursive_stubs: op.meta.remove_mount_stubs_recursive,
            emulator: request.emulator.clone(),
            ..Container::new(container_id(&vertex.digest.hex()[..16]), prepared.root())
        };
        let mut process = process(&op.meta, env, false);
        for entry in &extras.env {
            let name = entry.split('=').next().unwrap_or_default();
            process.env.retain(|own| own.split('=').next() != Some(name));
            process.env.push(entry.clone());
        }
        process.groups = extras.groups.clone();
        let outcome = self.supervise(container, process, reporter, cancel, request.proxied.as_ref().zip(behind)).await;
        prepared.hang_up().await;
        if let Some(trusted) = trusted {
            prepared.distrust(trusted)?;
        }
        outcome
    }

    /// Runs the process with its output going to the step's log.
    async fn supervise(
        &self,
        container: Container,
        process: Process,
        reporter: &Reporter,
        cancel: &Cancel,
        behind: Option<(&Proxied<'_>, Behind)>,
    ) -> fault::Result<Exit> {
        let logs = [1, 2].map(|stream| Arc::new(Mutex::new(Some(StepLog::new(reporter.clone(), stream, self.log_limits)))));
        let [stdout, stderr] = [&logs[0], &logs[1]].map(|log| {
            let log = log.clone();
            Output::Call(Box::new(move |data| {
                if let Some(log) = log.lock().expect("no holder of this lock panics").as_mut() {
                    log.write(data);
                }
            }))
        });
        let outcome = self.runtime.run(container, process, Io { stdin: Input::Empty, stdout, stderr }, cancel).await;
        let failed = !matches!(&outcome, Ok(exit) if exit.code == 0);
        if let Some((proxied, behind)) = behind {
            let captured = behind.finish().await;
            if let Some(log) = logs[1].lock().expect("no holder of this lock panics").as_mut() {
                log.write(captured.summary().into());
            }
            (proxied.captured)(captured);
        }
        for log in logs {
            if let Some(log) = log.lock().expect("no holder of this lock panics").take() {
                log.finish(failed);
            }
        }
        Ok(outcome?)
    }
}

fn allowed(op: &ExecOp, exit: &Exit) -> bool {
    match op.meta.valid_exit_codes.as_slice() {
        [] => exit.code == 0,
        codes => codes.contains(&exit.code),
    }
}

/// `env` is all of its environment, as [`variables`] gives it.
pub fn process(meta: &Meta, env: Vec<String>, tty: bool) -> Process {
    let rlimits = meta.ulimits.iter().map(|u| Rlimit { name: u.name.clone(), soft: u.soft, hard: u.hard }).collect();
    Process { args: meta.args.clone(), env, cwd: meta.cwd.clone(), user: meta.user.clone(), groups: Vec::new(), tty, rlimits }
}

pub fn network(mode: NetMode) -> Network {
    match mode {
        NetMode::Unset => Network::Default,
        NetMode::Host => Network::Host,
        NetMode::None => Network::None,
    }
}

pub fn security(mode: SecurityMode) -> Security {
    match mode {
        SecurityMode::Sandbox => Security::Sandbox,
        SecurityMode::Insecure => Security::Insecure,
    }
}

/// LLB's zeroes mean "not limited".
fn resources(given: Option<&LinuxResources>) -> Resources {
    let Some(r) = given else { return Resources::default() };
    Resources {
        memory: (r.memory > 0).then_some(r.memory),
        memory_swap: (r.memory_swap != 0).then_some(r.memory_swap),
        cpu_shares: (r.cpu_shares > 0).then_some(r.cpu_shares),
        cpu_quota: (r.cpu_quota > 0).then_some(r.cpu_quota),
        cpu_period: (r.cpu_period > 0).then_some(r.cpu_period),
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        pids: None,
    }
}

/// Unique among containers of all daemons; begins with `prefix`, of which only letters, digits, `-` and `_` may consist.
pub fn container_id(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// As Go's `%q` prints a string, which is how clients know this message.
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failure_reads_as_clients_know_it() {
        let error = ExitError { command: quote("/bin/sh -c echo \"a\"\nfalse"), code: 1, oom: false };
        assert_eq!(error.to_string(), r#"process "/bin/sh -c echo \"a\"\nfalse" did not complete successfully: exit code: 1"#);
        let error = ExitError { command: quote("x"), code: 137, oom: true };
        assert_eq!(error.to_string(), r#"process "x" did not complete successfully: cannot allocate memory"#);
    }
}
