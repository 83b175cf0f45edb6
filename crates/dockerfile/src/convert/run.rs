//! RUN: one process with its mounts.
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use llb::{
    CdiDevice, FileActionKind, HostIp, Meta, Metadata, Mount, MountKind, NetMode, Owner, ProxyEnv, SecretEnv, SecretOpt, Sharing, Who,
};
use oci::Timestamp;
use patterns::{base, clean, join};

use super::env::Masked;
use super::plan::{NodeId, Planned, PlannedAction, PlannedExec, PlannedMount};
use super::stage::{CapturedMount, Step};
use super::{Converter, image, name};
use crate::instruction::{self, InlineFile, Run, RunNetwork};
use crate::source::describe;
use crate::syntax::{chomp, parse_mark};
use crate::text::quote;
use crate::{Error, Lines, Result};

/// Where scripts of heredocs are mounted.
const PIPES: &str = "/dev/pipes/";

impl Converter<'_> {
    pub(super) fn run_step(&mut self, index: usize, step: &Step, run: &Run, epoch: Option<Timestamp>) -> Result<()> {
        let instruction = &step.instruction;
        let linter = self.linter.below(&instruction.comments);
        let mounts: Vec<instruction::Mount> = {
            let expander = self.expander(index, instruction, &linter);
            run.mounts.iter().map(|mount| mount.expand(|value| expander.word(value))).collect::<Result<_>>()?
        };
        let root_paths = self.stages[index].paths;
        self.plan.use_path(root_paths, "/");

        let mut shown = instruction.code.clone();
        let (mut args, script) = self.command(index, run, &mut shown)?;
        if run.line.shell {
            args = image::with_shell(&self.stages[index].image, &args);
        }
        let mut exec = PlannedExec {
            meta: self.meta(index, args.clone()),
            platform: self.stages[index].state.platform.clone(),
            root: self.stages[index].state.files,
            mounts: script.into_iter().collect(),
            secrets: Vec::new(),
            ssh: Vec::new(),
            secret_env: Vec::new(),
            network: match run.network {
                RunNetwork::Default => self.stages[index].state.network,
                RunNetwork::None => NetMode::None,
                RunNetwork::Host => NetMode::Host,
            },
            security: run.security.into(),
            devices: Vec::new(),
        };
        for (mount, source) in mounts.iter().zip(&step.sources) {
            self.mount(index, mount, *source, instruction.lines, &mut exec)?;
        }
        set_ssh_targets(&mut exec);
        self.devices(run, &mut exec)?;
        if self.options.shm_size > 0 && self.options.has_cap("exec.mount.tmpfs.size") {
            let kind = MountKind::Tmpfs { size: self.options.shm_size };
            let dest = "/dev/shm".into();
            exec.mounts.push(PlannedMount { dest, source: None, selector: String::new(), readonly: false, no_output: false, kind });
        }

        let mut metadata = Metadata { ignore_cache: self.stages[index].ignore_cache, ..Metadata::default() };
        if self.options.has_cap("exec.meta.linux.resources") {
            metadata.linux_resources = self.options.linux_resources.clone();
        }
        describe(&mut metadata, "com.docker.dockerfile.v1.command", &instruction.code);
        describe(&mut metadata, "llb.customname", self.step_name(index, &shown, &mounts));

        let node = self.plan.add(Planned::Exec(Box::new(exec)), metadata, Some(instruction.lines));
        let stage = &mut self.stages[index];
        stage.state.files = Some(node);
        let text = history_text(&args, stage);
        image::commit(&mut stage.image, text, true, epoch);
        Ok(())
    }

    /// The command line, and the script that a heredoc becomes.
    fn command(&mut self, index: usize, run: &Run, shown: &mut String) -> Result<(Vec<String>, Option<PlannedMount>)> {
        let args = &run.line.args;
        let Some(first) = run.line.heredocs.first() else {
            return Ok((args.clone(), None));
        };
        let [word] = args.as_slice() else {
            return Err(Error::new(format!("parsing produced an invalid run command: {}", crate::text::list(args))));
        };
        if parse_mark(word).ok().flatten().is_none() {
            // The shell reads the documents itself.
            let documents: String = run.line.heredocs.iter().map(|doc| format!("\n{}{}", doc.data, doc.name)).collect();
            return Ok((vec![format!("{word}{documents}")], None));
        }
        shown.push_str(&format!(" ({})", name::summary(&first.data)));
        let data = if first.chomp { chomp(&first.data) } else { first.data.clone() };
        if self.stages[index].image.os == "windows" || !data.starts_with("#!") {
            return Ok((vec![data], None));
        }
        let mount = self.script(first, data);
        Ok((vec![join(&[PIPES, &first.name])], Some(mount)))
    }

    fn script(&mut self, doc: &InlineFile, data: String) -> PlannedMount {
        let source = Some(self.inline_file(&doc.name, data, 0o755));
        let kind = MountKind::Bind;
        // The root of a mount is no selector of its own for LLB, but BuildKit writes one here.
        PlannedMount { dest: PIPES.into(), source, selector: "/".into(), readonly: true, no_output: false, kind }
    }

    /// A file of its own, made from text in the Dockerfile.
    pub(super) fn inline_file(&mut self, path: &str, data: String, mode: i32) -> NodeId {
        let path = super::paths::action_path("/", path, false);
        let kind = FileActionKind::Mkfile { path, mode, data: data.into_bytes().into(), owner: None, timestamp: -1 };
        let mut metadata = Metadata::default();
        describe(&mut metadata, "llb.customname", "[internal] preparing inline document");
        self.plan.add(Planned::File { base: None, actions: vec![PlannedAction { kind, from: None }] }, metadata, None)
    }

    fn meta(&self, index: usize, args: Vec<String>) -> Meta {
        let state = &self.stages[index].state;
        let options = &self.options;
        let host = |(host, ip): &(String, String)| HostIp { host: host.clone(), ip: ip.clone() };
        Meta {
            args,
            env: state.env.to_list(),
            cwd: state.dir.clone(),
            user: state.user.clone(),
            proxy_env: proxy(&options.build_args),
            extra_hosts: options.extra_hosts.iter().map(host).collect(),
            hostname: state.hostname.clone(),
            ulimits: if options.has_cap("exec.meta.ulimit") { options.ulimits.clone() } else { Vec::new() },
            cgroup_parent: if options.has_cap("exec.meta.cgroup.parent") { options.cgroup_parent.clone() } else { String::new() },
            remove_mount_stubs_recursive: true,
            valid_exit_codes: Vec::new(),
        }
    }

    fn devices(&self, run: &Run, exec: &mut PlannedExec) -> Result<()> {
        if self.options.has_cap("exec.meta.cdi") {
            let device = |d: &instruction::Device| CdiDevice { name: d.name.clone(), optional: !d.required };
            exec.devices = run.devices.iter().map(device).collect();
        }
        Ok(())
    }

    fn mount(&mut self, index: usize, mount: &instruction::Mount, source: usize, lines: Lines, exec: &mut PlannedExec) -> Result<()> {
        use instruction::MountKind as Kind;
        let from_context = mount.from.is_empty() && mount.kind != Kind::Cache;
        let mut files = Some(self.context);
        if !from_context {
            let stage = &self.stages[source];
            if !stage.dispatched {
                let from = if mount.from.is_empty() { "scratch" } else { &mount.from };
                let (from, target) = (quote(from), quote(&mount.target));
                let why = "stage needs to be defined before current command";
                return Err(Error::new(format!("cannot mount from stage {from} to {target}, {why}")));
            }
            files = stage.state.files;
        }
        match mount.kind {
            Kind::Secret => return self.secret(index, mount, lines, exec),
            Kind::Ssh => return self.ssh(index, mount, lines, exec),
            Kind::Tmpfs => files = None,
            Kind::Bind | Kind::Cache => {}
        }
        let writable_bind = !mount.readonly && mount.kind == Kind::Bind;
        let target = if clean(&mount.target).starts_with('/') {
            mount.target.clone()
        } else {
            join(&["/", &self.stages[index].state.dir, &mount.target])
        };
        if target == "/" {
            return Err(Error::new(format!("invalid mount target {}", quote(&target))));
        }
        let mut selector = join(&["/", &mount.source]);
        if selector == "/" {
            selector.clear();
            if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
                files = Some(self.cache_root(mount, files));
                selector = "/cache".into();
            }
        }
        exec.mounts.push(PlannedMount {
            dest: target,
            source: files,
            selector,
            readonly: mount.readonly,
            no_output: writable_bind && self.options.has_cap("exec.mount.bind.readwrite-nooutput"),
            kind: self.mount_kind(mount),
        });
        let paths = if from_context { self.stages[index].context_paths } else { self.stages[source].paths };
        self.plan.use_path(paths, &mount.source);
        Ok(())
    }

    fn mount_kind(&self, mount: &instruction::Mount) -> MountKind {
        match mount.kind {
            instruction::MountKind::Cache => {
                let id = if mount.id.is_empty() { clean(&mount.target) } else { mount.id.clone() };
                MountKind::Cache {
                    id: format!("{}/{id}", self.options.cache_namespace),
                    sharing: match mount.sharing {
                        None | Some(instruction::Sharing::Shared) => Sharing::Shared,
                        Some(instruction::Sharing::Private) => Sharing::Private,
                        Some(instruction::Sharing::Locked) => Sharing::Locked,
                    },
                }
            }
            instruction::MountKind::Tmpfs => MountKind::Tmpfs { size: mount.size },
            _ => MountKind::Bind,
        }
    }

    /// A directory with the wanted owner and mode, on which the cache begins.
    fn cache_root(&mut self, mount: &instruction::Mount, files: Option<NodeId>) -> NodeId {
        let id = |id: Option<u32>| Some(Who::Id(id.unwrap_or(0)));
        let kind = FileActionKind::Mkdir {
            path: "/cache".into(),
            mode: (mount.mode.unwrap_or(0o755) & 0o777) as i32,
            make_parents: false,
            owner: Some(Owner { user: id(mount.uid), group: id(mount.gid) }),
            timestamp: -1,
        };
        let mut metadata = Metadata::default();
        describe(&mut metadata, "llb.customname", "[internal] setting cache mount permissions");
        self.plan.add(Planned::File { base: files, actions: vec![PlannedAction { kind, from: None }] }, metadata, None)
    }

    fn secret(&mut self, index: usize, mount: &instruction::Mount, lines: Lines, exec: &mut PlannedExec) -> Result<()> {
        let id = [&mount.source, &mount.id].into_iter().find(|id| !id.is_empty()).cloned();
        let id = id.unwrap_or_else(|| base(&mount.target).to_owned());
        let captured = CapturedMount { required: mount.required, lines };
        self.stages[index].outline.secrets.entry(id.clone()).or_insert(captured);
        let optional = !mount.required;
        if let Some(variable) = &mount.env {
            exec.secret_env.push(SecretEnv { id: id.clone(), name: variable.clone(), optional });
            if mount.target.is_empty() {
                return Ok(());
            }
        }
        let dest = if mount.target.is_empty() { format!("/run/secrets/{}", base(&id)) } else { mount.target.clone() };
        exec.secrets.push(socket_or_secret(dest, MountKind::Secret(secret_opt(mount, id, 0o400))));
        Ok(())
    }

    fn ssh(&mut self, index: usize, mount: &instruction::Mount, lines: Lines, exec: &mut PlannedExec) -> Result<()> {
        if !mount.source.is_empty() {
            return Err(Error::new("ssh does not support source"));
        }
        let id = if mount.id.is_empty() { "default".to_owned() } else { mount.id.clone() };
        let captured = CapturedMount { required: mount.required, lines };
        self.stages[index].outline.ssh.entry(id).or_insert(captured);
        exec.ssh.push(socket_or_secret(mount.target.clone(), MountKind::Ssh(secret_opt(mount, mount.id.clone(), 0o600))));
        Ok(())
    }

    /// Variables are expanded, but secrets stay covered, and what is not set stays as written.
    fn step_name(&mut self, index: usize, shown: &str, mounts: &[instruction::Mount]) -> String {
        let mut lexer = self.lexer;
        lexer.raw_quotes = true;
        lexer.keep_unset = true;
        let env = self.stages[index].state.env.clone();
        let secret = |m: &instruction::Mount| m.env.clone().filter(|_| m.kind == instruction::MountKind::Secret);
        let masked = Masked { below: &env, names: mounts.iter().filter_map(secret).collect() };
        let text = name::shown(shown, &lexer, &masked);
        let platform = self.stages[index].state.platform.clone().filter(|_| self.options.multi_platform);
        name::prefix(&mut self.stages[index], &text, platform.as_ref(), &env)
    }
}

fn secret_opt(mount: &instruction::Mount, id: String, mode: u32) -> SecretOpt {
    SecretOpt { id, uid: mount.uid.unwrap_or(0), gid: mount.gid.unwrap_or(0), mode: mount.mode.unwrap_or(mode), optional: !mount.required }
}

fn socket_or_secret(dest: String, kind: MountKind) -> Mount {
    Mount {
        dest,
        input: None,
        selector: String::new(),
        output: None,
        readonly: false,
        kind,
        content_cache: Default::default(),
        result_id: String::new(),
    }
}

/// Sockets without a place get one by number; the first is the agent unless the environment names another.
fn set_ssh_targets(exec: &mut PlannedExec) {
    for (number, mount) in exec.ssh.iter_mut().enumerate() {
        if mount.dest.is_empty() {
            mount.dest = format!("/run/buildkit/ssh_agent.{number}");
        }
    }
    let known = exec.meta.env.iter().any(|entry| image::split_env(entry).0 == "SSH_AUTH_SOCK");
    if let Some(first) = exec.ssh.first().filter(|_| !known) {
        exec.meta.env.push(format!("SSH_AUTH_SOCK={}", first.dest));
    }
}

/// Proxies reach processes without being part of what is cached.
fn proxy(args: &std::collections::BTreeMap<String, String>) -> Option<ProxyEnv> {
    let mut proxy = ProxyEnv::default();
    let mut any = false;
    for (key, value) in args {
        let field = match key.to_lowercase().as_str() {
            "http_proxy" => &mut proxy.http_proxy,
            "https_proxy" => &mut proxy.https_proxy,
            "ftp_proxy" => &mut proxy.ftp_proxy,
            "no_proxy" => &mut proxy.no_proxy,
            "all_proxy" => &mut proxy.all_proxy,
            _ => continue,
        };
        *field = value.clone();
        any = true;
    }
    any.then_some(proxy)
}

/// `RUN |2 A=1 B=2 /bin/sh -c make # buildkit`
fn history_text(args: &[String], stage: &super::stage::StageState) -> String {
    // Of an argument that is declared again the first place and the last value count; variables go before arguments.
    let mut places: HashMap<&str, usize> = HashMap::with_capacity(stage.args.len());
    let mut declared: Vec<(&str, &str)> = Vec::with_capacity(stage.args.len());
    for arg in &stage.args {
        let entry = (arg.key.as_str(), arg.value.as_deref().unwrap_or_default());
        match places.entry(&arg.key) {
            Entry::Occupied(known) => declared[*known.get()] = entry,
            Entry::Vacant(free) => {
                free.insert(declared.len());
                declared.push(entry);
            }
        }
    }
    if !declared.is_empty() {
        for (key, value) in stage.state.env.iter() {
            if let Some(place) = places.get(key) {
                declared[*place].1 = value;
            }
        }
    }
    let mut text = String::from("RUN");
    if !declared.is_empty() {
        text.push_str(&format!(" |{}", declared.len()));
    }
    for (key, value) in declared {
        [" ", key, "=", value].into_iter().for_each(|part| text.push_str(part));
    }
    text.push(' ');
    text.push_str(&args.join(" "));
    text + " # buildkit"
}
