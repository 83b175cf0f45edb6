//! Ignore files and patterns, matched against a path: the first line is the path.
#![no_main]
use libfuzzer_sys::fuzz_target;
use patterns::{Filters, Glob, Matcher, Parent, parse_ignore_file};

fuzz_target!(|data: &[u8]| {
    let lines = parse_ignore_file(data);
    let text = String::from_utf8_lossy(data);
    let (path, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let cleaned = patterns::clean(path);
    assert_eq!(patterns::clean(&cleaned), cleaned);
    let _ = (patterns::base(path), patterns::dir(path), patterns::join(&[path, rest]));
    for matcher in [Matcher::new(&lines), Matcher::new(rest.lines())].into_iter().flatten() {
        let whole = matcher.matches(&cleaned);
        let walked = matcher.matches_below(&cleaned, &Parent::default());
        if let (Ok(whole), Ok((walked, _))) = (whole, walked) {
            assert_eq!(whole, walked, "a path without a known parent matches as a whole");
        }
    }
    if let Ok(glob) = Glob::new(rest) {
        let _ = glob.matches(path);
    }
    if let Ok(filters) = Filters::parse(&rest.lines().collect::<Vec<_>>()) {
        let _ = filters.matches(|field| (field.len() < 3).then(|| path.to_owned()));
    }
});
