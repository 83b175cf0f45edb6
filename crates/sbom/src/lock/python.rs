use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::LockError;
use crate::package::Package;

/// Names are compared, and stand in package URLs, in lower case with dashes.
fn package(name: &str, version: &str) -> Package {
    Package::new("pypi", name.to_lowercase().replace(['_', '.'], "-"), version)
}

#[derive(Deserialize)]
struct Locked {
    #[serde(default)]
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: Option<String>,
}

/// `poetry.lock`, `uv.lock`, `pdm.lock`.
pub(crate) fn locked(text: &str) -> Result<Vec<Package>, LockError> {
    let lock: Locked = toml::from_str(text)?;
    Ok(lock.package.iter().map(|entry| package(&entry.name, entry.version.as_deref().unwrap_or_default())).collect())
}

#[derive(Deserialize)]
struct Pipfile {
    #[serde(default)]
    default: BTreeMap<String, Value>,
    #[serde(default)]
    develop: BTreeMap<String, Value>,
}

pub(crate) fn pipfile(text: &str) -> Result<Vec<Package>, LockError> {
    let lock: Pipfile = serde_json::from_str(text)?;
    let pinned = |(name, entry): (&String, &Value)| Some(package(name, entry.get("version")?.as_str()?.strip_prefix("==")?));
    Ok(lock.default.iter().chain(&lock.develop).filter_map(pinned).collect())
}

/// Only what is pinned to one version: the rest says what may be, not what is.
pub(crate) fn requirements(text: &str) -> Result<Vec<Package>, LockError> {
    let pinned = |line: &str| {
        let line = line.split(['#', ';']).next().unwrap_or_default().trim().trim_end_matches('\\').trim();
        let (name, version) = line.split_once("==")?;
        let version = version.trim_start_matches('=').split_whitespace().next()?;
        let name = name.split('[').next().unwrap_or_default().trim();
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        (plain && !version.contains(['*', ','])).then(|| package(name, version))
    };
    Ok(text.lines().filter_map(pinned).collect())
}

/// What an installer notes of a package, in the head of a mail.
pub(crate) fn installed(text: &str) -> Result<Vec<Package>, LockError> {
    let head = || text.lines().take_while(|line| !line.is_empty());
    let field =
        |wanted: &str| head().find_map(|line| line.split_once(": ").filter(|(key, _)| *key == wanted).map(|(_, value)| value.trim()));
    let (Some(name), Some(version)) = (field("Name"), field("Version")) else { return Err(LockError::Form { what: "name and version" }) };
    let license = field("License-Expression").or(field("License")).unwrap_or_default().to_owned();
    Ok(vec![Package { license, supplier: field("Author").unwrap_or_default().to_owned(), ..package(name, version) }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::urls;

    #[test]
    fn locks_and_lists() {
        let lock = "[[package]]\nname = \"Ruamel.Yaml\"\nversion = \"0.18\"\n\n[[package]]\nname = \"me\"\n\n[metadata]\nx = 1\n";
        assert_eq!(urls(locked, lock), ["pkg:pypi/ruamel-yaml@0.18", "pkg:pypi/me"]);
        let lock = r#"{"default":{"a":{"version":"==1"},"local":{"path":"."}},"develop":{"b":{"version":"==2"}}}"#;
        assert_eq!(urls(pipfile, lock), ["pkg:pypi/a@1", "pkg:pypi/b@2"]);
        let list = "# c\nDjango[bcrypt]==4.2 ; python_version > \"3\"\nfree>=1\n-r other.txt\nurl @ https://x/a==1\nstar==1.*\nhashed==3 \\\n    --hash=sha256:00\n";
        assert_eq!(urls(requirements, list), ["pkg:pypi/django@4.2", "pkg:pypi/hashed@3"]);
    }

    #[test]
    fn installed_packages_name_themselves() {
        let text = "Metadata-Version: 2.1\nName: My_Pkg\nVersion: 1.0\nLicense: MIT\n\nName: text\n";
        assert_eq!(urls(installed, text), ["pkg:pypi/my-pkg@1.0"]);
        assert_eq!(installed(text).unwrap()[0].license, "MIT");
        assert_eq!(installed("Name: x\n").unwrap_err().to_string(), "no name and version");
    }
}
