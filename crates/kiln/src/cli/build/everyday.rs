//! The everyday form, `kiln build -t name DIRECTORY`, in terms of the Dockerfile frontend's options.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use client::session::{Upload, upload_url};

use super::stdin::{self, Input};
use crate::cli::Call;
use crate::cli::args::csv;

/// What stands for standard input on the command line.
const STDIN: &str = "-";

/// What came from standard input.
#[derive(Default)]
pub struct Given {
    pub uploads: BTreeMap<String, Upload>,
    pub written: Option<tempfile::TempDir>,
}

pub fn fill(
    call: &Call,
    input: Input,
    attrs: &mut BTreeMap<String, String>,
    locals: &mut BTreeMap<String, PathBuf>,
    outputs: &mut Vec<String>,
) -> Result<Given, String> {
    let args = &call.args;
    let [context] = args.operands.as_slice() else { return Err("one directory is built at a time".into()) };
    let given = place(context, args.get("file"), input, attrs, locals)?;
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
    image_output(call, outputs)?;
    Ok(given)
}

/// Where the context and the Dockerfile are.
fn place(
    context: &str,
    file: Option<&str>,
    input: Input,
    attrs: &mut BTreeMap<String, String>,
    locals: &mut BTreeMap<String, PathBuf>,
) -> Result<Given, String> {
    if is_remote(context) {
        attrs.insert("context".into(), context.to_owned());
    } else if context != STDIN {
        locals.entry("context".into()).or_insert(directory(context)?);
    }
    match (context, file) {
        (STDIN, Some(STDIN)) => return Err("invalid argument: can't use stdin for both build context and dockerfile".into()),
        (STDIN, file) => match (stdin::context(input)?, file) {
            (stdin::Context::Dockerfile(_), Some(_)) => {
                return Err("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles".into());
            }
            (stdin::Context::Dockerfile(text), None) => {
                let given = written(&text, attrs, locals)?;
                let empty = given.written.as_ref().map(|dir| dir.path().join("context"));
                locals.extend(empty.map(|empty| ("context".to_owned(), empty)));
                return Ok(given);
            }
            (stdin::Context::Archive(upload), file) => {
                let name = client::new_id();
                attrs.insert("context".into(), upload_url(&name));
                attrs.extend(file.map(|file| ("filename".to_owned(), file.to_owned())));
                return Ok(Given { uploads: BTreeMap::from([(name, upload)]), written: None });
            }
        },
        (_, Some(STDIN)) => return written(&stdin::dockerfile(input)?, attrs, locals),
        (context, file) if is_remote(context) => attrs.extend(file.map(|file| ("filename".to_owned(), file.to_owned()))),
        (directory, file) => {
            let dockerfile = file.map_or_else(|| Path::new(directory).join("Dockerfile"), PathBuf::from);
            let dockerfile = if dockerfile.is_dir() { dockerfile.join("Dockerfile") } else { dockerfile };
            let name = dockerfile.file_name().and_then(|name| name.to_str());
            attrs.insert("filename".into(), name.ok_or_else(|| format!("{} is no file name", dockerfile.display()))?.to_owned());
            let parent = dockerfile.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            locals.entry("dockerfile".into()).or_insert_with(|| parent.to_owned());
        }
    }
    Ok(Given::default())
}

/// A Dockerfile of nobody's directory gets one, with an empty context beside it.
fn written(text: &[u8], attrs: &mut BTreeMap<String, String>, locals: &mut BTreeMap<String, PathBuf>) -> Result<Given, String> {
    let failed = |error: std::io::Error| format!("failed to write the Dockerfile down: {error}");
    let dir = tempfile::Builder::new().prefix("kiln-").tempdir().map_err(failed)?;
    let place = dir.path().join("dockerfile");
    std::fs::create_dir(&place).map_err(failed)?;
    std::fs::create_dir(dir.path().join("context")).map_err(failed)?;
    std::fs::write(place.join("Dockerfile"), text).map_err(failed)?;
    locals.insert("dockerfile".into(), place);
    attrs.insert("filename".into(), "Dockerfile".into());
    // It goes before one in a context that is elsewhere.
    attrs.insert("dockerfilekey".into(), "dockerfile".into());
    Ok(Given { uploads: BTreeMap::new(), written: Some(dir) })
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
    let place = PathBuf::from(path);
    if place.is_dir() { Ok(place) } else { Err(format!("build context {path} is not a directory")) }
}
