//! Typed ops -> wire bytes, byte for byte what Go's deterministic protobuf marshalling gives: fields by number, a oneof after all other fields, map keys
//! sorted, zero values left out. Except inside map entries, which always carry key and value: prost leaves those out too, hence [`string_map`].
use bytes::Bytes;
use prost::Message as _;
use prost::encoding::{self, WireType};
use proto::pb;

use crate::types::*;

/// The wire's "empty" and "no output".
pub(crate) fn index(value: Option<u32>) -> i64 {
    value.map_or(-1, i64::from)
}

/// Op bytes as the client library writes them: the constraints message is always there.
pub(crate) fn op(op: &Op, inputs: &[Edge], platform: Option<&oci::Platform>, constraints: &[String]) -> Bytes {
    let message = pb::Op {
        inputs: inputs.iter().map(input).collect(),
        platform: platform.map(self::platform),
        constraints: Some(pb::WorkerConstraints { filter: constraints.to_vec() }),
        op: Some(op_message(op)),
    };
    marshal(&message)
}

pub(crate) fn input(edge: &Edge) -> pb::Input {
    pb::Input { digest: edge.vertex.to_string(), index: i64::from(edge.output) }
}

/// The pseudo op that ends a definition.
pub(crate) fn terminal(result: &Edge) -> Bytes {
    marshal(&pb::Op { inputs: vec![input(result)], ..Default::default() })
}

/// Deterministic marshalling of a whole op.
pub(crate) fn marshal(op: &pb::Op) -> Bytes {
    let mut out = Vec::with_capacity(op.encoded_len() + 16);
    for input in &op.inputs {
        encoding::message::encode(1, input, &mut out);
    }
    if let Some(platform) = &op.platform {
        encoding::message::encode(10, platform, &mut out);
    }
    if let Some(constraints) = &op.constraints {
        encoding::message::encode(11, constraints, &mut out);
    }
    match &op.op {
        Some(pb::op::Op::Source(source)) => nested(3, source_op(source), &mut out),
        Some(pb::op::Op::Build(build)) => nested(5, build_op(build), &mut out),
        Some(other) => other.encode(&mut out),
        None => {}
    }
    out.into()
}

fn source_op(source: &pb::SourceOp) -> Vec<u8> {
    let mut out = Vec::new();
    string_field(1, &source.identifier, &mut out);
    string_map(2, &source.attrs, &mut out);
    out
}

fn build_op(build: &pb::BuildOp) -> Vec<u8> {
    let mut out = Vec::new();
    if build.builder != 0 {
        encoding::int64::encode(1, &build.builder, &mut out);
    }
    for (key, value) in &build.inputs {
        let mut entry = Vec::new();
        encoding::string::encode(1, key, &mut entry);
        encoding::message::encode(2, value, &mut entry);
        nested(2, entry, &mut out);
    }
    if let Some(definition) = &build.def {
        encoding::message::encode(3, definition, &mut out);
    }
    string_map(4, &build.attrs, &mut out);
    out
}

fn string_map(tag: u32, map: &std::collections::BTreeMap<String, String>, out: &mut Vec<u8>) {
    for (key, value) in map {
        let mut entry = Vec::new();
        encoding::string::encode(1, key, &mut entry);
        encoding::string::encode(2, value, &mut entry);
        nested(tag, entry, out);
    }
}

fn string_field(tag: u32, value: &String, out: &mut Vec<u8>) {
    if !value.is_empty() {
        encoding::string::encode(tag, value, out);
    }
}

fn nested(tag: u32, message: Vec<u8>, out: &mut Vec<u8>) {
    encoding::encode_key(tag, WireType::LengthDelimited, out);
    encoding::encode_varint(message.len() as u64, out);
    out.extend(message);
}

pub(crate) fn platform(platform: &oci::Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

pub(crate) fn op_message(op: &Op) -> pb::op::Op {
    match op {
        Op::Source(source) => pb::op::Op::Source(pb::SourceOp { identifier: source.identifier.clone(), attrs: source.attrs.clone() }),
        Op::Exec(exec) => pb::op::Op::Exec(self::exec(exec)),
        Op::File(file) => pb::op::Op::File(pb::FileOp { actions: file.actions.iter().map(file_action).collect() }),
        Op::Build(build) => pb::op::Op::Build(pb::BuildOp {
            builder: index(build.builder),
            inputs: build.inputs.iter().map(|(k, v)| (k.clone(), pb::BuildInput { input: index(*v) })).collect(),
            def: build.def.as_ref().and_then(|bytes| pb::Definition::decode(bytes.clone()).ok()),
            attrs: build.attrs.clone(),
        }),
        Op::Merge(inputs) => {
            pb::op::Op::Merge(pb::MergeOp { inputs: inputs.iter().map(|i| pb::MergeInput { input: index(*i) }).collect() })
        }
        Op::Diff { lower, upper } => pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: index(*lower) }),
            upper: Some(pb::UpperDiffInput { input: index(*upper) }),
        }),
        Op::Passthrough { id, outputs } => {
            pb::op::Op::Passthrough(pb::PassthroughOp { id: id.clone(), outputs: outputs.iter().map(|o| i64::from(*o)).collect() })
        }
    }
}

pub(crate) fn exec(exec: &ExecOp) -> pb::ExecOp {
    pb::ExecOp {
        meta: Some(meta(&exec.meta)),
        mounts: exec.mounts.iter().map(mount).collect(),
        network: match exec.network {
            NetMode::Unset => pb::NetMode::Unset,
            NetMode::Host => pb::NetMode::Host,
            NetMode::None => pb::NetMode::None,
        } as i32,
        security: match exec.security {
            SecurityMode::Sandbox => pb::SecurityMode::Sandbox,
            SecurityMode::Insecure => pb::SecurityMode::Insecure,
        } as i32,
        secretenv: exec.secret_env.iter().map(|s| pb::SecretEnv { id: s.id.clone(), name: s.name.clone(), optional: s.optional }).collect(),
        cdi_devices: exec.cdi_devices.iter().map(|d| pb::CdiDevice { name: d.name.clone(), optional: d.optional }).collect(),
    }
}

fn meta(meta: &Meta) -> pb::Meta {
    pb::Meta {
        args: meta.args.clone(),
        env: meta.env.clone(),
        cwd: meta.cwd.clone(),
        user: meta.user.clone(),
        proxy_env: meta.proxy_env.as_ref().map(|p| pb::ProxyEnv {
            http_proxy: p.http_proxy.clone(),
            https_proxy: p.https_proxy.clone(),
            ftp_proxy: p.ftp_proxy.clone(),
            no_proxy: p.no_proxy.clone(),
            all_proxy: p.all_proxy.clone(),
        }),
        extra_hosts: meta.extra_hosts.iter().map(|h| pb::HostIp { host: h.host.clone(), ip: h.ip.clone() }).collect(),
        hostname: meta.hostname.clone(),
        ulimit: meta.ulimits.iter().map(|u| pb::Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard }).collect(),
        cgroup_parent: meta.cgroup_parent.clone(),
        remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
        valid_exit_codes: meta.valid_exit_codes.clone(),
    }
}

/// Secret and ssh mounts carry output 0 on the wire, which means nothing there.
pub(crate) fn mount(mount: &Mount) -> pb::Mount {
    let mut message = pb::Mount {
        input: index(mount.input),
        selector: mount.selector.clone(),
        dest: mount.dest.clone(),
        output: index(mount.output),
        readonly: mount.readonly,
        result_id: mount.result_id.clone(),
        content_cache: match mount.content_cache {
            ContentCache::Default => pb::MountContentCache::Default,
            ContentCache::On => pb::MountContentCache::On,
            ContentCache::Off => pb::MountContentCache::Off,
        } as i32,
        ..Default::default()
    };
    let kind = match &mount.kind {
        MountKind::Bind => pb::MountType::Bind,
        MountKind::Cache { id, sharing } => {
            let sharing = match sharing {
                Sharing::Shared => pb::CacheSharingOpt::Shared,
                Sharing::Private => pb::CacheSharingOpt::Private,
                Sharing::Locked => pb::CacheSharingOpt::Locked,
            };
            message.cache_opt = Some(pb::CacheOpt { id: id.clone(), sharing: sharing as i32 });
            pb::MountType::Cache
        }
        MountKind::Tmpfs { size } => {
            message.tmpfs_opt = Some(pb::TmpfsOpt { size: *size });
            pb::MountType::Tmpfs
        }
        MountKind::Secret(opt) => {
            message.output = 0;
            let SecretOpt { id, uid, gid, mode, optional } = opt.clone();
            message.secret_opt = Some(pb::SecretOpt { id, uid, gid, mode, optional });
            pb::MountType::Secret
        }
        MountKind::Ssh(opt) => {
            message.output = 0;
            let SecretOpt { id, uid, gid, mode, optional } = opt.clone();
            message.ssh_opt = Some(pb::SshOpt { id, uid, gid, mode, optional });
            pb::MountType::Ssh
        }
    };
    message.mount_type = kind as i32;
    message
}

fn file_action(action: &FileAction) -> pb::FileAction {
    pb::FileAction {
        input: index(action.input),
        secondary_input: index(action.secondary_input),
        output: index(action.output),
        action: Some(file_action_kind(&action.kind)),
    }
}

pub(crate) fn file_action_kind(kind: &FileActionKind) -> pb::file_action::Action {
    use pb::file_action::Action;
    match kind {
        FileActionKind::Copy(copy) => Action::Copy(self::copy(copy)),
        FileActionKind::Mkfile { path, mode, data, owner, timestamp } => Action::Mkfile(pb::FileActionMkFile {
            path: path.clone(),
            mode: *mode,
            data: data.to_vec(),
            owner: owner.as_ref().map(self::owner),
            timestamp: *timestamp,
        }),
        FileActionKind::Mkdir { path, mode, make_parents, owner, timestamp } => Action::Mkdir(pb::FileActionMkDir {
            path: path.clone(),
            mode: *mode,
            make_parents: *make_parents,
            owner: owner.as_ref().map(self::owner),
            timestamp: *timestamp,
        }),
        FileActionKind::Symlink { oldpath, newpath, owner, timestamp } => Action::Symlink(pb::FileActionSymlink {
            oldpath: oldpath.clone(),
            newpath: newpath.clone(),
            owner: owner.as_ref().map(self::owner),
            timestamp: *timestamp,
        }),
        FileActionKind::Rm { path, allow_not_found, allow_wildcard } => {
            Action::Rm(pb::FileActionRm { path: path.clone(), allow_not_found: *allow_not_found, allow_wildcard: *allow_wildcard })
        }
    }
}

fn copy(copy: &Copy) -> pb::FileActionCopy {
    pb::FileActionCopy {
        src: copy.src.clone(),
        dest: copy.dest.clone(),
        owner: copy.owner.as_ref().map(owner),
        mode: copy.mode,
        follow_symlink: copy.follow_symlink,
        dir_copy_contents: copy.dir_copy_contents,
        attempt_unpack_docker_compatibility: copy.attempt_unpack,
        create_dest_path: copy.create_dest_path,
        allow_wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        timestamp: copy.timestamp,
        include_patterns: copy.include_patterns.clone(),
        exclude_patterns: copy.exclude_patterns.clone(),
        always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
        mode_str: copy.mode_str.clone(),
        required_paths: copy.required_paths.clone(),
    }
}

fn owner(owner: &Owner) -> pb::ChownOpt {
    let who = |who: &Who| pb::UserOpt {
        user: Some(match who {
            Who::Id(id) => pb::user_opt::User::ById(*id),
            Who::Name { name, input } => pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.clone(), input: index(*input) }),
        }),
    };
    pb::ChownOpt { user: owner.user.as_ref().map(who), group: owner.group.as_ref().map(who) }
}

pub(crate) fn metadata(metadata: &Metadata) -> pb::OpMetadata {
    pb::OpMetadata {
        ignore_cache: metadata.ignore_cache,
        description: metadata.description.clone(),
        export_cache: metadata.export_cache.map(|value| pb::ExportCache { value }),
        caps: metadata.caps.clone(),
        progress_group: metadata.progress_group.as_ref().map(|g| pb::ProgressGroup {
            id: g.id.clone(),
            name: g.name.clone(),
            weak: g.weak,
        }),
        linux_resources: metadata.linux_resources.as_ref().map(|r| pb::LinuxResources {
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

pub(crate) fn source_map(sources: &SourceMap) -> pb::Source {
    let position = |(line, character): (i32, i32)| Some(pb::Position { line, character });
    pb::Source {
        locations: sources
            .locations
            .iter()
            // An empty value would be left out of the message, and clients in Go follow what is not there.
            .filter(|(_, locations)| !locations.is_empty())
            .map(|(digest, locations)| {
                let locations = locations.iter().map(|l| pb::Location {
                    source_index: l.source as i32,
                    ranges: l.ranges.iter().map(|r| pb::Range { start: position(r.start), end: position(r.end) }).collect(),
                });
                (digest.to_string(), pb::Locations { locations: locations.collect() })
            })
            .collect(),
        infos: sources
            .infos
            .iter()
            .map(|info| pb::SourceInfo {
                filename: info.filename.clone(),
                data: info.data.to_vec(),
                definition: info.definition.as_ref().and_then(|bytes| pb::Definition::decode(bytes.clone()).ok()),
                language: info.language.clone(),
            })
            .collect(),
    }
}
