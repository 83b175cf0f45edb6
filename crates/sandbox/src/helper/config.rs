//! The configuration of an OCI runtime for a container that is the same as ours.
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::user::User;
use crate::container::{DeviceNode, Resources, Rlimit};
use crate::defaults::{CAPABILITIES, DEV_SIZE, INSECURE_DEVICES, MASKED, READONLY};
use crate::link::{Labels, Spec, SpecNetwork, SpecProcess};
use crate::{seccomp, sys};

const VERSION: &str = "1.0.2";

/// A mount to be bound: where from, where to, with which options.
pub(crate) struct Bound {
    pub source: String,
    pub dest: String,
    pub options: Vec<&'static str>,
}

/// How much of the machine's ids the daemon has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    All,
    /// Those of a user namespace, which may be a single one. Cgroups may be somebody else's.
    Some {
        single: bool,
        has_cgroups: bool,
    },
}

impl Ids {
    pub fn of_this_process() -> Self {
        if crate::rootless::in_user_namespace() {
            Self::Some { single: crate::rootless::has_one_id(), has_cgroups: false }
        } else {
            Self::All
        }
    }

    /// The same ids in a user namespace below.
    pub fn nested(self) -> Self {
        match self {
            Self::All => Self::Some { single: false, has_cgroups: true },
            some => some,
        }
    }

    /// Told of no cgroup, runtimes do without where a user may have none.
    pub fn go_without_cgroups(self, wanted: &Resources) -> bool {
        matches!(self, Self::Some { has_cgroups: false, .. }) && *wanted == Resources::default()
    }
}

/// `own_cgroups` asks for a cgroup namespace; `all` are the capabilities of an insecure process.
pub(crate) fn config(spec: &Spec, user: &User, bound: &[Bound], own_cgroups: bool, all: u64, loops: u32, ids: Ids) -> Value {
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    namespaces.extend(own_cgroups.then_some("cgroup"));
    let namespaces: Vec<Value> = namespaces.into_iter().map(|kind| json!({"type": kind})).collect();
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": spec.cgroup,
        "resources": resources(&spec.resources, spec.insecure, &spec.devices),
    });
    if ids.go_without_cgroups(&spec.resources) {
        linux["cgroupsPath"] = "".into();
        linux["resources"] = json!({});
    }
    if spec.insecure {
        let mut devices: Vec<Value> = INSECURE_DEVICES.iter().map(|(name, major, minor)| device(name, "c", *major, *minor)).collect();
        devices.extend((0..loops).map(|number| device(&format!("loop{number}"), "b", 7, number)));
        linux["devices"] = devices.into();
    } else {
        let node = |node: &DeviceNode| {
            json!({"path": node.path, "type": letter(node), "major": node.major, "minor": node.minor,
                "fileMode": node.mode, "uid": node.uid, "gid": node.gid})
        };
        linux["devices"] = spec.devices.iter().map(node).collect();
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READONLY);
        if sys::filters_supported() {
            linux["seccomp"] = filter();
        }
    }
    if let Some(label) = &spec.labels.mount {
        linux["mountLabel"] = label.as_str().into();
    }
    json!({
        "ociVersion": VERSION,
        "process": process(&spec.process, user, all, &spec.labels),
        "root": {"path": spec.stage_root, "readonly": spec.root_readonly},
        "hostname": spec.hostname,
        "mounts": mounts(spec, bound, ids),
        "linux": linux,
    })
}

pub(crate) fn process(process: &SpecProcess, user: &User, all: u64, labels: &Labels) -> Value {
    let names: Vec<&str> = CAPABILITIES.iter().map(|(name, _)| *name).collect();
    let capabilities = if process.insecure {
        let all: Vec<&str> = ALL.iter().enumerate().filter(|(number, _)| all & 1 << number != 0).map(|(_, name)| *name).collect();
        json!({"bounding": all, "permitted": all, "effective": all, "inheritable": all, "ambient": all})
    } else {
        json!({"bounding": names, "permitted": names, "effective": names})
    };
    let mut rlimits: Vec<Value> = process.rlimits.iter().map(rlimit).collect();
    // Some releases of runc raise their own soft limit, and then pass it on.
    if !rlimits.iter().any(|limit| limit["type"] == OPEN_FILES) {
        let own = getrlimit(Resource::Nofile);
        let value = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        rlimits.push(json!({"type": OPEN_FILES, "soft": value(own.current), "hard": value(own.maximum)}));
    }
    let mut value = json!({
        "terminal": process.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": process.args,
        "env": process.env,
        "cwd": if process.cwd.is_empty() { "/" } else { process.cwd.as_str() },
        "capabilities": capabilities,
        "rlimits": rlimits,
        "noNewPrivileges": false,
    });
    for (key, label) in [("apparmorProfile", &labels.apparmor), ("selinuxLabel", &labels.process)] {
        if let Some(label) = label {
            value[key] = label.as_str().into();
        }
    }
    value
}

fn rlimit(limit: &Rlimit) -> Value {
    let name = limit.name.to_ascii_uppercase();
    let name = name.strip_prefix("RLIMIT_").unwrap_or(&name);
    json!({"type": format!("RLIMIT_{name}"), "soft": limit.soft as u64, "hard": limit.hard as u64})
}

fn mounts(spec: &Spec, bound: &[Bound], ids: Ids) -> Vec<Value> {
    let system: &[&str] = if spec.insecure { &["nosuid", "noexec", "nodev"] } else { &["nosuid", "noexec", "nodev", "ro"] };
    let size = format!("size={DEV_SIZE}");
    let mount = |dest: &str, kind: &str, options: &[&str]| json!({"destination": dest, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", &size]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &size]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", system),
        mount("/sys/fs/cgroup", "cgroup", system),
    ];
    let bind =
        |dest: &str, source: &str, options: &[&str]| json!({"destination": dest, "type": "bind", "source": source, "options": options});
    if spec.host_proc {
        mounts[0] = bind("/proc", "/proc", &["rbind", "nosuid", "noexec", "nodev"]);
    }
    if let Ids::Some { single, .. } = ids {
        if single {
            mounts[2]["options"].as_array_mut().expect("it is a list").retain(|option| option != "gid=5");
        }
        if spec.network == SpecNetwork::Host {
            mounts[5] = bind("/sys", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]);
        }
        mounts.truncate(6);
    }
    for Bound { source, dest, options } in bound {
        let value = bind(dest, source, options);
        match mounts.iter_mut().find(|mount| mount["destination"] == **dest) {
            Some(earlier) => *earlier = value,
            None => mounts.push(value),
        }
    }
    mounts
}

fn device(name: &str, kind: &str, major: u32, minor: u32) -> Value {
    json!({"path": Path::new("/dev").join(name), "type": kind, "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0})
}

fn resources(r: &Resources, insecure: bool, more: &[DeviceNode]) -> Value {
    let devices = if insecure {
        json!([{"allow": true, "type": "c", "access": "rwm"}, {"allow": true, "type": "b", "access": "rwm"}])
    } else {
        let rule = |node: &DeviceNode| json!({"allow": true, "type": letter(node), "major": node.major, "minor": node.minor, "access": node.access});
        [json!({"allow": false, "access": "rwm"})].into_iter().chain(more.iter().map(rule)).collect()
    };
    let mut resources = json!({"devices": devices});
    let mut set = |group: &str, key: &str, value: Option<Value>| {
        if let Some(value) = value {
            resources[group][key] = value;
        }
    };
    set("memory", "limit", r.memory.map(Into::into));
    set("memory", "swap", r.memory_swap.map(Into::into));
    set("cpu", "shares", r.cpu_shares.map(Into::into));
    set("cpu", "quota", r.cpu_quota.map(Into::into));
    set("cpu", "period", r.cpu_period.map(Into::into));
    set("cpu", "cpus", Some(r.cpuset_cpus.as_str()).filter(|v| !v.is_empty()).map(Into::into));
    set("cpu", "mems", Some(r.cpuset_mems.as_str()).filter(|v| !v.is_empty()).map(Into::into));
    set("pids", "limit", r.pids.map(Into::into));
    resources
}

fn letter(node: &DeviceNode) -> &'static str {
    if node.block { "b" } else { "c" }
}

fn filter() -> Value {
    let allow = |names: &[&str], args: Value| json!({"names": names, "action": "SCMP_ACT_ALLOW", "args": args});
    let argument = |value: u64, op: &str| json!([{"index": 0, "value": value, "op": op}]);
    let names: Vec<&str> = seccomp::allowed_names().collect();
    let mut calls = vec![
        allow(&names, json!([])),
        // All families but AF_ALG (38) and AF_VSOCK (40).
        allow(&["socket"], argument(38, "SCMP_CMP_LT")),
        allow(&["socket"], argument(39, "SCMP_CMP_EQ")),
        allow(&["socket"], argument(40, "SCMP_CMP_GT")),
        allow(&["clone"], argument(seccomp::CLONE_NAMESPACES, "SCMP_CMP_MASKED_EQ")),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
    ];
    calls.extend(seccomp::PERSONALITIES.iter().map(|value| allow(&["personality"], argument(*value, "SCMP_CMP_EQ"))));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": seccomp::architectures(),
        "syscalls": calls,
    })
}

/// By number.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const OPEN_FILES: &str = "RLIMIT_NOFILE";

#[cfg(test)]
mod tests {
    use snapshot::MountSpec;

    use super::*;

    #[test]
    fn every_field_is_one_that_the_runtime_specification_knows() {
        let limited =
            Resources { memory: Some(1 << 20), cpu_quota: Some(5), pids: Some(7), cpuset_cpus: "0".into(), ..Resources::default() };
        for (insecure, ids) in [(false, Ids::All), (true, Ids::All), (false, Ids::Some { single: true, has_cgroups: false })] {
            let process = SpecProcess {
                args: vec!["/bin/true".into()],
                env: vec!["A=b".into()],
                cwd: String::new(),
                user: String::new(),
                groups: Vec::new(),
                tty: false,
                rlimits: vec![Rlimit { name: "nofile".into(), soft: 10, hard: -1 }],
                insecure,
            };
            let spec = Spec {
                id: "x".into(),
                stage_root: "/r".into(),
                stage_tree: "/t".into(),
                root: MountSpec::Bind { path: "/".into(), readonly: true },
                root_readonly: true,
                mounts: Vec::new(),
                hostname: "h".into(),
                network: SpecNetwork::Given,
                insecure,
                hosts: "/h".into(),
                resolv: "/r".into(),
                cgroup: "/buildkit/x".into(),
                resources: limited.clone(),
                devices: vec![DeviceNode {
                    path: "/dev/x".into(),
                    host: "/dev/null".into(),
                    block: false,
                    major: 1,
                    minor: 3,
                    mode: 0o666,
                    uid: 0,
                    gid: 0,
                    access: "rw".into(),
                }],
                recursive_stubs: false,
                host_proc: false,
                emulator: None,
                labels: Labels {
                    apparmor: Some("profile".into()),
                    process: Some("u:r:container_t:s0:c1,c2".into()),
                    mount: Some("u:r:container_file_t:s0:c1,c2".into()),
                },
                process,
                oci: None,
            };
            let bound = [Bound { source: "/s".into(), dest: "/dev/shm".into(), options: vec!["rbind", "ro"] }];
            let ours = config(&spec, &User::default(), &bound, true, u64::MAX, 3, ids);
            // What it does not know would be lost on the way.
            let parsed: oci_spec::runtime::Spec = serde_json::from_value(ours.clone()).unwrap();
            let again = serde_json::to_value(parsed).unwrap();
            contained(&ours, &again, "config");
        }
    }

    fn contained(part: &Value, whole: &Value, at: &str) {
        match (part, whole) {
            (Value::Object(part), Value::Object(whole)) => {
                for (key, value) in part {
                    let other = whole.get(key).unwrap_or(&Value::Null);
                    contained(value, other, &format!("{at}.{key}"));
                }
            }
            (Value::Array(part), Value::Array(whole)) => {
                assert_eq!(part.len(), whole.len(), "{at}");
                part.iter().zip(whole).for_each(|(part, whole)| contained(part, whole, at));
            }
            // Capabilities are a set there; an empty list may be absent.
            (Value::Array(part), Value::Null) => assert!(part.is_empty(), "{at}"),
            (Value::String(part), Value::String(whole)) if part.starts_with("CAP_") => assert!(whole.starts_with("CAP_"), "{at}"),
            _ => assert_eq!(part, whole, "{at}"),
        }
    }
}
