use crate::{Error, Result};

/// The fields of one line of comma-separated values; quotes are doubled inside quoted fields. Follows Go's `encoding/csv`.
pub fn fields(line: &str) -> Result<Vec<String>> {
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err(Error::new("EOF"));
    }
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let position = line.len() - rest.len();
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, tail) = rest.split_once(',').map_or((rest, None), |(field, tail)| (field, Some(tail)));
            if let Some(at) = field.find('"') {
                return Err(error(position + at, "bare \" in non-quoted field"));
            }
            fields.push(field.to_owned());
            match tail {
                Some(tail) => rest = tail,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let misplaced = |quoted: &str| error(line.len() - quoted.len(), "extraneous or missing \" in quoted-field");
            let Some((part, tail)) = quoted.split_once('"') else { return Err(misplaced(quoted)) };
            field.push_str(part);
            if let Some(more) = tail.strip_prefix('"') {
                field.push('"');
                quoted = more;
            } else if let Some(next) = tail.strip_prefix(',') {
                fields.push(field);
                rest = next;
                break;
            } else if tail.is_empty() {
                fields.push(field);
                return Ok(fields);
            } else {
                return Err(error(line.len() - tail.len() - 1, "extraneous or missing \" in quoted-field"));
            }
        }
    }
}

fn error(position: usize, what: &str) -> Error {
    Error::new(format!("parse error on line 1, column {}: {what}", position + 1))
}

#[cfg(test)]
mod tests {
    use super::fields;

    #[test]
    fn splits() {
        for (line, want) in [
            ("a,b", vec!["a", "b"]),
            ("a,", vec!["a", ""]),
            ("\"a,b\",c", vec!["a,b", "c"]),
            ("\"a\"\"b\",\"\"", vec!["a\"b", ""]),
            (" a ,b\n", vec![" a ", "b"]),
        ] {
            assert_eq!(fields(line).unwrap(), want, "{line}");
        }
        for (line, want) in [
            ("", "EOF"),
            ("a\"b", "parse error on line 1, column 2: bare \" in non-quoted field"),
            ("x,\"a", "parse error on line 1, column 4: extraneous or missing \" in quoted-field"),
            ("\"a\"b", "parse error on line 1, column 3: extraneous or missing \" in quoted-field"),
        ] {
            assert_eq!(fields(line).unwrap_err().to_string(), want, "{line}");
        }
    }
}
