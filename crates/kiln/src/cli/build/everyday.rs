//! The everyday form, `kiln build -t name DIRECTORY`, in terms of the Dockerfile frontend's options.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cli::Call;
use crate::cli::args::csv;

pub fn fill(
    call: &Call,
    attrs: &mut BTreeMap<String, String>,
    locals: &mut BTreeMap<String, PathBuf>,
    outputs: &mut Vec<String>,
) -> Result<(), String> {
    let args = &call.args;
    let [context] = args.operands.as_slice() else { return Err("one directory is built at a time".into()) };
    let file = args.get("file");
    if is_remote(context) {
        attrs.insert("context".into(), context.clone());
        if let Some(file) = file {
            attrs.insert("filename".into(), file.to_owned());
        }
    } else {
        let directory = directory(context)?;
        let dockerfile = file.map_or_else(|| directory.join("Dockerfile"), PathBuf::from);
        let dockerfile = if dockerfile.is_dir() { dockerfile.join("Dockerfile") } else { dockerfile };
        let name =
            dockerfile.file_name().and_then(|name| name.to_str()).ok_or_else(|| format!("{} is no file name", dockerfile.display()))?;
        attrs.insert("filename".into(), name.to_owned());
        let parent = dockerfile.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        locals.entry("dockerfile".into()).or_insert_with(|| parent.to_owned());
        locals.entry("context".into()).or_insert(directory);
    }
    for (flag, key) in [("target", "target"), ("network", "force-network-mode")] {
        if let Some(value) = args.get(flag) {
            attrs.insert(key.into(), value.to_owned());
        }
    }
    if args.has("platform") {
        attrs.insert("platform".into(), args.all("platform").join(","));
    }
    if args.is_set("pull") {
        attrs.insert("image-resolve-mode".into(), "pull".into());
    }
    if args.has("add-host") {
        attrs.insert("add-hosts".into(), args.all("add-host").iter().map(|host| host.replacen(':', "=", 1)).collect::<Vec<_>>().join(","));
    }
    for arg in args.all("build-arg") {
        match (arg.split_once('='), call.environment.get(arg)) {
            (Some((name, value)), _) => drop(attrs.insert(format!("build-arg:{name}"), value.to_owned())),
            (None, Some(value)) => drop(attrs.insert(format!("build-arg:{arg}"), value.to_owned())),
            (None, None) => {}
        }
    }
    for label in args.all("label") {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        attrs.insert(format!("label:{key}"), value.to_owned());
    }
    for named in args.all("build-context") {
        let (name, value) = named.split_once('=').ok_or_else(|| format!("invalid build context {named:?}: NAME=VALUE is wanted"))?;
        if is_remote(value) || value.contains("://") || value.starts_with("target:") {
            attrs.insert(format!("context:{name}"), value.to_owned());
        } else {
            let local = format!("context-{name}");
            attrs.insert(format!("context:{name}"), format!("local:{local}"));
            locals.insert(local, directory(value)?);
        }
    }
    image_output(call, outputs)
}

/// Tags mean an image; where other outputs are given too, an image among them takes the names.
fn image_output(call: &Call, outputs: &mut Vec<String>) -> Result<(), String> {
    let args = &call.args;
    for output in outputs.iter_mut() {
        // `-o dir` and `-o -`, as docker takes them.
        if !csv(output)?.iter().any(|field| field.contains('=')) {
            *output = if output == "-" { "type=tar,dest=-".into() } else { format!("type=local,\"dest={output}\"") };
        }
    }
    let names = args.all("tag").join(",");
    if names.is_empty() {
        return if args.is_set("push") { Err("tag is needed when pushing to registry".into()) } else { Ok(()) };
    }
    let push = if args.is_set("push") { ",push=true" } else { "" };
    let takes_name = |output: &String| {
        let fields = csv(output).unwrap_or_default();
        let kind = fields.iter().find_map(|field| field.strip_prefix("type=")).unwrap_or_default();
        matches!(kind, "image" | "oci" | "docker") && !fields.iter().any(|field| field.starts_with("name="))
    };
    match outputs.iter_mut().find(|output| takes_name(output)) {
        Some(output) => *output += &format!(",\"name={names}\"{push}"),
        None => outputs.push(format!("type=image,\"name={names}\"{push}")),
    }
    Ok(())
}

fn is_remote(context: &str) -> bool {
    let remote = ["http://", "https://", "git://", "ssh://", "git@", "github.com/"];
    remote.iter().any(|prefix| context.starts_with(prefix)) && !Path::new(context).exists()
}

fn directory(path: &str) -> Result<PathBuf, String> {
    if path == "-" {
        return Err("a context on standard input is not supported: unpack it into a directory".into());
    }
    let place = PathBuf::from(path);
    if place.is_dir() { Ok(place) } else { Err(format!("build context {path} is not a directory")) }
}
