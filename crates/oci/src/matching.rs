//! Which platforms can stand in for a wanted one, in the order of preference of containerd's `platforms.Only`.
use crate::Platform;

impl Platform {
    /// The wanted platform and what else its machine runs, best first.
    pub fn alternatives(&self) -> Vec<Platform> {
        let wanted = self.clone().normalized();
        let with =
            |architecture: &str, variant: String| Platform { architecture: architecture.into(), variant, ..wanted.clone() }.normalized();
        let level = |text: &str| text.strip_prefix('v').unwrap_or(text).parse::<u32>().ok();
        let arm = |top: u32| (5..=top).rev().map(|v| with("arm", format!("v{v}")));
        match wanted.architecture.as_str() {
            "amd64" => {
                let lower = level(&wanted.variant).unwrap_or(1).min(64);
                let lower = (1..lower).rev().map(|v| with("amd64", format!("v{v}")));
                std::iter::once(wanted.clone()).chain(lower).chain([with("386", String::new())]).collect()
            }
            "arm" => match level(&wanted.variant) {
                Some(top) if top > 5 => std::iter::once(wanted.clone()).chain(arm(top.min(64) - 1)).collect(),
                _ => vec![wanted],
            },
            "arm64" => match arm64_levels(&wanted.variant) {
                Some(levels) => levels.into_iter().map(|v| with("arm64", v)).chain(arm(8)).collect(),
                None => Vec::new(),
            },
            _ => vec![wanted],
        }
    }

    /// How good `candidate` is where `self` is wanted: 0 is exact, greater is worse, `None` does not run.
    pub fn rank(&self, candidate: &Platform) -> Option<usize> {
        let candidate = candidate.clone().normalized();
        self.alternatives().iter().position(|p| p.accepts(&candidate))
    }

    /// Whether `candidate` is exactly the wanted platform, in any spelling.
    pub fn matches_strictly(&self, candidate: &Platform) -> bool {
        self.clone().normalized().accepts(&candidate.clone().normalized())
    }

    /// Both normalized.
    fn accepts(&self, candidate: &Platform) -> bool {
        let same = self.os == candidate.os && self.architecture == candidate.architecture && self.variant == candidate.variant;
        let features = candidate.os_features.iter().all(|f| self.os_features.contains(f));
        same && features && (self.os != "windows" || windows_build(&self.os_version, &candidate.os_version))
    }
}

/// Process isolation needs the same build number: the first three parts of the version.
fn windows_build(wanted: &str, candidate: &str) -> bool {
    let build = |v: &str| v.splitn(4, '.').take(3).map(str::to_owned).collect::<Vec<_>>();
    wanted.is_empty() || candidate.is_empty() || build(wanted) == build(candidate)
}

/// `v9.N` runs `v9.0..N` and `v8.0..N+5`; `v8.N` runs `v8.0..N`. `None` for a variant nobody has heard of.
fn arm64_levels(variant: &str) -> Option<Vec<String>> {
    let variant = if variant.is_empty() { "v8" } else { variant };
    let (major, minor) = variant.strip_prefix('v')?.split_once('.').unwrap_or((variant.strip_prefix('v')?, "0"));
    let minor: u32 = minor.parse().ok()?;
    let down = |major: u32, top: u32| (0..=top).rev().map(move |n| if n == 0 { format!("v{major}") } else { format!("v{major}.{n}") });
    match (major, minor) {
        ("8", 0..=9) => Some(down(8, minor).collect()),
        ("9", 0..=7) => Some(down(9, minor).chain(down(8, (minor + 5).min(9))).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(wanted: &str, candidate: &str) -> Option<usize> {
        wanted.parse::<Platform>().unwrap().rank(&candidate.parse().unwrap())
    }

    #[test]
    fn prefers_the_nearest_and_never_goes_up() {
        assert_eq!(rank("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(rank("linux/amd64", "linux/386"), Some(1));
        assert_eq!(rank("linux/amd64", "linux/amd64/v2"), None);
        assert_eq!(rank("linux/amd64/v3", "linux/amd64/v2"), Some(1));
        assert_eq!(rank("linux/amd64/v3", "linux/amd64"), Some(2));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v5"), Some(2));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(rank("linux/arm64/v9", "linux/arm64"), Some(6));
        assert!(rank("linux/arm64", "linux/arm/v7") < rank("linux/arm64", "linux/arm/v6"));
        assert_eq!(rank("linux/arm64", "linux/amd64"), None);
        assert_eq!(rank("linux/s390x", "linux/s390x"), Some(0));
        assert_eq!(rank("windows(10.0.17763.1)/amd64", "windows(10.0.17763.2)/amd64"), Some(0));
        assert_eq!(rank("windows(10.0.17763.1)/amd64", "windows(10.0.20348.2)/amd64"), None);
    }
}
