//! The word grammar: the first line is the word, the others are variables; then everything smaller than an instruction.
#![no_main]
use dockerfile::instruction::{csv_fields, parse_chmod, parse_signal};
use dockerfile::lint::Config;
use dockerfile::shell::{Lexer, Variables};
use libfuzzer_sys::fuzz_target;

struct Lines<'a>(Vec<(&'a str, &'a str)>);

impl Variables for Lines<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }
}

fuzz_target!(|text: &str| {
    let (word, rest) = text.split_once('\n').unwrap_or((text, ""));
    let variables = Lines(rest.lines().filter_map(|line| line.split_once('=')).collect());
    for escape in ['\\', '`'] {
        for options in 0..16 {
            let mut lexer = Lexer::new(escape);
            lexer.raw_quotes = options & 1 != 0;
            lexer.raw_escapes = options & 2 != 0;
            lexer.literal_quotes = options & 4 != 0;
            lexer.keep_unset = options & 8 != 0;
            let expanded = lexer.expand(word, &variables);
            assert_eq!(expanded.map(|e| e.words).ok(), lexer.words(word, &variables).ok());
        }
    }
    let _ = csv_fields(word);
    let _ = parse_chmod(word);
    let _ = parse_signal(word);
    let _ = Config::parse(word);
});
