use std::sync::Arc;

use crate::shell::Variables;

/// Variables in the order in which they were last set. Clones share until one changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Env(Arc<Vec<(String, String)>>);

impl Env {
    pub fn set(&mut self, key: &str, value: &str) {
        let list = Arc::make_mut(&mut self.0);
        list.retain(|(known, _)| known != key);
        list.push((key.to_owned(), value.to_owned()));
    }

    pub fn remove(&mut self, key: &str) {
        if self.get(key).is_some() {
            Arc::make_mut(&mut self.0).retain(|(known, _)| known != key);
        }
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `KEY=value`
    pub fn to_list(&self) -> Vec<String> {
        self.0.iter().map(|(key, value)| [key.as_str(), "=", value].concat()).collect()
    }
}

impl Variables for Env {
    fn get(&self, name: &str) -> Option<&str> {
        Env::get(self, name)
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(key, _)| key.as_str()).collect()
    }
}

/// Some variables replaced, the rest as it is below.
pub(super) struct Masked<'a> {
    pub below: &'a Env,
    pub names: Vec<String>,
}

impl Variables for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.names.iter().any(|masked| masked == name) { Some("****") } else { self.below.get(name) }
    }

    fn names(&self) -> Vec<&str> {
        self.below.names().into_iter().chain(self.names.iter().map(String::as_str)).collect()
    }
}
