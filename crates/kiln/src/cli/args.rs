//! Command lines as BuildKit's tools take them: `-flag` and `--flag`, values behind `=` or as the next argument, flags and operands mixed.
use std::collections::BTreeMap;
use std::ffi::OsString;

/// A flag: its names, the first of which it is asked for by, and whether it takes a value.
pub type Spec = (&'static [&'static str], Takes);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    Value,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Args {
    values: BTreeMap<&'static str, Vec<String>>,
    pub operands: Vec<String>,
}

impl Args {
    /// Reads all arguments.
    pub fn parse(specs: &[Spec], args: &[String]) -> Result<Self, String> {
        let mut parsed = Self::default();
        let rest = parsed.read(specs, args, false)?;
        debug_assert!(rest.is_empty());
        Ok(parsed)
    }

    /// Reads flags up to the first operand; that and all behind it is returned.
    pub fn parse_head<'a>(specs: &[Spec], args: &'a [String]) -> Result<(Self, &'a [String]), String> {
        let mut parsed = Self::default();
        let rest = parsed.read(specs, args, true)?;
        Ok((parsed, rest))
    }

    fn read<'a>(&mut self, specs: &[Spec], args: &'a [String], head: bool) -> Result<&'a [String], String> {
        let mut at = 0;
        while let Some(arg) = args.get(at) {
            if arg == "--" {
                self.operands.extend_from_slice(&args[at + 1..]);
                return Ok(&[]);
            }
            let body = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'));
            let Some(body) = body.filter(|body| !body.is_empty()) else {
                if head {
                    return Ok(&args[at..]);
                }
                self.operands.push(arg.clone());
                at += 1;
                continue;
            };
            let (name, inline) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value.to_owned())));
            let known = |name: &str| specs.iter().find(|(names, _)| names.contains(&name));
            // `-f-`, `-tname`: the value follows a one-letter flag without a blank.
            let attached = || {
                let letter = body.get(..1).filter(|_| !arg.starts_with("--") && body.len() > 1)?;
                known(letter).filter(|(_, takes)| *takes == Takes::Value).map(|spec| (spec, Some(body[1..].to_owned())))
            };
            let found = known(name).map(|spec| (spec, inline)).or_else(attached);
            let ((names, takes), inline) = found.ok_or_else(|| format!("flag provided but not defined: -{name}"))?;
            at += 1;
            let value = match (takes, inline) {
                (Takes::Nothing, None) => "true".to_owned(),
                (Takes::Nothing, Some(value)) => {
                    boolean(&value).ok_or_else(|| format!("invalid boolean value {value:?} for -{name}"))?.to_string()
                }
                (Takes::Value, Some(value)) => value,
                (Takes::Value, None) => {
                    at += 1;
                    args.get(at - 1).cloned().ok_or_else(|| format!("flag needs an argument: -{name}"))?
                }
            };
            self.values.entry(names[0]).or_default().push(value);
        }
        Ok(&[])
    }

    /// Flags given behind the command count for the globals too, and win.
    pub fn merge(&mut self, other: Self) {
        for (name, values) in other.values {
            self.values.entry(name).or_default().extend(values);
        }
        self.operands.extend(other.operands);
    }

    pub fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// The last value given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).last().map(String::as_str)
    }

    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    pub fn is_set(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        self.get(name).map(|value| value.parse().map_err(|_| format!("invalid value {value:?} for flag -{name}"))).transpose()
    }
}

/// What Go's `ParseBool` takes.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

pub fn utf8(args: Vec<OsString>) -> Result<Vec<String>, String> {
    args.into_iter().map(|arg| arg.into_string().map_err(|arg| format!("argument {arg:?} is not UTF-8"))).collect()
}

/// The fields of one CSV record, as Go's reader splits it: fields in double quotes may hold commas, and doubled quotes stand for one.
pub fn csv(text: &str) -> Result<Vec<String>, String> {
    let malformed = || format!("malformed list {text:?}: a quote is out of place");
    let (mut fields, mut field, mut chars) = (Vec::new(), String::new(), text.chars().peekable());
    loop {
        if field.is_empty() && chars.peek() == Some(&'"') {
            chars.next();
            loop {
                match chars.next().ok_or_else(malformed)? {
                    '"' if chars.peek() == Some(&'"') => {
                        chars.next();
                        field.push('"');
                    }
                    '"' => break,
                    c => field.push(c),
                }
            }
            if !matches!(chars.peek(), None | Some(',')) {
                return Err(malformed());
            }
        }
        match chars.next() {
            None => {
                fields.push(field);
                return Ok(fields);
            }
            Some(',') => fields.push(std::mem::take(&mut field)),
            Some('"') => return Err(malformed()),
            Some(c) => field.push(c),
        }
    }
}

/// `key=value` fields with lower-case keys.
pub fn csv_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |field: String| {
        field.split_once('=').map(|(k, v)| (k.to_lowercase(), v.to_owned())).ok_or_else(|| format!("invalid value {field}"))
    };
    csv(text)?.into_iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[Spec] = &[(&["output", "o"], Takes::Value), (&["no-cache"], Takes::Nothing), (&["opt"], Takes::Value)];

    fn parse(args: &[&str]) -> Result<Args, String> {
        Args::parse(SPECS, &args.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_in_all_their_forms() {
        let args = parse(&["-o", "type=oci", "ctx", "--opt=a=b", "-opt", "c=d", "--no-cache", "--", "-x"]).unwrap();
        assert_eq!((args.text("output"), args.all("opt")), ("type=oci", ["a=b".to_owned(), "c=d".to_owned()].as_slice()));
        assert!(args.is_set("no-cache") && !parse(&["--no-cache=false"]).unwrap().is_set("no-cache"));
        assert_eq!(args.operands, ["ctx", "-x"]);
        assert_eq!(parse(&["-"]).unwrap().operands, ["-"]);
        assert_eq!(parse(&["--nope"]).unwrap_err(), "flag provided but not defined: -nope");
        assert_eq!(parse(&["-otype=oci", "-o-"]).unwrap().all("output"), ["type=oci", "-"]);
        assert_eq!(parse(&["--otype"]).unwrap_err(), "flag provided but not defined: -otype");
        assert_eq!(parse(&["--opt"]).unwrap_err(), "flag needs an argument: -opt");
        assert!(parse(&["--no-cache=maybe"]).is_err());
    }

    #[test]
    fn csv_as_go_reads_it() {
        assert_eq!(csv(r#"type=image,"name=a,b",x="#).unwrap(), ["type=image", "name=a,b", "x="]);
        assert_eq!(csv(r#""a""b","#).unwrap(), ["a\"b", ""]);
        assert!(csv(r#"a"b"#).is_err() && csv(r#""a"#).is_err() && csv(r#""a"b"#).is_err());
        assert_eq!(csv_pairs("Type=local,dest=/X").unwrap(), [("type".into(), "local".into()), ("dest".into(), "/X".into())]);
        assert_eq!(csv_pairs("plain").unwrap_err(), "invalid value plain");
    }
}
