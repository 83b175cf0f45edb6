//! `WWW-Authenticate`.
use std::collections::BTreeMap;

/// One challenge: its scheme in lower case and its parameters, keys in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub scheme: String,
    pub parameters: BTreeMap<String, String>,
}

impl Challenge {
    pub fn get(&self, key: &str) -> &str {
        self.parameters.get(key).map_or("", String::as_str)
    }
}

/// All challenges of a response's headers. What does not parse is skipped.
pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut all: Vec<Challenge> = Vec::new();
    for header in headers {
        let mut rest = header.trim_start_matches([' ', ',', '\t']);
        let mut open = false;
        while !rest.is_empty() {
            let word = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
            if word == 0 {
                break;
            }
            let (name, after) = rest.split_at(word);
            match after.trim_start().strip_prefix('=') {
                // A parameter of the challenge that is open.
                Some(after) if open => {
                    let (value, after) = value(after.trim_start());
                    let current = all.last_mut().expect("open means there is one");
                    current.parameters.insert(name.to_ascii_lowercase(), value);
                    rest = after;
                }
                _ => {
                    all.push(Challenge { scheme: name.to_ascii_lowercase(), parameters: BTreeMap::new() });
                    open = true;
                    rest = after;
                }
            }
            rest = rest.trim_start_matches([' ', ',', '\t', '=']);
        }
    }
    all
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A quoted string with backslash escapes, or a bare token; and what follows.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_challenges() {
        let header = r#"Bearer realm="https://a/t?x=1,2",service="s \"q\"",scope="repository:a/b:pull,push", Basic realm=plain"#;
        let all = parse([header, "Digest"]);
        let schemes: Vec<&str> = all.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["bearer", "basic", "digest"]);
        assert_eq!(
            (all[0].get("realm"), all[0].get("service"), all[0].get("scope")),
            ("https://a/t?x=1,2", "s \"q\"", "repository:a/b:pull,push")
        );
        assert_eq!(all[1].get("realm"), "plain");
    }

    #[test]
    fn survives_garbage() {
        for text in ["", ",,,", "=", "Bearer realm=\"open", "\u{7f}", "a=b=c", "Bearer =x", "Bearer realm"] {
            parse([text]);
        }
        assert_eq!(parse(["Bearer realm=\"open"])[0].get("realm"), "open");
    }
}
