use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::LockError;
use crate::package::Package;

#[derive(Deserialize)]
struct Npm {
    /// By directory; since version 2.
    packages: Option<BTreeMap<String, NpmPackage>>,
    /// Nested; version 1.
    #[serde(default)]
    dependencies: BTreeMap<String, NpmDependency>,
}

#[derive(Deserialize)]
struct NpmPackage {
    name: Option<String>,
    version: Option<String>,
    #[serde(default)]
    link: bool,
    #[serde(default)]
    license: Value,
}

#[derive(Deserialize)]
struct NpmDependency {
    version: String,
    #[serde(default)]
    dependencies: BTreeMap<String, NpmDependency>,
}

/// npm's lock file of any version, and the one that it keeps beside what it has installed.
pub(crate) fn npm(text: &str) -> Result<Vec<Package>, LockError> {
    let lock: Npm = serde_json::from_str(text)?;
    let mut found = Vec::new();
    match lock.packages {
        Some(packages) => {
            // The project itself has no directory.
            for (directory, entry) in packages.into_iter().filter(|(directory, entry)| !directory.is_empty() && !entry.link) {
                let Some(version) = entry.version else { continue };
                let name = entry.name.unwrap_or_else(|| directory.rsplit("node_modules/").next().unwrap_or_default().to_owned());
                let license = entry.license.as_str().unwrap_or_default().to_owned();
                found.push(Package { license, ..Package::in_namespace("npm", &name, version) });
            }
        }
        None => nested(&lock.dependencies, &mut found),
    }
    Ok(found)
}

fn nested(dependencies: &BTreeMap<String, NpmDependency>, found: &mut Vec<Package>) {
    for (name, dependency) in dependencies {
        found.push(Package::in_namespace("npm", name, dependency.version.as_str()));
        nested(&dependency.dependencies, found);
    }
}

/// Yarn's lock file, of version 1 or the later ones that are YAML: paragraphs headed by what was asked for, with the version that was chosen.
pub(crate) fn yarn(text: &str) -> Result<Vec<Package>, LockError> {
    let (mut found, mut name) = (Vec::new(), None);
    for line in text.lines() {
        if !line.starts_with([' ', '\t', '#']) {
            name = line.strip_suffix(':').and_then(asked_name);
        }
        let field = line.trim().strip_prefix("version").map(|rest| rest.trim_start_matches(':').trim().trim_matches('"'));
        // The project's own parts have no version that means anything.
        if let (Some(version), Some(known)) = (field, &name)
            && !version.ends_with("-use.local")
        {
            found.push(Package::in_namespace("npm", known, version));
            name = None;
        }
    }
    Ok(found)
}

/// The name in `"@scope/name@npm:^1.0, …"`.
fn asked_name(heading: &str) -> Option<String> {
    let first = heading.trim_matches('"').split(", ").next()?.trim_matches('"');
    let at = first.get(1..)?.find('@')? + 1;
    let (name, range) = (&first[..at], &first[at + 1..]);
    // `alias@npm:name@range` stands for another package.
    let aliased = range.strip_prefix("npm:").and_then(|real| Some(&real[..real.get(1..)?.find('@')? + 1]));
    Some(aliased.unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::urls;

    #[test]
    fn npms_versions() {
        let text = r#"{"lockfileVersion":3,"packages":{"":{"name":"me","version":"1.0.0"},"node_modules/@s/a":{"version":"1.2.3","license":"MIT"},
            "node_modules/b/node_modules/c":{"version":"0.1.0","license":{"type":"x"}},"node_modules/l":{"link":true},
            "node_modules/alias":{"name":"real","version":"2.0.0"}},"dependencies":{}}"#;
        assert_eq!(urls(npm, text), ["pkg:npm/%40s/a@1.2.3", "pkg:npm/real@2.0.0", "pkg:npm/c@0.1.0"]);
        let old = r#"{"lockfileVersion":1,"dependencies":{"a":{"version":"1.0.0","dependencies":{"b":{"version":"2.0.0"}}}}}"#;
        assert_eq!(urls(npm, old), ["pkg:npm/a@1.0.0", "pkg:npm/b@2.0.0"]);
        assert!(npm("{\"packages\":[]}").is_err());
    }

    #[test]
    fn yarns_versions() {
        let one = "# yarn lockfile v1\n\n\"@b/core@^7.0.0\", \"@b/core@^7.1.0\":\n  version \"7.2.0\"\n  resolved \"x\"\n  dependencies:\n    version \"^1\"\n\n\
                   lodash@^4:\n  version \"4.17.21\"\n";
        assert_eq!(urls(yarn, one), ["pkg:npm/%40b/core@7.2.0", "pkg:npm/lodash@4.17.21"]);
        let berry = "__metadata:\n  version: 8\n\n\"lodash@npm:^4, lodash@npm:^4.17\":\n  version: 4.17.21\n  resolution: \"lodash@npm:4.17.21\"\n\n\
                     \"me@workspace:.\":\n  version: 0.0.0-use.local\n\n\"short@npm:long@^1\":\n  version: 1.0.0\n";
        assert_eq!(urls(yarn, berry), ["pkg:npm/lodash@4.17.21", "pkg:npm/long@1.0.0"]);
    }
}
