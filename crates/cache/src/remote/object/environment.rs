//! What the daemon's surroundings say of object stores.
use std::collections::BTreeMap;

/// Variables as the binary found them when it started; only those that [`Environment::wants`].
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(variables.into_iter().filter(|(name, _)| Self::wants(name)).collect())
    }

    /// Whether anything here reads the variable.
    pub fn wants(name: &str) -> bool {
        let known = ["HOME", "IDENTITY_ENDPOINT", "IDENTITY_HEADER"];
        ["AWS_", "AZURE_", "BUILDKIT_AZURE_STORAGE_"].iter().any(|prefix| name.starts_with(prefix)) || known.contains(&name)
    }

    /// `None` also for an empty value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }
}
