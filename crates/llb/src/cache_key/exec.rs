use oci::{Digest, Platform};

use super::json::{Object, array};
use super::{CacheKey, ContentSelector, Dep, KeyError, joined, paths};
use crate::encode;
use crate::types::*;
use proto::pb;

/// The key of an exec op. Left out: proxies, the addresses of extra hosts, mount selectors, and most of a cache mount's options.
pub fn exec(op: &ExecOp, inputs: usize, platform: &Platform) -> Result<CacheKey, KeyError> {
    let document = Object::new()
        .always("Type", "buildkit.exec.v0")
        .raw("Exec", &exec_json(&normalized(op)))
        .always("OS", &platform.os)
        .always("Arch", &platform.architecture)
        .string("Variant", &platform.variant)
        .string("OSVersion", &platform.os_version)
        .strings("OSFeatures", &platform.os_features)
        .finish();
    Ok(CacheKey { digest: Digest::of(document), deps: deps(op, inputs)? })
}

fn normalized(op: &ExecOp) -> pb::ExecOp {
    let mut exec = encode::exec(op);
    if let Some(meta) = &mut exec.meta {
        meta.proxy_env = None;
        meta.extra_hosts.iter_mut().for_each(|h| h.ip.clear());
    }
    for mount in &mut exec.mounts {
        mount.selector.clear();
        if let Some(cache) = &mut mount.cache_opt
            && !is_default_cache(cache, &mount.dest)
        {
            *cache = pb::CacheOpt::default();
        }
    }
    // What a Dockerfile's RUN has: versions of BuildKit long ago forgot to key on mounts, and their caches are to stay valid.
    if let [mount] = exec.mounts.as_slice()
        && mount.dest == "/"
        && !mount.readonly
        && mount.mount_type() == pb::MountType::Bind
        && mount.result_id.is_empty()
    {
        exec.mounts.clear();
    }
    exec
}

/// A Dockerfile's `--mount=type=cache` without options, possibly with a `<namespace>/` in front of the id.
fn is_default_cache(cache: &pb::CacheOpt, dest: &str) -> bool {
    let after_namespace = cache.id.split_once('/').map(|(_, id)| id);
    cache.sharing() == pb::CacheSharingOpt::Shared && (cache.id == dest || after_namespace == Some(dest))
}

fn deps(op: &ExecOp, inputs: usize) -> Result<Vec<Dep>, KeyError> {
    let mut selectors: Vec<Vec<String>> = vec![Vec::new(); inputs];
    let mut by_content = vec![false; inputs];
    for mount in &op.mounts {
        if !matches!(mount.kind, MountKind::Bind | MountKind::Cache { .. }) {
            continue;
        }
        let Some(index) = mount.input else { continue };
        let input = index as usize;
        let Some(known) = selectors.get_mut(input) else {
            return Err(KeyError::MountInput { dest: mount.dest.clone(), index });
        };
        let selector = paths::rooted(&mount.selector);
        // Safe where nothing that is not selected can get into a result that is kept.
        let safe = mount.output.is_none() || mount.readonly || selector == "/";
        by_content[input] = match mount.content_cache {
            ContentCache::Off => false,
            ContentCache::On if !safe => return Err(KeyError::ContentCache { dest: mount.dest.clone() }),
            ContentCache::On => true,
            ContentCache::Default => safe && mount.dest != "/",
        };
        known.push(selector);
    }
    let dep = |(selectors, by_content): (Vec<String>, bool)| Dep {
        selector: (!selectors.is_empty()).then(|| joined(selectors.iter().map(String::as_str))),
        content: by_content.then(|| content(selectors)),
    };
    Ok(selectors.into_iter().zip(by_content).map(dep).collect())
}

fn content(selectors: Vec<String>) -> Vec<ContentSelector> {
    let paths = paths::dedupe(selectors);
    if paths.iter().any(|p| p == "/") {
        return vec![ContentSelector::default()];
    }
    paths.into_iter().map(|path| ContentSelector { path, follow_links: true, ..Default::default() }).collect()
}

fn exec_json(exec: &pb::ExecOp) -> String {
    let secret = |s: &pb::SecretEnv| Object::new().string("ID", &s.id).string("name", &s.name).bool("optional", s.optional).finish();
    let device = |d: &pb::CdiDevice| Object::new().string("name", &d.name).bool("optional", d.optional).finish();
    Object::new()
        .optional("meta", exec.meta.as_ref().map(meta_json))
        .list("mounts", &exec.mounts, mount_json)
        .int("network", exec.network)
        .int("security", exec.security)
        .list("secretenv", &exec.secretenv, secret)
        .list("cdiDevices", &exec.cdi_devices, device)
        .finish()
}

fn meta_json(meta: &pb::Meta) -> String {
    let host = |h: &pb::HostIp| Object::new().string("Host", &h.host).string("IP", &h.ip).finish();
    let ulimit = |u: &pb::Ulimit| Object::new().string("Name", &u.name).int("Soft", u.soft).int("Hard", u.hard).finish();
    let codes = (!meta.valid_exit_codes.is_empty()).then(|| array(&meta.valid_exit_codes, i32::to_string));
    Object::new()
        .strings("args", &meta.args)
        .strings("env", &meta.env)
        .string("cwd", &meta.cwd)
        .string("user", &meta.user)
        .list("extraHosts", &meta.extra_hosts, host)
        .string("hostname", &meta.hostname)
        .list("ulimit", &meta.ulimit, ulimit)
        .string("cgroupParent", &meta.cgroup_parent)
        .bool("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .optional("validExitCodes", codes)
        .finish()
}

fn mount_json(mount: &pb::Mount) -> String {
    let owned = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| {
        let object = Object::new().string("ID", id).int("uid", uid).int("gid", gid).int("mode", mode);
        object.bool("optional", optional).finish()
    };
    Object::new()
        .int("input", mount.input)
        .string("selector", &mount.selector)
        .string("dest", &mount.dest)
        .int("output", mount.output)
        .bool("readonly", mount.readonly)
        .int("mountType", mount.mount_type)
        .optional("TmpfsOpt", mount.tmpfs_opt.as_ref().map(|t| Object::new().int("size", t.size).finish()))
        .optional("cacheOpt", mount.cache_opt.as_ref().map(|c| Object::new().string("ID", &c.id).int("sharing", c.sharing).finish()))
        .optional("secretOpt", mount.secret_opt.as_ref().map(|o| owned(&o.id, o.uid, o.gid, o.mode, o.optional)))
        .optional("SSHOpt", mount.ssh_opt.as_ref().map(|o| owned(&o.id, o.uid, o.gid, o.mode, o.optional)))
        .string("resultID", &mount.result_id)
        .int("contentCache", mount.content_cache)
        .finish()
}
