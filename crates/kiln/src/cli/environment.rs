//! What the command line reads from its environment, in one place.
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::display::Wishes;

#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    pub fn read() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self { variables: std::env::vars_os().filter_map(text).collect() }
    }

    #[cfg(test)]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self { variables: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect() }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Set and not empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub fn wishes(&self) -> Wishes {
        Wishes { progress: self.filled("BUILDKIT_PROGRESS").map(str::to_owned), no_color: self.get("NO_COLOR").is_some() }
    }

    /// The first directory of an XDG variable, or of its default below the home directory.
    fn xdg(&self, name: &str, default: &str) -> Option<PathBuf> {
        let given = self.filled(name).and_then(|list| list.split(':').next()).map(PathBuf::from);
        given.or_else(|| self.filled("HOME").map(|home| PathBuf::from(home).join(default)))
    }

    pub fn data_home(&self) -> Option<PathBuf> {
        self.xdg("XDG_DATA_HOME", ".local/share")
    }

    pub fn runtime_dir(&self) -> Option<PathBuf> {
        self.filled("XDG_RUNTIME_DIR").map(PathBuf::from)
    }

    /// Docker's client configuration.
    pub fn docker_config(&self) -> Option<PathBuf> {
        let dir =
            self.filled("DOCKER_CONFIG").map(PathBuf::from).or_else(|| self.filled("HOME").map(|home| PathBuf::from(home).join(".docker")));
        dir.map(|dir| dir.join("config.json"))
    }
}
