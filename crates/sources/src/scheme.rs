use crate::error::SourceError;
use crate::git;

/// What kind of source an identifier names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Image,
    OciLayout,
    ImageBlob,
    LayoutBlob,
    Local,
    Http,
    Git,
}

/// Splits `scheme://rest`. For HTTP the rest is the whole identifier, which is the URL.
pub(crate) fn split(identifier: &str) -> Result<(Scheme, &str), SourceError> {
    let Some((scheme, rest)) = identifier.split_once("://") else {
        return Err(SourceError::Identifier { identifier: identifier.to_owned() });
    };
    Ok(match scheme {
        "docker-image" => (Scheme::Image, rest),
        "oci-layout" => (Scheme::OciLayout, rest),
        "docker-image+blob" => (Scheme::ImageBlob, rest),
        "oci-layout+blob" => (Scheme::LayoutBlob, rest),
        "local" => (Scheme::Local, rest),
        "http" | "https" => (Scheme::Http, identifier),
        "git" => (Scheme::Git, rest),
        other => return Err(SourceError::Scheme { scheme: other.to_owned() }),
    })
}

/// The identifier that policies see: for git it is made of the URL that is really used.
pub fn normal_identifier(op: &llb::SourceOp) -> String {
    let normal = match split(&op.identifier) {
        Ok((Scheme::Git, rest)) => git::Request::new(rest, &op.attrs).ok().map(|request| request.identifier()),
        _ => None,
    };
    normal.unwrap_or_else(|| op.identifier.clone())
}

/// A number as Go's `strconv.ParseInt(text, 0, 64)` reads it: the prefix tells the base.
pub(crate) fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let digits = digits.replace('_', "");
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain { i64::from_str_radix(&digits, base).ok().map(|n| sign * n) } else { None }
}

/// The last part of a path as a file name that is safe to create; `download` where there is none.
pub(crate) fn safe_file_name(text: &str) -> String {
    let name = text.trim().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let safe = !matches!(name, "" | "." | "..") && !name.chars().any(char::is_control);
    if safe { name.to_owned() } else { "download".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_identifiers() {
        assert_eq!(split("docker-image://docker.io/library/a").unwrap(), (Scheme::Image, "docker.io/library/a"));
        assert_eq!(split("https://x/y").unwrap(), (Scheme::Http, "https://x/y"));
        assert_eq!(split("alpine").unwrap_err().to_string(), "failed to parse alpine: invalid");
        assert_eq!(split("ftp://x").unwrap_err().to_string(), "unknown scheme ftp: not found");
    }

    #[test]
    fn reads_go_numbers() {
        for (text, want) in [
            ("0644", Some(0o644)),
            ("420", Some(420)),
            ("0x1f", Some(31)),
            ("-7", Some(-7)),
            ("0o17", Some(15)),
            ("0", Some(0)),
            ("", None),
            ("08", None),
            ("1a", None),
            ("--1", None),
        ] {
            assert_eq!(number(text), want, "{text}");
        }
    }

    #[test]
    fn makes_names_safe() {
        for (text, want) in
            [("a/b/c", "c"), ("", "download"), ("..", "download"), ("/", "download"), ("a\nb", "download"), (" x ", "x"), ("x/", "x")]
        {
            assert_eq!(safe_file_name(text), want);
        }
    }
}
