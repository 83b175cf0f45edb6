use serde::Deserialize;

use super::LockError;
use crate::package::Package;

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
}

pub(crate) fn cargo(text: &str) -> Result<Vec<Package>, LockError> {
    let lock: Lock = toml::from_str(text)?;
    Ok(lock.package.iter().map(|locked| Package::new("cargo", locked.name.as_str(), locked.version.as_str())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::urls;

    #[test]
    fn every_crate_counts() {
        let text = "version = 4\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nsource = \"registry+x\"\n\n[[package]]\nname = \"me\"\nversion = \"0.1.0\"\n";
        assert_eq!(urls(cargo, text), ["pkg:cargo/serde@1.0.0", "pkg:cargo/me@0.1.0"]);
        assert!(cargo("[[package]\n").is_err());
    }
}
