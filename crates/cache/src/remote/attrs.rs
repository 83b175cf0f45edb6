//! Attributes of cache locations.
use std::collections::BTreeMap;

use fault::{Fault, Result};

use super::collect::Mode;

/// The attributes as the client gave them.
#[derive(Debug, Clone)]
pub struct Attrs(BTreeMap<String, String>);

/// What happens to the build when a cache cannot be exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// It goes on, and the user is warned.
    Warn,
    /// It goes on; asked for with `ignore-error=true`.
    Ignore,
    /// It fails; asked for with `ignore-error=false`.
    Fail,
}

impl Attrs {
    pub fn new(attrs: &BTreeMap<String, String>) -> Self {
        Self(attrs.clone())
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// As Go's ParseBool reads it.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.text(key) else { return Ok(None) };
        let wrong = || Fault::invalid(format!("failed to parse {key}: strconv.ParseBool: parsing {value:?}: invalid syntax"));
        parse_bool(value).map(Some).ok_or_else(wrong)
    }

    /// A value that counts only if it is a boolean.
    pub fn lenient_flag(&self, key: &str) -> bool {
        self.text(key).and_then(parse_bool).unwrap_or(false)
    }

    /// Names in one value, separated by semicolons.
    pub fn names(&self) -> Vec<String> {
        self.text("name").unwrap_or("buildkit").split(';').map(str::to_owned).collect()
    }

    /// Anything but `max` is `min`.
    pub fn mode(&self) -> Mode {
        if self.text("mode") == Some("max") { Mode::Max } else { Mode::Min }
    }

    /// A value that is no boolean counts as none.
    pub fn on_error(&self) -> OnError {
        match self.text("ignore-error").and_then(parse_bool) {
            None => OnError::Warn,
            Some(true) => OnError::Ignore,
            Some(false) => OnError::Fail,
        }
    }
}

pub fn parse_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
