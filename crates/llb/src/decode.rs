//! Wire messages -> typed ops, with the checks that hold for one op by itself.
use bytes::Bytes;
use oci::{Digest, Platform};
use prost::Message as _;
use proto::pb;

use crate::load::OpError;
use crate::types::*;

/// Which inputs an op may name.
pub(crate) struct Inputs(pub usize);

type Result<T> = std::result::Result<T, OpError>;

pub(crate) fn op(message: pb::op::Op, inputs: &Inputs) -> Result<Op> {
    Ok(match message {
        pb::op::Op::Source(source) => Op::Source(SourceOp { identifier: source.identifier, attrs: source.attrs }),
        pb::op::Op::Exec(exec) => Op::Exec(Box::new(self::exec(exec, inputs)?)),
        pb::op::Op::File(file) => Op::File(self::file(file)?),
        pb::op::Op::Build(build) => Op::Build(self::build(build)?),
        pb::op::Op::Merge(merge) => {
            let input = |i: pb::MergeInput| inputs.optional(i.input).ok_or(OpError::MergeInput { index: i.input });
            Op::Merge(merge.inputs.into_iter().map(input).collect::<Result<_>>()?)
        }
        pb::op::Op::Diff(diff) => {
            let (Some(lower), Some(upper)) = (diff.lower, diff.upper) else { return Err(OpError::DiffSide) };
            let side = |index| inputs.optional(index).ok_or(OpError::DiffInput { index });
            Op::Diff { lower: side(lower.input)?, upper: side(upper.input)? }
        }
        pb::op::Op::Passthrough(pass) => passthrough(pass, inputs)?,
    })
}

impl Inputs {
    /// `Some(None)` for scratch, `None` for an index that no input has.
    fn optional(&self, index: i64) -> Option<Option<u32>> {
        match index {
            -1 => Some(None),
            _ => usize::try_from(index).ok().filter(|i| *i < self.0).map(|i| Some(i as u32)),
        }
    }
}

/// -1 becomes `None`; the upper bound is for the op to check.
fn index(value: i64) -> Result<Option<u32>> {
    match value {
        -1 => Ok(None),
        _ => u32::try_from(value).map(Some).map_err(|_| OpError::Index { index: value }),
    }
}

fn passthrough(pass: pb::PassthroughOp, inputs: &Inputs) -> Result<Op> {
    if pass.id.is_empty() {
        return Err(OpError::PassthroughId);
    }
    if pass.outputs.is_empty() {
        return Err(OpError::PassthroughOutputs);
    }
    let output = |index| inputs.optional(index).flatten().ok_or(OpError::PassthroughInput { index });
    Ok(Op::Passthrough { id: pass.id, outputs: pass.outputs.into_iter().map(output).collect::<Result<_>>()? })
}

fn exec(exec: pb::ExecOp, inputs: &Inputs) -> Result<ExecOp> {
    let meta = exec.meta.ok_or(OpError::ExecMeta)?;
    if meta.args.is_empty() {
        return Err(OpError::ExecArgs);
    }
    if exec.mounts.is_empty() {
        return Err(OpError::ExecMounts);
    }
    if !exec.mounts.iter().any(|m| m.dest == "/") {
        return Err(OpError::ExecRootfs);
    }
    Ok(ExecOp {
        meta: self::meta(meta),
        mounts: exec.mounts.into_iter().map(|m| mount(m, inputs)).collect::<Result<_>>()?,
        network: match pb::NetMode::try_from(exec.network) {
            Ok(pb::NetMode::Unset) => NetMode::Unset,
            Ok(pb::NetMode::Host) => NetMode::Host,
            Ok(pb::NetMode::None) => NetMode::None,
            Err(_) => return Err(OpError::Enumeration { field: "network mode", value: exec.network }),
        },
        security: match pb::SecurityMode::try_from(exec.security) {
            Ok(pb::SecurityMode::Sandbox) => SecurityMode::Sandbox,
            Ok(pb::SecurityMode::Insecure) => SecurityMode::Insecure,
            Err(_) => return Err(OpError::Enumeration { field: "security mode", value: exec.security }),
        },
        secret_env: exec.secretenv.into_iter().map(|s| SecretEnv { id: s.id, name: s.name, optional: s.optional }).collect(),
        cdi_devices: exec.cdi_devices.into_iter().map(|d| CdiDevice { name: d.name, optional: d.optional }).collect(),
    })
}

pub(crate) fn meta(meta: pb::Meta) -> Meta {
    Meta {
        args: meta.args,
        env: meta.env,
        cwd: meta.cwd,
        user: meta.user,
        proxy_env: meta.proxy_env.map(|p| ProxyEnv {
            http_proxy: p.http_proxy,
            https_proxy: p.https_proxy,
            ftp_proxy: p.ftp_proxy,
            no_proxy: p.no_proxy,
            all_proxy: p.all_proxy,
        }),
        extra_hosts: meta.extra_hosts.into_iter().map(|h| HostIp { host: h.host, ip: h.ip }).collect(),
        hostname: meta.hostname,
        ulimits: meta.ulimit.into_iter().map(|u| Ulimit { name: u.name, soft: u.soft, hard: u.hard }).collect(),
        cgroup_parent: meta.cgroup_parent,
        remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
        valid_exit_codes: meta.valid_exit_codes,
    }
}

fn mount(mount: pb::Mount, inputs: &Inputs) -> Result<Mount> {
    let mut typed = self::free_mount(mount)?;
    if matches!(typed.kind, MountKind::Bind | MountKind::Cache { .. }) {
        let index = typed.input.map_or(-1, i64::from);
        inputs.optional(index).ok_or_else(|| OpError::MountInput { dest: typed.dest.clone(), index })?;
    } else {
        typed.input = None;
    }
    Ok(typed)
}

/// A mount outside a graph, as gateway clients send it for their own containers: any input index is accepted.
pub(crate) fn free_mount(mount: pb::Mount) -> Result<Mount> {
    let secret = |id, uid, gid, mode, optional| SecretOpt { id, uid, gid, mode, optional };
    let kind = match pb::MountType::try_from(mount.mount_type) {
        Ok(pb::MountType::Bind) => MountKind::Bind,
        Ok(pb::MountType::Cache) => {
            let opt = mount.cache_opt.unwrap_or_default();
            let sharing = match pb::CacheSharingOpt::try_from(opt.sharing) {
                Ok(pb::CacheSharingOpt::Shared) => Sharing::Shared,
                Ok(pb::CacheSharingOpt::Private) => Sharing::Private,
                Ok(pb::CacheSharingOpt::Locked) => Sharing::Locked,
                Err(_) => return Err(OpError::Enumeration { field: "cache sharing option", value: opt.sharing }),
            };
            MountKind::Cache { id: opt.id, sharing }
        }
        Ok(pb::MountType::Tmpfs) => MountKind::Tmpfs { size: mount.tmpfs_opt.unwrap_or_default().size },
        Ok(pb::MountType::Secret) => {
            let o = mount.secret_opt.ok_or_else(|| OpError::MountOptions { dest: mount.dest.clone() })?;
            MountKind::Secret(secret(o.id, o.uid, o.gid, o.mode, o.optional))
        }
        Ok(pb::MountType::Ssh) => {
            let o = mount.ssh_opt.ok_or_else(|| OpError::MountOptions { dest: mount.dest.clone() })?;
            MountKind::Ssh(secret(o.id, o.uid, o.gid, o.mode, o.optional))
        }
        Err(_) => return Err(OpError::Enumeration { field: "mount type", value: mount.mount_type }),
    };
    let has_output = matches!(kind, MountKind::Bind | MountKind::Cache { .. } | MountKind::Tmpfs { .. });
    Ok(Mount {
        input: index(mount.input).map_err(|_| OpError::MountInput { dest: mount.dest.clone(), index: mount.input })?,
        output: if has_output { index(mount.output)? } else { None },
        selector: mount.selector,
        dest: mount.dest,
        readonly: mount.readonly,
        kind,
        content_cache: match pb::MountContentCache::try_from(mount.content_cache) {
            Ok(pb::MountContentCache::Default) => ContentCache::Default,
            Ok(pb::MountContentCache::On) => ContentCache::On,
            Ok(pb::MountContentCache::Off) => ContentCache::Off,
            Err(_) => return Err(OpError::Enumeration { field: "mount content cache", value: mount.content_cache }),
        },
        result_id: mount.result_id,
    })
}

fn file(file: pb::FileOp) -> Result<FileOp> {
    if file.actions.is_empty() {
        return Err(OpError::FileActions);
    }
    Ok(FileOp { actions: file.actions.into_iter().map(file_action).collect::<Result<_>>()? })
}

fn file_action(action: pb::FileAction) -> Result<FileAction> {
    Ok(FileAction {
        input: index(action.input)?,
        secondary_input: index(action.secondary_input)?,
        output: index(action.output)?,
        kind: file_action_kind(action.action.ok_or(OpError::FileAction)?)?,
    })
}

fn file_action_kind(action: pb::file_action::Action) -> Result<FileActionKind> {
    use pb::file_action::Action;
    Ok(match action {
        Action::Copy(c) => FileActionKind::Copy(Box::new(Copy {
            src: c.src,
            dest: c.dest,
            owner: c.owner.map(owner).transpose()?,
            mode: c.mode,
            mode_str: c.mode_str,
            follow_symlink: c.follow_symlink,
            dir_copy_contents: c.dir_copy_contents,
            attempt_unpack: c.attempt_unpack_docker_compatibility,
            create_dest_path: c.create_dest_path,
            allow_wildcard: c.allow_wildcard,
            allow_empty_wildcard: c.allow_empty_wildcard,
            timestamp: c.timestamp,
            include_patterns: c.include_patterns,
            exclude_patterns: c.exclude_patterns,
            always_replace_existing_dest_paths: c.always_replace_existing_dest_paths,
            required_paths: c.required_paths,
        })),
        Action::Mkfile(m) => FileActionKind::Mkfile {
            path: m.path,
            mode: m.mode,
            data: Bytes::from(m.data),
            owner: m.owner.map(owner).transpose()?,
            timestamp: m.timestamp,
        },
        Action::Mkdir(m) => FileActionKind::Mkdir {
            path: m.path,
            mode: m.mode,
            make_parents: m.make_parents,
            owner: m.owner.map(owner).transpose()?,
            timestamp: m.timestamp,
        },
        Action::Symlink(s) => FileActionKind::Symlink {
            oldpath: s.oldpath,
            newpath: s.newpath,
            owner: s.owner.map(owner).transpose()?,
            timestamp: s.timestamp,
        },
        Action::Rm(r) => FileActionKind::Rm { path: r.path, allow_not_found: r.allow_not_found, allow_wildcard: r.allow_wildcard },
    })
}

fn owner(owner: pb::ChownOpt) -> Result<Owner> {
    let who = |opt: pb::UserOpt| {
        Ok(match opt.user {
            None => None,
            Some(pb::user_opt::User::ById(id)) => Some(Who::Id(id)),
            Some(pb::user_opt::User::ByName(n)) => {
                let input = index(n.input).map_err(|_| OpError::UserIndex { index: n.input })?;
                Some(Who::Name { name: n.name, input })
            }
        })
    };
    Ok(Owner { user: owner.user.map(who).transpose()?.flatten(), group: owner.group.map(who).transpose()?.flatten() })
}

fn build(build: pb::BuildOp) -> Result<BuildOp> {
    Ok(BuildOp {
        builder: index(build.builder)?,
        inputs: build.inputs.into_iter().map(|(k, v)| Ok((k, index(v.input)?))).collect::<Result<_>>()?,
        attrs: build.attrs,
        def: build.def.map(|d| d.encode_to_vec().into()),
    })
}

pub(crate) fn platform(p: pb::Platform) -> Platform {
    Platform { architecture: p.architecture, os: p.os, os_version: p.os_version, os_features: p.os_features, variant: p.variant }
}

pub(crate) fn metadata(m: &pb::OpMetadata) -> Metadata {
    Metadata {
        ignore_cache: m.ignore_cache,
        description: m.description.clone(),
        export_cache: m.export_cache.map(|e| e.value),
        caps: m.caps.clone(),
        progress_group: m.progress_group.as_ref().map(|g| progress_group::ProgressGroup {
            id: g.id.clone(),
            name: g.name.clone(),
            weak: g.weak,
        }),
        linux_resources: m.linux_resources.as_ref().map(|r| LinuxResources {
            memory: r.memory,
            memory_swap: r.memory_swap,
            cpu_shares: r.cpu_shares,
            cpu_period: r.cpu_period,
            cpu_quota: r.cpu_quota,
            cpuset_cpus: r.cpuset_cpus.clone(),
            cpuset_mems: r.cpuset_mems.clone(),
        }),
    }
}

/// Locations of things that are no digest, or that point at no file, are dropped: they serve error messages only.
pub(crate) fn source_map(source: &pb::Source) -> SourceMap {
    let position = |p: Option<pb::Position>| p.map_or((0, 0), |p| (p.line, p.character));
    let infos: Vec<SourceInfo> = source
        .infos
        .iter()
        .map(|i| SourceInfo {
            filename: i.filename.clone(),
            data: Bytes::copy_from_slice(&i.data),
            language: i.language.clone(),
            definition: i.definition.as_ref().map(|d| d.encode_to_vec().into()),
        })
        .collect();
    let location = |l: &pb::Location| {
        let source = usize::try_from(l.source_index).ok().filter(|i| *i < infos.len())?;
        let range = |r: &pb::Range| Range { start: position(r.start), end: position(r.end) };
        Some(Location { source, ranges: l.ranges.iter().map(range).collect() })
    };
    let locations = source
        .locations
        .iter()
        .filter_map(|(digest, l)| Some((digest.parse::<Digest>().ok()?, l.locations.iter().filter_map(location).collect())))
        .collect();
    SourceMap { infos, locations }
}
