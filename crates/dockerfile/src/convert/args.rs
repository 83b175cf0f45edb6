//! ARGs: those that are always there, those in front of the first FROM.
use std::collections::BTreeMap;

use oci::Platform;

use super::env::Env;
use super::stage::CapturedArg;
use crate::Result;
use crate::instruction::{Command, Instruction};
use crate::shell::Lexer;

/// The arguments that tell about platforms and the target.
pub(super) fn automatic(build: &Platform, target: &Platform, overrides: &BTreeMap<String, String>, stage: &str) -> Env {
    let short = Platform { os_version: String::new(), os_features: Vec::new(), ..build.clone() };
    let mut env = Env::default();
    for (key, value) in [
        ("BUILDPLATFORM", short.to_string().as_str()),
        ("BUILDOS", &build.os),
        ("BUILDOSVERSION", &build.os_version),
        ("BUILDARCH", &build.architecture),
        ("BUILDVARIANT", &build.variant),
        ("TARGETPLATFORM", &target.to_string()),
        ("TARGETOS", &target.os),
        ("TARGETOSVERSION", &target.os_version),
        ("TARGETARCH", &target.architecture),
        ("TARGETVARIANT", &target.variant),
        ("TARGETSTAGE", if stage.is_empty() { "default" } else { stage }),
    ] {
        env.set(key, overrides.get(key).map_or(value, String::as_str));
    }
    env
}

/// The environment that FROM lines see, and what each argument came from.
pub(super) fn global(
    automatic: &Env,
    lexer: &Lexer,
    instructions: &[Instruction],
    given: &BTreeMap<String, String>,
) -> Result<(Env, BTreeMap<String, CapturedArg>)> {
    let mut env = automatic.clone();
    let mut captured: BTreeMap<String, CapturedArg> = BTreeMap::new();
    for instruction in instructions {
        let Command::Arg(args) = &instruction.command else { continue };
        for arg in args {
            let mut arg = arg.clone();
            let mut deps = Default::default();
            if let Some(value) = given.get(&arg.key) {
                arg.value = Some(value.clone());
            } else if let Some(default) = &arg.value {
                let mut expanded = lexer.expand(default, &env).map_err(|e| crate::Error::from(e).at(instruction.lines))?;
                if expanded.matched.remove(&arg.key)
                    && let Some(earlier) = captured.get(&arg.key)
                {
                    expanded.matched.extend(earlier.deps.iter().cloned());
                }
                arg.value = Some(expanded.text);
                deps = expanded.matched;
            }
            if let Some(value) = &arg.value {
                env.set(&arg.key, value);
            }
            let value = arg.value.clone().unwrap_or_default();
            captured.insert(arg.key.clone(), CapturedArg { value, arg, deps, lines: instruction.lines });
        }
    }
    Ok((env, captured))
}
