use std::path::PathBuf;

use bytes::Bytes;

use super::Settings;
use crate::link::{Labels, Oci, Source, Spec, SpecMount, SpecNetwork, SpecProcess};
use crate::{Container, MountSource, Process, SandboxError, Security};

/// Refuses what no runtime can run.
pub(super) fn check(container: &Container, process: &Process) -> Result<(), SandboxError> {
    let id = container.id.as_str();
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > 128 || !id.bytes().all(letters) || !id.as_bytes()[0].is_ascii_alphanumeric() {
        return Err(SandboxError::Invalid(format!("id {id:?}")));
    }
    // Its directories are made by root, and not to be made elsewhere.
    if container.cgroup_parent.split('/').any(|name| name == "..") {
        return Err(SandboxError::Invalid(format!("cgroup parent {:?}: it leads upwards", container.cgroup_parent)));
    }
    if process.args.is_empty() {
        return Err(SandboxError::Invalid("no program to run".to_owned()));
    }
    Ok(())
}

pub(super) fn process_spec(process: &Process, insecure: bool) -> SpecProcess {
    SpecProcess {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.clone(),
        user: process.user.clone(),
        groups: process.groups.clone(),
        tty: process.tty,
        rlimits: process.rlimits.clone(),
        insecure,
    }
}

/// What the daemon has made ready for a container.
pub(super) struct Prepared {
    pub hosts: PathBuf,
    pub resolv: PathBuf,
    pub network: SpecNetwork,
    pub labels: Labels,
    pub oci: Option<Oci>,
}

/// The container as the helper gets it, and the secrets that follow it.
pub(super) fn describe(settings: &Settings, container: Container, process: &Process, prepared: Prepared) -> (Spec, Vec<Bytes>) {
    let Prepared { hosts, resolv, network, labels, oci } = prepared;
    let hostname = container.hostname().to_owned();
    let parent = if container.cgroup_parent.is_empty() { &settings.cgroup_parent } else { &container.cgroup_parent };
    let cgroup = cgroup_path(parent, &container.id);
    let insecure = container.security == Security::Insecure;
    let (mut secrets, mut offset) = (Vec::new(), 0);
    let mounts = container.mounts.into_iter().map(|mount| {
        let source = match mount.source {
            MountSource::Spec { spec, selector } => Source::Tree { spec, selector },
            MountSource::Bind { path } => Source::Bind { path },
            MountSource::Tmpfs { size } => Source::Tmpfs { size },
            MountSource::Socket { path, uid, gid, mode } => Source::Socket { path, uid, gid, mode },
            MountSource::Secret { data, uid, gid, mode } => {
                let source = Source::Secret { offset, len: data.len(), uid, gid, mode };
                offset += data.len();
                secrets.push(data);
                source
            }
        };
        SpecMount { dest: mount.dest, source, readonly: mount.readonly }
    });
    let mounts = mounts.collect();
    let spec = Spec {
        id: container.id,
        stage_root: settings.state.join("root"),
        stage_tree: settings.state.join("tree"),
        root: container.root,
        root_readonly: container.root_readonly,
        mounts,
        hostname,
        network,
        insecure,
        hosts,
        resolv,
        cgroup,
        resources: container.resources,
        devices: container.devices,
        recursive_stubs: container.recursive_stubs,
        host_proc: settings.host_proc,
        emulator: container.emulator,
        labels,
        process: process_spec(process, insecure),
        oci,
    };
    (spec, secrets)
}

/// A parent that ends in a colon is systemd's `slice:prefix:`.
fn cgroup_path(parent: &str, id: &str) -> String {
    if parent.is_empty() {
        format!("/buildkit/{id}")
    } else if parent.contains(".slice") && parent.ends_with(':') {
        format!("{parent}{id}")
    } else {
        format!("/{}/buildkit/{id}", parent.trim_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::cgroup_path;

    #[test]
    fn a_cgroup_lies_below_its_parent() {
        assert_eq!(cgroup_path("", "x"), "/buildkit/x");
        assert_eq!(cgroup_path("/ci/", "x"), "/ci/buildkit/x");
        assert_eq!(cgroup_path("user.slice:kiln:", "x"), "user.slice:kiln:x");
        assert_eq!(cgroup_path("user.slice", "x"), "/user.slice/buildkit/x");
    }
}
