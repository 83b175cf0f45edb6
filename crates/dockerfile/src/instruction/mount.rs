use super::csv::fields;
use super::units::ram_in_bytes;
use crate::text::{nearest, parse_bool, quote};
use crate::{Error, Result};

/// `--mount` as written. Its values may hold variables, so they are read when the instruction runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountText {
    pub text: String,
    /// What it mounts from; must not hold variables, because it decides which stages are needed.
    pub from: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    pub from: String,
    pub source: String,
    pub target: String,
    pub readonly: bool,
    /// Bytes, of a tmpfs; 0 means no limit.
    pub size: i64,
    pub id: String,
    pub sharing: Option<Sharing>,
    pub required: bool,
    /// Where a secret goes as a variable.
    pub env: Option<String>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountKind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    Private,
    Locked,
}

const KINDS: [(&str, MountKind); 5] = [
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];

const SHARINGS: [(&str, Sharing); 3] = [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountKind {
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).expect("every kind is listed").0
    }
}

impl MountText {
    /// Looks only at what must be known before anything runs.
    pub fn parse(text: &str) -> Result<Self> {
        let mut from = String::new();
        for field in fields(text).map_err(|e| e.context("failed to parse csv mounts"))? {
            let Some((key, value)) = field.split_once('=') else { continue };
            if key.to_lowercase() != "from" {
                continue;
            }
            if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                return Err(Error::new("'from' doesn't support variable expansion, define alias stage instead"));
            }
            from = value.to_owned();
        }
        Ok(Self { text: text.to_owned(), from })
    }

    /// Reads the whole mount; `expand` expands the variables of a value.
    pub fn expand(&self, mut expand: impl FnMut(&str) -> Result<String>) -> Result<Mount> {
        let mut mount = Mount::default();
        let mut readonly = None;
        for field in fields(&self.text).map_err(|e| e.context("failed to parse csv mounts"))? {
            let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
            let key = key.to_lowercase();
            match value {
                Some(value) => mount.set(&key, expand(value)?, &field, &mut readonly)?,
                None => mount.set_bare(&key, &field, &mut readonly)?,
            }
        }
        mount.readonly = readonly.unwrap_or(!matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs));
        mount.check()?;
        Ok(mount)
    }
}

impl Mount {
    fn set_bare(&mut self, key: &str, field: &str, readonly: &mut Option<bool>) -> Result<()> {
        match key {
            "readonly" | "ro" => *readonly = Some(true),
            "readwrite" | "rw" => *readonly = Some(false),
            "required" => {
                self.only_for(key, &[MountKind::Secret, MountKind::Ssh])?;
                self.required = true;
            }
            _ => return Err(Error::new(format!("invalid field '{field}' must be a key=value pair"))),
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: String, field: &str, readonly: &mut Option<bool>) -> Result<()> {
        let invalid = || Error::new(format!("invalid value for {key}: {value}"));
        let number = |radix| {
            let plain = !value.starts_with('+');
            u32::from_str_radix(&value, radix).ok().filter(|_| plain).ok_or_else(|| Error::new(format!("invalid value {value} for {key}")))
        };
        match key {
            "type" => {
                let found = KINDS.iter().find(|(name, _)| *name == value.to_lowercase());
                let names = KINDS.map(|(name, _)| name);
                self.kind = found.ok_or_else(|| unsupported("mount type", &value, &names))?.1;
            }
            "from" => self.from = value,
            "source" | "src" => self.source = value,
            "target" | "dst" | "destination" => self.target = value,
            "readonly" | "ro" => *readonly = Some(parse_bool(&value).ok_or_else(invalid)?),
            "readwrite" | "rw" => *readonly = Some(!parse_bool(&value).ok_or_else(invalid)?),
            "required" => {
                self.only_for(key, &[MountKind::Secret, MountKind::Ssh])?;
                self.required = parse_bool(&value).ok_or_else(invalid)?;
            }
            "size" => {
                self.only_for(key, &[MountKind::Tmpfs])?;
                self.size = ram_in_bytes(&value).ok_or_else(invalid)?;
            }
            "id" => self.id = value,
            "sharing" => {
                let found = SHARINGS.iter().find(|(name, _)| *name == value.to_lowercase());
                let names = SHARINGS.map(|(name, _)| name);
                self.sharing = Some(found.ok_or_else(|| unsupported("sharing value", &value, &names))?.1);
            }
            "mode" => self.mode = Some(number(8)?),
            "uid" => self.uid = Some(number(10)?),
            "gid" => self.gid = Some(number(10)?),
            "env" => self.env = Some(value),
            _ => return Err(Error::new(format!("unexpected key '{key}' in '{field}'")).suggest(nearest(key, KEYS, true))),
        }
        Ok(())
    }

    fn only_for(&self, key: &str, kinds: &[MountKind]) -> Result<()> {
        if kinds.contains(&self.kind) {
            return Ok(());
        }
        Err(Error::new(format!("unexpected key '{key}' for mount type '{}'", self.kind.name())))
    }

    fn check(&self) -> Result<()> {
        if matches!(self.kind, MountKind::Bind | MountKind::Tmpfs) {
            for (key, value) in [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)] {
                if value.is_some() {
                    return Err(Error::new(format!("{key} not allowed for {} type mounts", quote(self.kind.name()))));
                }
            }
        }
        if self.kind == MountKind::Secret {
            let wrong = if !self.from.is_empty() {
                "secret mount should not have a from"
            } else if self.sharing.is_some() {
                "secret mount should not define sharing"
            } else if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                "invalid secret mount. one of source, target required"
            } else if !self.source.is_empty() && !self.id.is_empty() {
                "both source and id can't be set"
            } else {
                return Ok(());
            };
            return Err(Error::new(wrong));
        }
        if self.sharing.is_some() && self.kind != MountKind::Cache {
            return Err(Error::new(format!("invalid cache sharing set for {} mount", self.kind.name())));
        }
        Ok(())
    }
}

fn unsupported(what: &str, value: &str, options: &[&str]) -> Error {
    Error::new(format!("unsupported {what} {}", quote(value))).suggest(nearest(value, options, true))
}

/// `--device`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub required: bool,
}

impl Device {
    pub fn parse(text: &str) -> Result<Self> {
        let mut device = Self::default();
        for field in fields(text).map_err(|e| e.context("failed to parse csv devices"))? {
            let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
            let key = key.to_lowercase();
            match (key.as_str(), value) {
                ("required", None) => device.required = true,
                ("required", Some(value)) => {
                    device.required = parse_bool(value).ok_or_else(|| Error::new(format!("invalid value for {key}: {value}")))?;
                }
                ("name", Some(value)) => {
                    if !device.name.is_empty() {
                        return Err(Error::new(format!("device name already set to {}", device.name)));
                    }
                    device.name = value.to_owned();
                }
                _ if device.name.is_empty() => device.name = field,
                (_, None) => return Err(Error::new(format!("invalid field '{field}' must be a key=value pair"))),
                (_, Some(_)) => {
                    let guess = nearest(&key, ["name", "required"], true);
                    return Err(Error::new(format!("unexpected key '{key}' in '{field}'")).suggest(guess));
                }
            }
        }
        Ok(device)
    }
}
