//! Which records a listener asks for: `status==completed,duration>10m`, `startedAt<24h`, `ref~=abc`.
//!
//! A text is a list (CSV) of terms that must all hold; of several texts one is enough. Times and durations are compared with `>`, `<`, `>=` or `<=`; a time is RFC 3339
//! or an age; other terms are field filters as [`patterns::Filters`] reads them, on `ref`, `status` and `repository`.
use std::time::{Duration, SystemTime};

use fault::{Context as _, Fault, Kind, Result};
use patterns::Filters;

use super::record::Record;

pub struct Filter(Vec<Vec<Term>>);

enum Term {
    Age { of: Moment, is: Comparison, than: i64 },
    Duration { is: Comparison, than: i128 },
    Fields(Filters),
}

#[derive(Clone, Copy)]
enum Moment {
    Started,
    Completed,
}

#[derive(Clone, Copy)]
enum Comparison {
    More,
    Less,
    AtLeast,
    AtMost,
}

const COMPARISONS: [(&str, Comparison); 4] =
    [(">=", Comparison::AtLeast), ("<=", Comparison::AtMost), (">", Comparison::More), ("<", Comparison::Less)];

impl Comparison {
    fn holds<T: Ord>(self, a: T, b: T) -> bool {
        match self {
            Comparison::More => a > b,
            Comparison::Less => a < b,
            Comparison::AtLeast => a >= b,
            Comparison::AtMost => a <= b,
        }
    }
}

impl Filter {
    pub fn parse(texts: &[String], now: SystemTime) -> Result<Self> {
        texts.iter().map(|text| terms(text, now)).collect::<Result<_>>().map(Self)
    }

    pub fn passes(&self, record: &Record) -> bool {
        self.0.is_empty() || self.0.iter().any(|terms| terms.iter().all(|term| term.holds(record)))
    }
}

/// Those that pass, and of them the `limit` newest, 0 for all.
pub fn select(records: Vec<Record>, filter: &Filter, limit: i32) -> Result<Vec<Record>> {
    let limit = usize::try_from(limit).map_err(|_| Fault::new(Kind::Unknown, format!("invalid limit {limit}")))?;
    let mut records: Vec<Record> = records.into_iter().filter(|record| filter.passes(record)).collect();
    if limit > 0 {
        records.sort_by_key(|record| std::cmp::Reverse(record.created_at));
        records.truncate(limit);
    }
    Ok(records)
}

fn terms(text: &str, now: SystemTime) -> Result<Vec<Term>> {
    let (mut terms, mut fields) = (Vec::new(), Vec::new());
    for field in csv(text)? {
        match timed(&field, now)? {
            Some(term) => terms.push(term),
            None => fields.push(field),
        }
    }
    let filters = Filters::parse(&[fields.join(",")])
        .map_err(|e| Fault::of(Kind::Unknown, e))
        .context(format!("failed to parse history filters {text}"))?;
    terms.push(Term::Fields(filters));
    Ok(terms)
}

fn timed(field: &str, now: SystemTime) -> Result<Option<Term>> {
    let Some((key, is, value)) = COMPARISONS.iter().find_map(|(sign, is)| field.split_once(sign).map(|(key, value)| (key, *is, value)))
    else {
        return Ok(None);
    };
    let invalid = |what: &str| Fault::new(Kind::Unknown, format!("invalid {what} {value}"));
    let of = match key {
        "startedAt" => Moment::Started,
        "completedAt" => Moment::Completed,
        "duration" => return Ok(Some(Term::Duration { is, than: go_duration(value).ok_or_else(|| invalid("duration"))? })),
        _ => return Ok(None),
    };
    let than = match go_duration(value) {
        Some(age) => unix_seconds(now) - i64::try_from(age.div_euclid(1_000_000_000)).unwrap_or(i64::MAX),
        None => value.parse::<oci::Timestamp>().map_err(|_| invalid("time"))?.unix_seconds(),
    };
    Ok(Some(Term::Age { of, is, than }))
}

impl Term {
    fn holds(&self, record: &Record) -> bool {
        match self {
            Term::Age { of, is, than } => {
                let at = match of {
                    Moment::Started => Some(record.created_at),
                    Moment::Completed => record.completed_at,
                };
                is.holds(at.map_or(0, unix_seconds), *than)
            }
            Term::Duration { is, than } => {
                let took = record.completed_at.and_then(|at| at.duration_since(record.created_at).ok()).unwrap_or_default();
                is.holds(took.as_nanos() as i128, *than)
            }
            Term::Fields(filters) => filters.matches(|path| field(record, path)),
        }
    }
}

fn field(record: &Record, path: &[&str]) -> Option<String> {
    match *path.first()? {
        "ref" => Some(record.reference.clone()).filter(|r| !r.is_empty()),
        "status" => Some(status(record).to_owned()),
        "repository" => repository(record),
        _ => None,
    }
}

fn status(record: &Record) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "running",
        (Some(_), None) => "completed",
        (Some(_), Some(error)) if error.message.contains("context canceled") => "canceled",
        (Some(_), Some(_)) => "error",
    }
}

/// Where the sources come from, as far as the client said.
fn repository(record: &Record) -> Option<String> {
    if let Some(source) = record.frontend_attrs.get("vcs:source") {
        return Some(source.clone());
    }
    let context = record.frontend_attrs.get("context")?;
    let is_git = ["git://", "ssh://", "http://", "https://"].iter().any(|scheme| context.starts_with(scheme))
        || context.split_once('@').is_some_and(|(user, rest)| !user.contains('/') && rest.contains(':'));
    is_git.then(|| context.split('#').next().unwrap_or_default().to_owned())
}

fn unix_seconds(at: SystemTime) -> i64 {
    oci::Timestamp::from(at).unix_seconds()
}

/// A duration as Go writes it, in nanoseconds: `1h30m`, `-1.5s`, `0`.
fn go_duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale = match &rest[..unit] {
            "ns" => Duration::from_nanos(1),
            "us" | "µs" | "μs" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return None,
        };
        total += number * scale.as_nanos() as f64;
        rest = &rest[unit..];
    }
    Some(sign * total as i128)
}

/// The fields of one CSV line; quotes inside a plain field are its own.
fn csv(text: &str) -> Result<Vec<String>> {
    let malformed = || Fault::new(Kind::Unknown, format!("malformed filter {text:?}: a quote is out of place"));
    let (mut fields, mut rest) = (Vec::new(), text);
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, next) = rest.split_once(',').map_or((rest, None), |(field, next)| (field, Some(next)));
            fields.push(field.to_owned());
            match next {
                Some(next) => rest = next,
                None => return Ok(fields),
            }
            continue;
        };
        let (mut field, mut left) = (String::new(), quoted);
        loop {
            let (part, next) = left.split_once('"').ok_or_else(malformed)?;
            field.push_str(part);
            match next.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    left = more;
                }
                None => {
                    left = next;
                    break;
                }
            }
        }
        fields.push(field);
        match left.strip_prefix(',') {
            Some(next) => rest = next,
            None if left.is_empty() => return Ok(fields),
            None => return Err(malformed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Failure;
    use super::*;

    fn record(name: &str, minutes_ago: u64, took: u64, error: Option<&str>) -> Record {
        let created_at = SystemTime::now() - Duration::from_secs(minutes_ago * 60);
        Record {
            created_at,
            completed_at: Some(created_at + Duration::from_secs(took)),
            error: error.map(|message| Failure { code: 2, message: message.to_owned() }),
            ..Record::begun(name)
        }
    }

    fn names(texts: &[&str], limit: i32) -> Vec<String> {
        let mut sources = record("src", 5, 1, None);
        sources.frontend_attrs.insert("context".into(), "https://github.com/a/b.git#main".into());
        let records = vec![
            record("good", 120, 30, None),
            record("bad", 10, 5, Some("boom")),
            record("gone", 1, 2, Some("x: context canceled")),
            sources,
        ];
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        let filter = Filter::parse(&texts, SystemTime::now()).unwrap();
        select(records, &filter, limit).unwrap().into_iter().map(|r| r.reference).collect()
    }

    #[test]
    fn terms_of_a_text_all_hold_and_one_text_is_enough() {
        assert_eq!(names(&[], 0), ["good", "bad", "gone", "src"]);
        assert_eq!(names(&["status==error"], 0), ["bad"]);
        assert_eq!(names(&["status==canceled", "ref~=oo"], 0), ["good", "gone"]);
        assert_eq!(names(&["status!=completed,duration>3s"], 0), ["bad"]);
        assert_eq!(names(&["startedAt>1h"], 0), ["bad", "gone", "src"], "a time is compared, and an hour ago is one");
        assert_eq!(names(&["startedAt<=1h,duration>=30s"], 0), ["good"]);
        assert_eq!(names(&["completedAt>2000-01-01T00:00:00Z"], 2), ["gone", "src"], "the newest, newest first");
        assert_eq!(names(&["repository==https://github.com/a/b.git"], 0), ["src"]);
        assert_eq!(names(&[r#""status==error",duration<1h"#], 0), ["bad"]);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (text, says) in [
            ("duration>x", "invalid duration x"),
            ("startedAt<yesterday", "invalid time yesterday"),
            ("status==", "failed to parse history filters"),
            ("\"a", "malformed filter"),
        ] {
            let fault = Filter::parse(&[text.to_owned()], SystemTime::now()).err().unwrap();
            assert!(fault.to_string().contains(says), "{text}: {fault}");
        }
        let none = Filter::parse(&[], SystemTime::now()).unwrap();
        assert_eq!(select(Vec::new(), &none, -1).unwrap_err().to_string(), "invalid limit -1");
    }

    #[test]
    fn durations_as_go_writes_them() {
        assert_eq!(go_duration("1h30m"), Some(5400 * 1_000_000_000));
        assert_eq!(go_duration("-1.5s"), Some(-1_500_000_000));
        assert_eq!(go_duration("0"), Some(0));
        for text in ["", "5", "s", "1x", "1..0s"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
