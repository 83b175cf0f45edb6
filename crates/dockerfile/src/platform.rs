//! Platforms as people write them, read with all the quirks of containerd's `platforms.Parse`: what comes out is not always normalized, and it is
//! part of vertex digests.
use oci::Platform;

use crate::text::quote;

const OSES: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];

const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

/// The text of the error is containerd's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: invalid argument")]
pub struct PlatformSyntaxError(String);

pub fn parse_platform(text: &str) -> Result<Platform, PlatformSyntaxError> {
    let error = |message: String| Err(PlatformSyntaxError(message));
    if text.contains('*') {
        return error(format!("{}: wildcards not yet supported", quote(text)));
    }
    let parts: Vec<&str> = text.splitn(4, '/').collect();
    let Some((os, version, features)) = os_part(parts[0]) else {
        let grammar = quote(r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?$");
        let (part, text) = (quote(parts[0]), quote(text));
        return error(format!("{part} is an invalid OS component of {text}: OSAndVersion specifier component must match {grammar}"));
    };
    for part in &parts[1..] {
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            let grammar = quote("^[A-Za-z0-9_.-]+$");
            let (part, text) = (quote(part), quote(text));
            return error(format!("{part} is an invalid component of {text}: platform specifier component must match {grammar}"));
        }
    }
    let arch = |architecture: &str, variant: &str| {
        let p = Platform::new("linux", architecture, variant).normalized();
        (p.architecture, p.variant)
    };
    let no_v7 = |(architecture, variant): (String, String)| {
        let variant = if architecture == "arm" && variant == "v7" { String::new() } else { variant };
        (architecture, variant)
    };
    let os = Platform::new(os, "", "").normalized().os;
    let mut platform = Platform { os, os_version: version.to_owned(), os_features: features, ..Platform::default() };
    (platform.architecture, platform.variant) = match parts.as_slice() {
        [_] if OSES.contains(&platform.os.as_str()) => {
            let host = Platform::host();
            no_v7((host.architecture, host.variant))
        }
        [word] => {
            let found = no_v7(arch(word, ""));
            if !ARCHITECTURES.contains(&found.0.as_str()) {
                return error(format!("{}: unknown operating system or architecture", quote(text)));
            }
            platform.os = "linux".into();
            found
        }
        [_, architecture] => no_v7(arch(architecture, "")),
        [_, architecture, variant] => match arch(architecture, variant) {
            (architecture, variant) if architecture == "arm64" && variant.is_empty() => (architecture, "v8".into()),
            found => found,
        },
        _ => return error(format!("{}: cannot parse platform specifier", quote(text))),
    };
    Ok(platform)
}

/// `linux`, `windows(10.0.1)`, `windows(10.0.1+win32k)`
fn os_part(text: &str) -> Option<(&str, &str, Vec<String>)> {
    let (os, options) = match text.split_once('(') {
        Some((os, options)) => (os, options.strip_suffix(')')?),
        None => (text, ""),
    };
    let word = |s: &str, more: &[u8]| s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || more.contains(&b));
    let mut options = options.split('+');
    let version = options.next().unwrap_or_default();
    let features: Vec<String> = options.map(str::to_owned).collect();
    let valid = !os.is_empty() && word(os, b"") && word(version, b".%") && features.iter().all(|f| !f.is_empty() && word(f, b".%"));
    valid.then_some((os, version, features))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quirks() {
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/arm", "linux/arm"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("arm", "linux/arm"),
            ("x86_64", "linux/amd64"),
            ("Linux/AARCH64", "linux/arm64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ] {
            assert_eq!(parse_platform(text).unwrap().to_string(), want, "{text}");
        }
        for (text, want) in [
            ("foo", "\"foo\": unknown operating system or architecture: invalid argument"),
            ("a/b/c/d", "\"a/b/c/d\": cannot parse platform specifier: invalid argument"),
            ("*", "\"*\": wildcards not yet supported: invalid argument"),
        ] {
            assert_eq!(parse_platform(text).unwrap_err().to_string(), want);
        }
    }
}
