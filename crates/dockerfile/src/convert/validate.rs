//! Rules about whole files, stages and names.
use std::collections::BTreeSet;

use oci::{Platform, Reference};
use patterns::Matcher;

use super::args;
use super::env::Env;
use crate::Lines;
use crate::instruction::{Dockerfile, Stage};
use crate::lint::{self, Linter};
use crate::shell::{Expanded, Lexer};
use crate::text::{nearest, quote};

pub(super) fn stage_names(stages: &[Stage], linter: &Linter) {
    let mut seen = BTreeSet::new();
    for stage in stages.iter().filter(|s| !s.name.is_empty()) {
        let name = quote(&stage.name);
        if matches!(stage.name.as_str(), "context" | "scratch") {
            linter.warn(&lint::RESERVED_STAGE_NAME, stage.lines, || {
                format!("Stage name should not use the same name as reserved stage {name}")
            });
        }
        if !seen.insert(&stage.name) {
            linter.warn(&lint::DUPLICATE_STAGE_NAME, stage.lines, || format!("Duplicate stage name {name}, stage names should be unique"));
        }
    }
}

pub(super) fn casing(stages: &[Stage], linter: &Linter) {
    let keywords = || {
        stages.iter().flat_map(|stage| {
            let own = std::iter::once((stage.keyword.as_str(), stage.lines));
            own.chain(stage.instructions.iter().map(|i| (i.keyword.as_str(), Some(i.lines))))
        })
    };
    let lower = keywords().filter(|(k, _)| *k == k.to_lowercase()).count();
    let upper = keywords().filter(|(k, _)| *k == k.to_uppercase() && *k != k.to_lowercase()).count();
    for (keyword, lines) in keywords() {
        let (right, name) =
            if lower > upper { (keyword == keyword.to_lowercase(), "lowercase") } else { (keyword == keyword.to_uppercase(), "uppercase") };
        if !right {
            linter.warn(&lint::CONSISTENT_INSTRUCTION_CASING, lines, || {
                format!("Command '{keyword}' should match the case of the command majority ({name})")
            });
        }
    }
}

/// Base names must also make sense if nobody gives an argument.
pub(super) fn default_base_names(file: &Dockerfile, lexer: &Lexer, automatic: &Env, linter: &Linter) {
    let Ok((env, _)) = args::global(automatic, lexer, &file.global_args, &Default::default()) else { return };
    for stage in &file.stages {
        let Ok(base) = lexer.expand(&stage.base, &env) else { return };
        if base.text.parse::<Reference>().is_err() {
            linter.warn(&lint::INVALID_DEFAULT_ARG_IN_FROM, stage.lines, || {
                format!("Default value for ARG {} results in empty or invalid base image name", stage.base)
            });
        }
    }
}

pub(super) fn undeclared_in_from(declared: &BTreeSet<String>, unmatched: &BTreeSet<String>, lines: Option<Lines>, linter: &Linter) {
    for name in unmatched.iter().filter(|name| !declared.contains(*name)) {
        linter.warn(&lint::UNDEFINED_ARG_IN_FROM, lines, || {
            let guess = nearest(name, declared, true).map_or_else(String::new, |guess| format!(" (did you mean {guess}?)"));
            format!("FROM argument '{name}' is not declared{guess}")
        });
    }
}

pub(super) fn redundant_platform(written: &str, found: &Expanded, lines: Option<Lines>, global: &Env, linter: &Linter) {
    const TARGET: &str = "TARGETPLATFORM";
    let only = found.matched.len() == 1 && found.unmatched.is_empty() && found.matched.contains(TARGET);
    if only && global.get(TARGET) == Some(&found.text) {
        linter.warn(&lint::REDUNDANT_TARGET_PLATFORM, lines, || {
            format!("Setting platform to predefined {written} in FROM is redundant as this is the default behavior")
        });
    }
}

pub(super) fn constant_platform(stage: &str, found: &Expanded, lines: Option<Lines>, linter: &Linter) {
    if !found.matched.is_empty() || !found.unmatched.is_empty() {
        return;
    }
    let Ok(platform) = crate::parse_platform(&found.text) else { return };
    // A stage that is named after its platform means it.
    if stage.contains(&platform.os) || stage.contains(&platform.architecture) {
        return;
    }
    linter.warn(&lint::FROM_PLATFORM_FLAG_CONST_DISALLOWED, lines, || {
        format!("FROM --platform flag should not use constant value {}", quote(&found.text))
    });
}

pub(super) fn base_platform(image: &str, expected: &Platform, actual: &Platform, lines: Option<Lines>, linter: &Linter) {
    if expected.os != actual.os || expected.architecture != actual.architecture {
        linter.warn(&lint::INVALID_BASE_IMAGE_PLATFORM, lines, || {
            let (actual, expected) = (actual.clone().normalized().to_string(), expected.clone().normalized().to_string());
            format!("Base image {image} was pulled with platform {}, expected {} for current build", quote(&actual), quote(&expected))
        });
    }
}

const SECRET_WORDS: [&str; 10] = ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const HARMLESS_WORDS: [&str; 3] = ["public", "file", "version"];

/// Names that sound like secrets.
pub(super) fn secret_name(instruction: &str, key: &str, lines: Lines, linter: &Linter) {
    let lower = key.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
    if has(&SECRET_WORDS) && !has(&HARMLESS_WORDS) {
        linter.warn(&lint::SECRETS_USED_IN_ARG_OR_ENV, lines, || {
            format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {})", quote(key))
        });
    }
}

/// Files that the ignore file keeps out of the context.
pub(super) fn ignored_source(path: &str, is_add: bool, ignore: Option<&Matcher>, lines: Lines, linter: &Linter) {
    let Some(ignore) = ignore.filter(|m| !m.has_exclusions()) else { return };
    let path = patterns::clean(path);
    let is_root = path == "." || path == "/";
    if is_root && !ignore.patterns().iter().any(|p| !p.is_exclusion() && matches!(p.text(), "*" | "**" | "**/*")) {
        return;
    }
    if ignore.matches(&path).unwrap_or(false) {
        let verb = if is_add { "Add" } else { "Copy" };
        linter.warn(&lint::COPY_IGNORED_FILE, lines, || {
            format!("Attempting to {verb} file {} that is excluded by .dockerignore", quote(&path))
        });
    }
}
