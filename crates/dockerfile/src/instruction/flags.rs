use crate::text::nearest;
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Bool,
    Text,
    /// May be given more than once.
    List,
}

/// The flags of one instruction, checked against those that it knows.
#[derive(Debug, Default)]
pub(super) struct Flags(Vec<(&'static str, String)>);

impl Flags {
    pub fn parse(given: &[String], known: &[(&'static str, Kind)]) -> Result<Self> {
        let mut flags = Self::default();
        for flag in given {
            let (dashed, value) = flag.split_once('=').map_or((flag.as_str(), None), |(name, value)| (name, Some(value)));
            let name = &dashed[2.min(dashed.len())..];
            let Some((name, kind)) = known.iter().find(|(known, _)| *known == name) else {
                let guess = nearest(name, known.iter().map(|(known, _)| *known), true);
                return Err(Error::new(format!("unknown flag: {dashed}")).suggest(guess));
            };
            if *kind != Kind::List && flags.text(name).is_some() {
                return Err(Error::new(format!("duplicate flag specified: {dashed}")));
            }
            let missing = || Error::new(format!("missing a value on flag: {dashed}"));
            let value = match (kind, value) {
                (Kind::Bool, None) => "true".to_owned(),
                (Kind::Bool, Some("")) => return Err(missing()),
                (Kind::Bool, Some(value)) => match value.to_lowercase() {
                    word if word == "true" || word == "false" => word,
                    _ => return Err(Error::new(format!("expecting boolean value for flag {dashed}, not: {value}"))),
                },
                (_, value) => value.ok_or_else(missing)?.to_owned(),
            };
            flags.0.push((name, value));
        }
        Ok(flags)
    }

    /// No flags are known.
    pub fn none(given: &[String]) -> Result<()> {
        Self::parse(given, &[]).map(|_| ())
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Empty if not given.
    pub fn string(&self, name: &str) -> String {
        self.text(name).unwrap_or_default().to_owned()
    }

    pub fn bool(&self, name: &str) -> Option<bool> {
        self.text(name).map(|value| value == "true")
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.clone()).collect()
    }
}
