//! What of the build cache is to be kept: BuildKit's keys and flags, its defaults, and a ceiling of our own.
use std::path::Path;

use layers::Rule;
use serde::Deserialize;

use super::file::Seconds;

/// One of `[[worker.oci.gcpolicy]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PolicyTable {
    all: bool,
    filters: Vec<String>,
    #[serde(rename = "keepDuration")]
    keep_duration: Option<Seconds>,
    #[serde(rename = "keepBytes")]
    keep_bytes: Space,
    #[serde(rename = "reservedSpace")]
    reserved_space: Space,
    #[serde(rename = "maxUsedSpace")]
    max_used_space: Space,
    #[serde(rename = "minFreeSpace")]
    min_free_space: Space,
}

/// A size as the file says it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    #[default]
    Unset,
    Bytes(u64),
    /// Of the disk.
    Percent(u64),
}

const GB: u64 = 1_000_000_000;
/// Where a percentage is given and the size of the disk is not known.
const UNKNOWN_DISK: u64 = 2 * GB;

impl Space {
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches('"').trim();
        if text.is_empty() {
            return Some(Self::Unset);
        }
        if let Some(percent) = text.strip_suffix('%') {
            return Some(Self::Percent(percent.parse().ok()?));
        }
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (text[..end].parse::<f64>().ok()?, text[end..].trim_start().to_ascii_lowercase());
        let unit = unit.strip_suffix('b').unwrap_or(&unit);
        let power = match unit.strip_suffix('i').unwrap_or(unit) {
            "" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            "p" => 5,
            _ => return None,
        };
        Some(Self::Bytes((number * 1024_f64.powi(power)) as u64))
    }

    /// `disk` is its size in bytes, if known. A percentage is rounded up to a whole decimal gigabyte, as BuildKit does.
    pub fn bytes(self, disk: Option<u64>) -> u64 {
        match (self, disk) {
            (Self::Unset, _) | (Self::Percent(0), _) => 0,
            (Self::Bytes(bytes), _) => bytes,
            (Self::Percent(_), None) => UNKNOWN_DISK,
            (Self::Percent(percent), Some(disk)) => (disk / 100 * percent / (1 << 30) + 1) * GB,
        }
    }

    fn is_unset(self) -> bool {
        matches!(self, Self::Unset | Self::Bytes(0) | Self::Percent(0))
    }

    fn or(self, other: Self) -> Self {
        if self.is_unset() { other } else { self }
    }
}

impl<'de> Deserialize<'de> for Space {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(bytes) => Ok(Self::Bytes(bytes)),
            Either::Text(text) => Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("invalid disk space {text}"))),
        }
    }
}

/// The three limits that the default rules share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub reserved: Space,
    pub free: Space,
    pub most: Space,
}

impl Limits {
    /// `Reserved[,Free[,Maximum]]` in megabytes, or percentages of the disk.
    pub fn parse(text: &str) -> Result<Self, String> {
        let one = |text: Option<&str>| match text.map(str::trim) {
            None | Some("") => Ok(Space::Unset),
            Some(text) if text.ends_with('%') => Space::parse(text).ok_or_else(|| format!("invalid disk space {text}")),
            Some(text) => {
                text.parse::<u64>().map(|mb| Space::Bytes(mb * 1_000_000)).map_err(|_| format!("invalid amount of megabytes {text:?}"))
            }
        };
        let mut parts = text.splitn(3, ',');
        Ok(Self { reserved: one(parts.next())?, free: one(parts.next())?, most: one(parts.next())? })
    }

    fn is_unset(&self) -> bool {
        self.reserved.is_unset() && self.free.is_unset() && self.most.is_unset()
    }

    /// Where nothing is configured.
    fn of_disk(disk: Option<u64>) -> Self {
        let at_most = |percent, limit| match Space::Percent(percent).bytes(disk) {
            bytes if bytes > limit => Space::Bytes(limit),
            _ => Space::Percent(percent),
        };
        Self { reserved: at_most(10, 10 * GB), free: Space::Percent(20), most: at_most(80, 100 * GB) }
    }
}

/// The rules to apply, in their order: the file's, or the default ones with these limits. `disk` is its size in bytes, if known.
pub fn rules(policies: &[PolicyTable], limits: Limits, keep_storage: Space, disk: Option<u64>) -> Vec<Rule> {
    if policies.is_empty() { defaults(limits, keep_storage, disk) } else { policies.iter().map(|policy| policy.rule(disk)).collect() }
}

impl PolicyTable {
    fn rule(&self, disk: Option<u64>) -> Rule {
        Rule {
            filters: self.filters.clone(),
            all: self.all,
            keep_duration: self.keep_duration.map_or_else(Default::default, |s| s.0),
            reserved_space: self.reserved_space.or(self.keep_bytes).bytes(disk),
            max_used_space: self.max_used_space.bytes(disk),
            min_free_space: self.min_free_space.bytes(disk),
        }
    }
}

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

fn defaults(limits: Limits, keep_storage: Space, disk: Option<u64>) -> Vec<Rule> {
    let limits = if limits.is_unset() { Limits { reserved: keep_storage, ..Limits::default() } } else { limits };
    let limits = if limits.is_unset() { Limits::of_disk(disk) } else { limits };
    let capped = Rule {
        reserved_space: limits.reserved.bytes(disk),
        max_used_space: limits.most.bytes(disk),
        min_free_space: limits.free.bytes(disk),
        ..Rule::default()
    };
    let easily_made = ["source.local", "exec.cachemount", "source.git.checkout"];
    vec![
        Rule {
            filters: easily_made.iter().map(|kind| format!("type=={kind}")).collect(),
            keep_duration: 48 * HOUR,
            max_used_space: 512_000_000,
            ..Rule::default()
        },
        Rule { keep_duration: 60 * 24 * HOUR, ..capped.clone() },
        capped.clone(),
        Rule { all: true, ..capped },
    ]
}

/// Of the disk that `root`, or what there is of the way to it, is on.
pub fn disk_size(root: &Path) -> Option<u64> {
    let there = root.ancestors().find(|dir| dir.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(stat.f_blocks.saturating_mul(stat.f_frsize)).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_buildkit_reads_them() {
        for (text, want) in [
            ("512MB", Some(Space::Bytes(512 << 20))),
            ("1.5g", Some(Space::Bytes(3 << 29))),
            ("10 KiB", Some(Space::Bytes(10 << 10))),
            ("4096", Some(Space::Bytes(4096))),
            ("20%", Some(Space::Percent(20))),
            ("", Some(Space::Unset)),
            ("many", None),
            ("1x", None),
        ] {
            assert_eq!(Space::parse(text), want, "{text}");
        }
        let disk = Some(100 << 30);
        assert_eq!(Space::Percent(10).bytes(disk), 11 * GB, "as BuildKit has it: the next whole one");
        assert_eq!(Space::Percent(10).bytes(None), 2 * GB);
    }

    #[test]
    fn limits_that_nobody_set_come_from_the_disk() {
        let rules = defaults(Limits::default(), Space::Unset, Some(50 << 30));
        assert_eq!(rules.len(), 4);
        let Rule { reserved_space, max_used_space, min_free_space, .. } = rules[2];
        assert_eq!((reserved_space, max_used_space, min_free_space), (6 * GB, 41 * GB, 11 * GB));
        let huge = defaults(Limits::default(), Space::Unset, Some(10 << 40));
        assert_eq!((huge[3].reserved_space, huge[3].max_used_space), (10 * GB, 100 * GB));
        let old = defaults(Limits::default(), Space::Bytes(7), Some(50 << 30));
        assert_eq!((old[1].reserved_space, old[1].max_used_space, old[1].min_free_space), (7, 0, 0));
        let flag = Limits::parse("9000,1000").unwrap();
        assert_eq!(defaults(flag, Space::Unset, None)[2].min_free_space, GB);
        assert!(Limits::parse("a").is_err());
    }

    #[test]
    fn policies_of_the_file() {
        #[derive(Deserialize)]
        struct Table {
            gcpolicy: Vec<PolicyTable>,
        }
        let text = "[[gcpolicy]]\nkeepBytes = 100\nkeepDuration = '1h'\nfilters = ['type==regular']\n[[gcpolicy]]\nall = true\nmaxUsedSpace = '1kb'\n";
        let table: Table = toml::from_str(text).unwrap();
        let rules = rules(&table.gcpolicy, Limits::default(), Space::Unset, None);
        assert_eq!((rules[0].reserved_space, rules[0].keep_duration, rules[0].filters.len()), (100, HOUR, 1));
        assert_eq!((rules[1].all, rules[1].max_used_space), (true, 1024));
    }
}
