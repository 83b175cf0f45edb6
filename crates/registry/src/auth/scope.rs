use std::collections::{BTreeMap, BTreeSet};

/// What a token is asked to allow: resource -> actions, as `repository:library/alpine` -> `pull`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    pub fn repository(path: &str, push: bool) -> Self {
        let mut scopes = Self::default();
        scopes.add(&format!("repository:{path}:{}", if push { "pull,push" } else { "pull" }));
        scopes
    }

    /// Adds the space-separated scopes of `text`.
    pub fn add(&mut self, text: &str) {
        for scope in text.split(' ').filter(|s| !s.is_empty()) {
            let mut parts = scope.splitn(3, ':');
            let kind = parts.next().unwrap_or_default();
            let name = parts.next().map_or(kind.to_owned(), |name| format!("{kind}:{name}"));
            let actions = parts.next().unwrap_or_default();
            self.0.entry(name).or_default().extend(actions.split(',').filter(|a| !a.is_empty()).map(str::to_owned));
        }
    }

    pub fn merge(&mut self, other: &Self) {
        for (name, actions) in &other.0 {
            self.0.entry(name.clone()).or_default().extend(actions.iter().cloned());
        }
    }

    pub fn contains(&self, other: &Self) -> bool {
        other.0.iter().all(|(name, actions)| self.0.get(name).is_some_and(|own| actions.is_subset(own)))
    }

    /// One string a resource, in order.
    pub fn list(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|(name, actions)| format!("{name}:{}", actions.iter().map(String::as_str).collect::<Vec<_>>().join(",")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_and_compares() {
        let mut scopes = Scopes::repository("a/b", false);
        scopes.add("repository:a/b:push repository:c:pull registry:catalog:*");
        assert_eq!(scopes.list(), ["registry:catalog:*", "repository:a/b:pull,push", "repository:c:pull"]);
        assert!(scopes.contains(&Scopes::repository("a/b", true)));
        assert!(!Scopes::repository("a/b", false).contains(&scopes));
    }
}
