use super::Rule;
use crate::text::{parse_bool, quote};
use crate::{Error, Result};

/// Which rules count: `skip=A,B;error=true;experimental=all`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    pub skip_all: bool,
    pub skip: Vec<String>,
    pub experimental_all: bool,
    pub experimental: Vec<String>,
    /// Warnings fail the build.
    pub error: bool,
}

impl Config {
    pub fn parse(text: &str) -> Result<Self> {
        let mut config = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        for part in text.splitn(3, ';') {
            let invalid = |what: &str| Error::new(format!("invalid check option {}", quote(what)));
            let (key, value) = part.split_once('=').ok_or_else(|| invalid(part))?;
            let value = value.trim();
            let rules = || value.split(',').map(|rule| rule.trim().to_owned()).collect();
            match key.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = rules(),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = rules(),
                "error" => {
                    config.error = parse_bool(value).ok_or_else(|| {
                        let cause = format!("strconv.ParseBool: parsing {}: invalid syntax", quote(value));
                        Error::new(format!("failed to parse check option {}: {cause}", quote(part)))
                    })?;
                }
                other => return Err(invalid(other)),
            }
        }
        Ok(config)
    }

    /// Skipping has no power over experimental rules: they run where they are asked for.
    pub(super) fn allows(&self, rule: &Rule) -> bool {
        let named = |list: &[String]| list.iter().any(|name| name == rule.name);
        if rule.experimental { self.experimental_all || named(&self.experimental) } else { !(self.skip_all || named(&self.skip)) }
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.skip_all |= other.skip_all;
        self.skip.extend(other.skip);
        self.experimental_all |= other.experimental_all;
        self.experimental.extend(other.experimental);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let config = Config::parse(" skip=A, B ;error=true;experimental=all").unwrap();
        assert_eq!(config.skip, ["A", "B"]);
        assert!(config.error && config.experimental_all && !config.skip_all);
        assert!(Config::parse("skip=all").unwrap().skip_all);
        assert_eq!(Config::parse("").unwrap(), Config::default());
        for (text, want) in [
            ("nope", "invalid check option \"nope\""),
            ("a=b", "invalid check option \"a\""),
            ("error=x", "failed to parse check option \"error=x\": strconv.ParseBool: parsing \"x\": invalid syntax"),
        ] {
            assert_eq!(Config::parse(text).unwrap_err().to_string(), want);
        }
    }
}
