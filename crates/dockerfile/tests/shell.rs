//! The substitution grammar, case by case.
use dockerfile::shell::{Lexer, Variables};

struct Vars(&'static [(&'static str, &'static str)]);

impl Variables for Vars {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(k, _)| *k).collect()
    }
}

const VARS: Vars =
    Vars(&[("A", "one"), ("B", "two words"), ("EMPTY", ""), ("P", "/usr/local/lib/x.tar.gz"), ("STARS", "a*b*c"), ("UNI", "héé")]);

fn expand(word: &str) -> Result<String, String> {
    Lexer::new('\\').expand(word, &VARS).map(|e| e.text).map_err(|e| e.to_string())
}

#[test]
fn substitutes() {
    for (word, want) in [
        ("plain", "plain"),
        ("$A", "one"),
        ("${A}x", "onex"),
        ("$A-$B", "one-two words"),
        ("$NOPE.", "."),
        ("$", "$"),
        ("a$.b", "a$.b"),
        ("$1x", "x"),
        ("$12ab", "ab"),
        ("$@$*$#$?$-$$$!$0", ""),
        ("${@}${1}", ""),
        // Defaults and alternatives, with and without the colon.
        ("${A-d}|${EMPTY-d}|${NOPE-d}", "one||d"),
        ("${A:-d}|${EMPTY:-d}|${NOPE:-d}", "one|d|d"),
        ("${A+d}|${EMPTY+d}|${NOPE+d}", "d|d|"),
        ("${A:+d}|${EMPTY:+d}|${NOPE:+d}", "d||"),
        ("${A?e}|${EMPTY?e}|${A:?e}", "one||one"),
        ("${NOPE:-${ALSO:-$A}}", "one"),
        ("${NOPE:-'a b'}", "a b"),
        ("${NOPE:-\\$A}", "$A"),
        ("${A:-x}}", "one}"),
        // Prefixes and suffixes.
        ("${P#*/}", "usr/local/lib/x.tar.gz"),
        ("${P##*/}", "x.tar.gz"),
        ("${P%.*}", "/usr/local/lib/x.tar"),
        ("${P%%.*}", "/usr/local/lib/x"),
        ("${P#nope}", "/usr/local/lib/x.tar.gz"),
        ("${P%}", "/usr/local/lib/x.tar.gz"),
        ("${STARS#a\\*}", "b*c"),
        ("${STARS%\\**}", "a*b"),
        ("${UNI%?}", "hé"),
        ("${A#$NOPE}", "one"),
        ("${NOPE#x}", ""),
        // Replacements.
        ("${P/l/L}", "/usr/Local/lib/x.tar.gz"),
        ("${P//l/L}", "/usr/LocaL/Lib/x.tar.gz"),
        ("${P//\\//-}", "-usr-local-lib-x.tar.gz"),
        ("${P/u*l/U}", "/Uib/x.tar.gz"),
        ("${STARS//\\*/+}", "a+b+c"),
        ("${A//o/$B}", "two wordsne"),
        ("${A/o/}", "ne"),
        ("${A///-}", "-o-n-e-"),
        ("${NOPE/a/b}", ""),
        // Quotes and escapes.
        ("'$A'", "$A"),
        ("\"$A\"", "one"),
        ("\"a 'b' $A\"", "a 'b' one"),
        ("\\$A", "$A"),
        ("\\\\$A", "\\one"),
        ("a\\b", "ab"),
        ("\"a\\b\"", "a\\b"),
        ("\"\\\"\\$A\\\\\"", "\"$A\\"),
        ("'a\\'", "a\\"),
        ("end\\", "end"),
        ("a\\ b", "a b"),
        ("<<EOF", "<<EOF"),
        ("a < b << c", "a < b << c"),
    ] {
        assert_eq!(expand(word).as_deref(), Ok(want), "{word}");
    }
}

#[test]
fn says_what_is_wrong() {
    for (word, want) in [
        ("'a", "failed to process \"'a\": unexpected end of statement while looking for matching single-quote"),
        ("\"a", "failed to process \"\\\"a\": unexpected end of statement while looking for matching double-quote"),
        ("${", "failed to process \"${\": syntax error: missing '}'"),
        ("${}", "failed to process \"${}\": syntax error: bad substitution"),
        ("${{A}", "failed to process \"${{A}\": syntax error: bad substitution"),
        ("${:-x}", "failed to process \"${:-x}\": syntax error: bad substitution"),
        ("${A:-x", "failed to process \"${A:-x\": syntax error: missing '}'"),
        ("${A/x}", "failed to process \"${A/x}\": syntax error: missing '/' in ${}"),
        ("${A/x/y", "failed to process \"${A/x/y\": syntax error: missing '}'"),
        ("${A=x}", "failed to process \"${A=x}\": unsupported modifier (=) in substitution"),
        ("${A:=x}", "failed to process \"${A:=x}\": unsupported modifier (:=) in substitution"),
        ("${A:#x}", "failed to process \"${A:#x}\": unsupported modifier (:#) in substitution"),
        ("${.}", "failed to process \"${.}\": unsupported modifier (.) in substitution"),
        ("${A#\\x}", "failed to process \"${A#\\\\x}\": invalid pattern (\\x) in substitution: invalid escape '\\x'"),
        ("${NOPE?}", "failed to process \"${NOPE?}\": NOPE: is not allowed to be unset"),
        ("${EMPTY:?}", "failed to process \"${EMPTY:?}\": EMPTY: is not allowed to be empty"),
        ("${NOPE:?give it}", "failed to process \"${NOPE:?give it}\": NOPE: give it"),
    ] {
        assert_eq!(expand(word), Err(want.to_owned()), "{word}");
    }
}

#[test]
fn splits_words_after_expansion() {
    let words = |text| Lexer::new('\\').words(text, &VARS).unwrap();
    assert_eq!(words("$B x"), ["two", "words", "x"]);
    assert_eq!(words("\"$B\" x"), ["two words", "x"]);
    assert_eq!(words("  a\\ b  'c d'e "), ["a b", "c de"]);
    assert_eq!(words("pre${NOPE:-mid}post"), ["premidpost"]);
    assert_eq!(words("\"\" $NOPE"), Vec::<String>::new());
    assert_eq!(words("<< EOF x"), ["<< EOF", "x"]);
}

#[test]
fn switches() {
    let mut keep = Lexer::new('\\');
    keep.keep_unset = true;
    keep.raw_quotes = true;
    let text = |lexer: &Lexer, word| lexer.expand(word, &VARS).unwrap().text;
    assert_eq!(
        text(&keep, "'$A' \"$A\" $NOPE ${NOPE} ${NOPE:-x} ${NOPE/a/b} ${NOPE#a}"),
        "'$A' \"one\" $NOPE ${NOPE} ${NOPE:-x} ${NOPE/a/b} ${NOPE#a}"
    );
    let mut literal = Lexer::new('\\');
    literal.literal_quotes = true;
    assert_eq!(text(&literal, "'$A' \"$A\" \\$A"), "'one' \"one\" $A");
    assert_eq!(text(&Lexer::new('`'), "C:\\x`$A `` \\$A"), "C:\\x$A ` \\one");
    let mut raw = Lexer::new('\\');
    raw.raw_escapes = true;
    assert_eq!(text(&raw, "a\\ b \"c\\\"\""), "a\\ b c\\\"");
}

#[test]
fn tells_which_variables_it_met() {
    let found = Lexer::new('\\').expand("$A ${NOPE:-$EMPTY} ${B#$ALSO} '$NOT'", &VARS).unwrap();
    assert_eq!(found.matched.into_iter().collect::<Vec<_>>(), ["A", "B", "EMPTY"]);
    assert_eq!(found.unmatched.into_iter().collect::<Vec<_>>(), ["ALSO", "NOPE"]);
}
