//! CDI devices: what vendors' files say of a device, and what a step that asks for it gets.
//!
//! The files follow the Container Device Interface, version 1.0 and before. They are read whenever somebody asks, so that devices may come
//! and go while the daemon runs.
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use fault::{Context as _, Fault, Kind, Result};
use llb::CdiDevice;
use ops::exec::Extras;
use sandbox::{DeviceNode, Mount, MountSource};
use serde::Deserialize;
use serde_json::Value;

/// Devices of one class go by its name too.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// Builds need no entitlement for it.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// Where devices are described, and which of them any build may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// Of two files that describe one device the one in the later directory counts. Empty: there are no devices.
    pub dirs: Vec<PathBuf>,
    /// Names or kinds.
    pub auto_allowed: Vec<String>,
}

/// What is told of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `vendor/class=name`.
    pub name: String,
    pub auto_allow: bool,
    pub annotations: BTreeMap<String, String>,
}

struct Known {
    annotations: BTreeMap<String, String>,
    /// Of its file, then its own.
    edits: [Edits; 2],
    file: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, Value>,
    devices: Vec<Described>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, Value>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Bound>,
    hooks: Vec<Value>,
    net_devices: Vec<Value>,
    intel_rdt: Option<Value>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<u32>,
    minor: Option<u32>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bound {
    host_path: PathBuf,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
}

impl Devices {
    /// All that are described now, by name.
    pub fn list(&self) -> Vec<Device> {
        let known = self.read();
        let device = |(name, known): (String, Known)| Device {
            auto_allow: self.is_auto_allowed(&name, &known.annotations),
            annotations: known.annotations,
            name,
        };
        known.into_iter().map(device).collect()
    }

    /// The devices that are meant: one by its name, the first of a kind by the kind, all of it by `kind=*`, all of a class by its name.
    pub fn find(&self, asked: &[CdiDevice]) -> Result<Vec<Device>> {
        let all = self.list();
        let mut found: Vec<Device> = Vec::new();
        for wanted in asked {
            let meant = meant(&all, &wanted.name);
            if meant.is_empty() && !wanted.optional {
                return Err(Fault::new(Kind::NotFound, format!("required device {:?} is not registered", wanted.name)));
            }
            if meant.is_empty() {
                tracing::warn!("Optional device {:?} is not registered", wanted.name);
            }
            for device in meant {
                if !found.contains(device) {
                    found.push(device.clone());
                }
            }
        }
        Ok(found)
    }

    /// What a step gets that asks for these.
    pub fn extras(&self, asked: &[CdiDevice]) -> Result<Extras> {
        let mut extras = Extras::default();
        if asked.is_empty() {
            return Ok(extras);
        }
        let known = self.read();
        let mut done: Vec<&Path> = Vec::new();
        for device in self.find(asked)? {
            let Some(Known { edits: [of_file, own], file, .. }) = known.get(&device.name) else { continue };
            let first = !done.contains(&file.as_path());
            done.push(file);
            for edits in first.then_some(of_file).into_iter().chain([own]) {
                edits.add_to(&mut extras).with_context(|| format!("device {}", device.name))?;
            }
        }
        Ok(extras)
    }

    fn is_auto_allowed(&self, name: &str, annotations: &BTreeMap<String, String>) -> bool {
        let kind = name.split('=').next().unwrap_or_default();
        self.auto_allowed.iter().any(|allowed| allowed == name || allowed == kind)
            || annotations.get(AUTO_ALLOW).is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }

    /// A file that cannot be understood is left out, with a warning.
    fn read(&self) -> BTreeMap<String, Known> {
        let mut known = BTreeMap::new();
        for dir in &self.dirs {
            let mut files: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            files.sort();
            for path in files {
                if !path.extension().is_some_and(|extension| ["json", "yaml", "yml"].iter().any(|e| extension == *e)) {
                    continue;
                }
                // JSON is YAML.
                let file = fs::read_to_string(&path).map_err(|e| e.to_string());
                match file.and_then(|text| serde_norway::from_str::<File>(&text).map_err(|e| e.to_string())) {
                    Ok(file) => add(&mut known, file, &path),
                    Err(error) => tracing::warn!(error, "{} does not describe CDI devices", path.display()),
                }
            }
        }
        known
    }
}

fn add(known: &mut BTreeMap<String, Known>, file: File, path: &Path) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for device in file.devices {
        let annotations = file.annotations.iter().chain(&device.annotations).map(|(key, value)| (key.clone(), text(value))).collect();
        let edits = [file.container_edits.clone(), device.container_edits];
        known.insert(format!("{}={}", file.kind, device.name), Known { annotations, edits, file: path.to_owned() });
    }
}

fn meant<'a>(all: &'a [Device], wanted: &str) -> Vec<&'a Device> {
    let (kind, name) = wanted.split_once('=').unwrap_or((wanted, ""));
    let of_kind = || all.iter().filter(|device| device.name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('=')));
    let found: Vec<&Device> = match name {
        _ if !kind.contains('/') => Vec::new(),
        "" => of_kind().take(1).collect(),
        "*" => of_kind().collect(),
        _ => all.iter().filter(|device| device.name == wanted).collect(),
    };
    if !found.is_empty() {
        return found;
    }
    all.iter().filter(|device| device.annotations.get(CLASS).is_some_and(|class| class == wanted)).collect()
}

impl Edits {
    fn add_to(&self, extras: &mut Extras) -> Result<()> {
        if !self.hooks.is_empty() || !self.net_devices.is_empty() || self.intel_rdt.is_some() {
            return Err(Fault::new(
                Kind::Unimplemented,
                "its description asks for hooks, network devices or Intel RDT, which steps cannot be given",
            ));
        }
        extras.env.extend(self.env.iter().cloned());
        extras.groups.extend(self.additional_gids.iter().copied().filter(|gid| *gid != 0));
        for mount in &self.mounts {
            let source = MountSource::Bind { path: mount.host_path.clone() };
            let readonly = mount.options.iter().any(|option| option == "ro");
            extras.mounts.push(Mount { dest: mount.container_path.clone(), source, readonly });
        }
        for node in &self.device_nodes {
            extras.devices.push(node.complete()?);
        }
        Ok(())
    }
}

impl Node {
    /// What the description leaves out is as on the host.
    fn complete(&self) -> Result<DeviceNode> {
        let host = self.host_path.clone().unwrap_or_else(|| self.path.clone().into());
        let meta = || fs::metadata(&host).with_context(|| format!("failed to look at {}", host.display()));
        let (block, major, minor) = match (self.kind.as_deref(), self.major, self.minor) {
            (Some(kind @ ("b" | "c" | "u")), Some(major), Some(minor)) => (kind == "b", major, minor),
            _ => {
                let meta = meta()?;
                let kind = meta.file_type();
                if !kind.is_block_device() && !kind.is_char_device() {
                    return Err(Fault::invalid(format!("{} is no device", host.display())));
                }
                (kind.is_block_device(), rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()))
            }
        };
        let (mode, uid, gid) = meta().map_or((0o666, 0, 0), |meta| (meta.mode() & 0o7777, meta.uid(), meta.gid()));
        Ok(DeviceNode {
            path: self.path.clone(),
            host,
            block,
            major,
            minor,
            mode: self.file_mode.map_or(mode, |mode| mode & 0o7777),
            uid: self.uid.unwrap_or(uid),
            gid: self.gid.unwrap_or(gid),
            access: self.permissions.clone().unwrap_or_else(|| "rwm".to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
cdiVersion: "0.6.0"
kind: "vendor1.com/device"
annotations:
  org.mobyproject.buildkit.device.autoallow: true
containerEdits:
  env: [COMMON=1]
devices:
- name: foo
  annotations: { org.mobyproject.buildkit.device.class: class1 }
  containerEdits:
    env: [FOO=injected]
    mounts: [{ hostPath: /usr/lib/x.so, containerPath: /lib/x.so, options: [ro, nosuid] }]
- name: bar
  annotations: { org.mobyproject.buildkit.device.class: class1 }
  containerEdits:
    deviceNodes: [{ path: /dev/bar, hostPath: /dev/null, permissions: rw }]
    additionalGids: [44, 0]
"#;
    const HOOKED: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor2.com/device", "devices": [{"name": "h", "containerEdits": {"hooks": [{"hookName": "x"}]}}]}"#;

    fn devices() -> (tempfile::TempDir, Devices) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), FILE).unwrap();
        fs::write(dir.path().join("b.json"), HOOKED).unwrap();
        fs::write(dir.path().join("broken.yml"), "kind: [").unwrap();
        fs::write(dir.path().join("notes.txt"), "devices").unwrap();
        let devices = Devices { dirs: vec!["/nonesuch".into(), dir.path().to_owned()], auto_allowed: vec!["vendor2.com/device".into()] };
        (dir, devices)
    }

    fn asked(name: &str, optional: bool) -> [CdiDevice; 1] {
        [CdiDevice { name: name.into(), optional }]
    }

    #[test]
    fn devices_go_by_name_kind_and_class() {
        let (_dir, devices) = devices();
        let found = |name: &str| devices.find(&asked(name, true)).unwrap().into_iter().map(|d| d.name).collect::<Vec<_>>();
        assert_eq!(found("vendor1.com/device=foo"), ["vendor1.com/device=foo"]);
        assert_eq!(found("vendor1.com/device"), ["vendor1.com/device=bar"]);
        let both = ["vendor1.com/device=bar", "vendor1.com/device=foo"];
        assert_eq!(found("vendor1.com/device=*"), both);
        assert_eq!(found("class1"), both);
        assert_eq!(found("vendor1.com/dev"), [] as [&str; 0]);
        let error = devices.find(&asked("vendor3.com/device=x", false)).unwrap_err();
        assert_eq!(error.to_string(), r#"required device "vendor3.com/device=x" is not registered"#);
        assert!(devices.list().iter().all(|device| device.auto_allow));
    }

    #[test]
    fn a_step_gets_what_the_files_say() {
        let (_dir, devices) = devices();
        let extras = devices.extras(&asked("class1", false)).unwrap();
        assert_eq!(extras.env, ["COMMON=1", "FOO=injected"]);
        assert_eq!(extras.groups, [44]);
        assert!(extras.mounts.len() == 1 && extras.mounts[0].readonly && extras.mounts[0].dest == "/lib/x.so");
        let node = &extras.devices[0];
        assert_eq!((node.path.as_str(), node.block, node.major, node.minor, node.access.as_str()), ("/dev/bar", false, 1, 3, "rw"));
        let error = devices.extras(&asked("vendor2.com/device=h", false)).unwrap_err();
        assert!(error.to_string().contains("hooks"), "{error}");
    }
}
