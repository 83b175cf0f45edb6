use serde::Deserialize;
use serde_json::Value;

use super::LockError;
use crate::package::Package;

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    packages: Vec<Locked>,
    #[serde(rename = "packages-dev", default)]
    packages_dev: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    #[serde(default)]
    license: Value,
}

pub(crate) fn composer(text: &str) -> Result<Vec<Package>, LockError> {
    let lock: Lock = serde_json::from_str(text)?;
    let package = |locked: &Locked| {
        let licenses = locked.license.as_array().into_iter().flatten().filter_map(Value::as_str);
        let license = licenses.collect::<Vec<_>>().join(" OR ");
        Package { license, ..Package::in_namespace("composer", &locked.name.to_lowercase(), locked.version.as_str()) }
    };
    Ok(lock.packages.iter().chain(&lock.packages_dev).map(package).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::urls;

    #[test]
    fn vendors_are_namespaces() {
        let text = r#"{"packages":[{"name":"Symfony/console","version":"v6.3.0","license":["MIT","X"]}],"packages-dev":[{"name":"a/b","version":"1"}]}"#;
        assert_eq!(urls(composer, text), ["pkg:composer/symfony/console@v6.3.0", "pkg:composer/a/b@1"]);
        assert_eq!(composer(text).unwrap()[0].license, "MIT OR X");
    }
}
