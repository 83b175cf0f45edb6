//! What progress calls steps: `[linux/amd64->arm64 build 2/4] RUN make`.
use oci::Platform;

use super::stage::StageState;
use crate::parse_platform;
use crate::shell::{Lexer, Variables};

/// Counts the step and puts its number in front of `text`. Without a platform none is shown.
pub(super) fn prefix(stage: &mut StageState, text: &str, platform: Option<&Platform>, env: &dyn Variables) -> String {
    if stage.total == 0 {
        return text.to_owned();
    }
    stage.step += 1;
    numbered(stage, text, platform, env)
}

/// The same for the step that was counted last.
pub(super) fn numbered(stage: &StageState, text: &str, platform: Option<&Platform>, env: &dyn Variables) -> String {
    if stage.total == 0 {
        return text.to_owned();
    }
    let mut name = String::from("[");
    if let Some(platform) = platform {
        name.push_str(&format!("{platform}{} ", cross_target(platform, env)));
    }
    if !stage.shown_name.is_empty() {
        name.push_str(&format!("{} ", stage.shown_name));
    }
    let width = stage.total.to_string().len();
    name.push_str(&format!("{:width$}/{}] ", stage.step, stage.total));
    if stage.in_trigger {
        name.push_str("ONBUILD ");
    }
    name + text
}

/// `->arm64` where the environment says that the step builds for another platform than it runs on.
fn cross_target(base: &Platform, env: &dyn Variables) -> String {
    let Some(mut target) = target_of(env) else { return String::new() };
    if target.os.is_empty() {
        target.os = base.os.clone();
    }
    if target.architecture.is_empty() {
        target.architecture = base.architecture.clone();
    }
    let target = target.normalized();
    if target.os != base.os {
        return format!("->{target}");
    }
    match (target.architecture != base.architecture, target.variant.as_str()) {
        (false, _) => String::new(),
        (true, "") => format!("->{}", target.architecture),
        (true, variant) => format!("->{}/{variant}", target.architecture),
    }
}

fn target_of(env: &dyn Variables) -> Option<Platform> {
    let mut found: Option<Platform> = None;
    for name in env.names() {
        let value = env.get(name).unwrap_or_default().to_owned();
        match name {
            "TARGETPLATFORM" => match parse_platform(&value) {
                Ok(platform) => return Some(platform),
                Err(_) => continue,
            },
            "TARGETOS" => found.get_or_insert_default().os = value,
            "TARGETARCH" => found.get_or_insert_default().architecture = value,
            "TARGETVARIANT" => found.get_or_insert_default().variant = value,
            _ => {}
        }
    }
    found
}

/// The instruction as written, its keyword in capitals and its variables expanded as far as that works.
pub(super) fn shown(code: &str, lexer: &Lexer, env: &dyn Variables) -> String {
    let text = lexer.expand(code, env).map_or_else(|_| code.to_owned(), |e| e.text);
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// The first line of a heredoc, for the name of its step.
pub(super) fn summary(document: &str) -> String {
    let document = document.trim();
    match document.split_once('\n') {
        Some((first, _)) => format!("{}...", first.strip_suffix('\r').unwrap_or(first)),
        None => document.to_owned(),
    }
}
