use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A platform as BuildKit writes it. Empty strings mean "not given".
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {text:?}")]
pub struct PlatformError {
    pub text: String,
}

impl Platform {
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self { os: os.into(), architecture: architecture.into(), variant: variant.into(), ..Self::default() }
    }

    /// The platform this program was built for, which is the one that runs it.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self::new("linux", architecture, "").normalized()
    }

    /// Canonical names: no os is `linux`, `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`, …
    /// Follows the rules of containerd's platforms package.
    pub fn normalized(mut self) -> Self {
        self.os = match self.os.to_lowercase() {
            os if os.is_empty() => "linux".into(),
            os if os == "macos" => "darwin".into(),
            os => os,
        };
        let (arch, variant) = match (self.architecture.to_lowercase().as_str(), self.variant.to_lowercase().as_str()) {
            ("i386", _) => ("386".to_owned(), String::new()),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64".to_owned(), String::new()),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64".to_owned(), v.to_owned()),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64".to_owned(), String::new()),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64".to_owned(), "v9".to_owned()),
            ("aarch64" | "arm64", v) => ("arm64".to_owned(), v.to_owned()),
            ("armhf", _) => ("arm".to_owned(), "v7".to_owned()),
            ("armel", _) => ("arm".to_owned(), "v6".to_owned()),
            ("arm", "" | "7") => ("arm".to_owned(), "v7".to_owned()),
            ("arm", v @ ("5" | "6" | "8")) => ("arm".to_owned(), format!("v{v}")),
            (a, v) => (a.to_owned(), v.to_owned()),
        };
        self.architecture = arch;
        self.variant = variant;
        self
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Parses `os`, `arch`, `os/arch` or `os/arch/variant`; an `(osversion)` after the os is kept. The result is normalized.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let error = || PlatformError { text: text.to_owned() };
        let mut parts = text.split('/');
        let first = parts.next().ok_or_else(error)?;
        let rest: Vec<&str> = parts.collect();
        let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-+".contains(&b));
        let (os, os_version) = match first.split_once('(') {
            Some((os, v)) => (os, v.strip_suffix(')').ok_or_else(error)?),
            None => (first, ""),
        };
        if !word(os) || rest.iter().any(|s| !word(s)) || rest.len() > 2 {
            return Err(error());
        }
        let mut platform = match rest.as_slice() {
            [] if KNOWN_OS.contains(&os.to_lowercase().as_str()) => Self { os: os.into(), ..Self::host() },
            [] => Self::new("linux", os, ""),
            [arch] => Self::new(os, arch, ""),
            [arch, variant] => Self::new(os, arch, variant),
            _ => return Err(error()),
        };
        platform.os_version = os_version.to_owned();
        Ok(platform.normalized())
    }
}

const KNOWN_OS: [&str; 8] = ["linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd", "wasip1"];

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.os.is_empty() { "unknown" } else { &self.os })?;
        if !self.os_version.is_empty() {
            write!(f, "({})", self.os_version)?;
        }
        write!(f, "/{}", if self.architecture.is_empty() { "unknown" } else { &self.architecture })?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes() {
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64/v1", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("aarch64", "linux/arm64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), want, "{text}");
        }
        for bad in ["", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
