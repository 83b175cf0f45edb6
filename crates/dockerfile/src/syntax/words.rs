/// The blanks between an instruction's parts.
pub(super) const BLANKS: [char; 5] = ['\t', '\x0b', '\x0c', '\r', ' '];

/// At the first run of blanks; `None` if there is none.
pub(super) fn split_first(text: &str) -> Option<(&str, &str)> {
    let at = text.find(BLANKS)?;
    Some((&text[..at], text[at..].trim_start_matches(BLANKS)))
}

/// At every run of blanks.
pub(super) fn split_all(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((word, tail)) = split_first(rest) {
        parts.push(word.to_owned());
        rest = tail;
    }
    parts.push(rest.to_owned());
    parts
}

/// Words with their quotes; blanks inside quotes, or behind an escape character, do not split.
pub(super) fn quoted_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = text.chars();
    let mut word = String::new();
    let mut started = false;
    let mut quote: Option<char> = None;
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if started && !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            started = false;
            continue;
        }
        started = true;
        let escapes = c == escape && quote != Some('\'');
        match quote {
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        if escapes {
            // One at the very end is dropped.
            let Some(next) = chars.next() else { break };
            word.push(c);
            word.push(next);
            continue;
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The leading `--flags` of an instruction, unquoted, and the rest.
pub(super) fn flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        let (flag, tail) = flag(rest, escape);
        if flag == "--" {
            return (flags, tail.trim());
        }
        flags.extend((!flag.is_empty()).then_some(flag));
        rest = tail.trim_start();
    }
    (flags, rest.trim())
}

fn flag(text: &str, escape: char) -> (String, &str) {
    let mut flag = String::new();
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    loop {
        let rest = chars.as_str();
        let Some(c) = chars.next() else { return (flag, "") };
        if c == escape && quote != Some(escape) {
            match chars.next() {
                Some(next) => flag.push(next),
                None => return (flag, ""),
            }
            continue;
        }
        match quote {
            None if c.is_whitespace() => return (flag, rest),
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => flag.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_quotes() {
        for (text, want) in [
            ("a b", vec!["a", "b"]),
            ("  a\tb ", vec!["a", "b"]),
            ("'a b' c", vec!["'a b'", "c"]),
            ("x='a b' y=\"c \\\" d\"", vec!["x='a b'", "y=\"c \\\" d\""]),
            ("a\\ b c", vec!["a\\ b", "c"]),
            ("a b\\", vec!["a", "b"]),
            ("'a\\' b", vec!["'a\\'", "b"]),
            ("\"\" x", vec!["\"\"", "x"]),
            ("\"a b", vec!["\"a b"]),
            ("", vec![]),
        ] {
            assert_eq!(quoted_words(text, '\\'), want, "{text}");
        }
    }

    #[test]
    fn splits_flags() {
        for (text, want, rest) in [
            ("--a=b c", vec!["--a=b"], "c"),
            ("--a --b='x y' rest --c", vec!["--a", "--b=x y"], "rest --c"),
            ("-- --a", vec![], "--a"),
            ("--a -- b", vec!["--a"], "b"),
            ("--", vec![], ""),
            ("--a=\\ b c", vec!["--a= b"], "c"),
            ("--a", vec!["--a"], ""),
            ("  x", vec![], "x"),
            ("-x", vec![], "-x"),
            ("--m=type=bind,target=/é x", vec!["--m=type=bind,target=/é"], "x"),
        ] {
            assert_eq!(flags(text, '\\'), (want.into_iter().map(String::from).collect(), rest), "{text}");
        }
    }
}
