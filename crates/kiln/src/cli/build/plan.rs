//! From flags to everything that a build needs.
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read as _};
use std::sync::Arc;

use client::build::Build;
use client::session::{Session, auth::DockerConfig};
use prost::Message as _;

use super::outputs::{self, Outputs};
use super::stdin::Input;
use super::{caches, everyday, policy, sources};
use crate::cli::environment::Environment;
use crate::cli::{Call, Mode};

pub struct Plan {
    pub build: Build,
    pub session: Session,
    pub after: After,
    /// What was made for this build alone, and goes with it.
    pub written: Option<tempfile::TempDir>,
}

/// Directories whose index is to be written when the build is done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct After {
    /// Outputs as image layouts.
    pub layouts: Vec<std::path::PathBuf>,
    /// Local caches, with the tag of the new entry.
    pub caches: Vec<(std::path::PathBuf, String)>,
}

/// `input` is read only where the flags say so.
pub fn make(call: &Call, input: Input) -> Result<Plan, String> {
    let args = &call.args;
    let mut attrs = frontend_attrs(call)?;
    let mut locals = sources::locals(args.all("local"))?;
    let mut frontend = args.text("frontend").to_owned();
    let mut output_flags = args.all("output").to_vec();
    let (mut uploads, mut written) = (BTreeMap::new(), None);
    let is_everyday = call.mode == Mode::Kiln && frontend.is_empty() && !args.operands.is_empty();
    if is_everyday {
        frontend = "dockerfile.v0".into();
        let given = everyday::fill(call, input, &mut attrs, &mut locals, &mut output_flags)?;
        (uploads, written) = (given.uploads, given.written);
    } else if let Some(extra) = args.operands.first() {
        return Err(format!("unexpected argument {extra:?}"));
    }
    let definition = if frontend.is_empty() { Some(definition(args.is_set("no-cache"))?) } else { None };
    if definition.is_none() && args.is_set("no-cache") {
        attrs.insert("no-cache".into(), String::new());
    }
    if attrs.contains_key("requestid") {
        attrs.entry("frontend.caps".into()).or_insert_with(|| "moby.buildkit.frontend.subrequests".into());
    }
    let Outputs { exporters, targets, mut stores, layouts } = outputs::parse(&output_flags)?;
    let exports = [args.all("export-cache"), args.all("cache-to")].concat();
    let imports = [args.all("import-cache"), args.all("cache-from")].concat();
    let caches = caches::parse(&exports, &imports, &call.environment)?;
    if let Some(json) = caches.imports_json() {
        attrs.insert("cache-imports".into(), json);
    }
    stores.extend(caches.stores);
    for (name, store) in sources::layouts(args.all("oci-layout"))? {
        if stores.insert(format!("oci:{name}"), store).is_some() {
            return Err(format!("oci store key \"oci:{name}\" already exists"));
        }
    }
    let secrets = sources::secrets(args.all("secret"), &call.environment)?;
    let agents = sources::agents(args.all("ssh"), &call.environment)?;

    let mut session = Session::new("").auth(Arc::new(docker_config(&call.environment)?));
    if !locals.is_empty() {
        session = session.files(locals);
    }
    if !targets.is_empty() {
        session = session.outputs(targets);
    }
    if !stores.is_empty() {
        session = session.content(stores);
    }
    if !secrets.is_empty() {
        session = session.secrets(secrets);
    }
    if !agents.is_empty() {
        session = session.ssh(agents);
    }
    if !uploads.is_empty() {
        session = session.uploads(uploads);
    }
    let build = Build {
        id: client::new_id(),
        frontend,
        frontend_attrs: attrs,
        definition,
        exporters,
        cache_exports: caches.exports,
        cache_imports: caches.imports,
        entitlements: args.all("allow").to_vec(),
        source_policy: args.get("source-policy-file").map(policy::read).transpose()?,
        internal: false,
        proxy_network: args.is_set("proxy-network"),
    };
    Ok(Plan { build, session, after: After { layouts, caches: caches.to_index }, written })
}

/// `--opt` values. A build argument without a value takes that of the environment, or is left out.
fn frontend_attrs(call: &Call) -> Result<BTreeMap<String, String>, String> {
    let mut attrs = BTreeMap::new();
    if let Some(epoch) = call.environment.filled("SOURCE_DATE_EPOCH") {
        attrs.insert("build-arg:SOURCE_DATE_EPOCH".to_owned(), epoch.to_owned());
    }
    for opt in call.args.all("opt") {
        match (opt.split_once('='), opt.strip_prefix("build-arg:")) {
            (Some((key, value)), _) => drop(attrs.insert(key.to_owned(), value.to_owned())),
            (None, Some(name)) => {
                if let Some(value) = call.environment.get(name) {
                    attrs.insert(opt.clone(), value.to_owned());
                }
            }
            (None, None) => return Err(format!("invalid opt: invalid value {opt}")),
        }
    }
    Ok(attrs)
}

/// A definition on standard input.
fn definition(no_cache: bool) -> Result<proto::pb::Definition, String> {
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        return Err("please specify --frontend or pipe LLB definition to stdin".into());
    }
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).map_err(|e| format!("failed to read the definition: {e}"))?;
    let mut definition = proto::pb::Definition::decode(bytes.as_slice()).map_err(|e| format!("failed to parse the definition: {e}"))?;
    if definition.def.is_empty() {
        return Err("empty definition sent to build. Specify --frontend instead?".into());
    }
    if no_cache {
        for op in &definition.def {
            definition.metadata.entry(oci::Digest::of(op).to_string()).or_default().ignore_cache = true;
        }
    }
    Ok(definition)
}

fn docker_config(environment: &Environment) -> Result<DockerConfig, String> {
    let Some(path) = environment.docker_config() else { return Ok(DockerConfig::default()) };
    match std::fs::read_to_string(&path) {
        Ok(text) => DockerConfig::parse(&text).map_err(|e| format!("{} is malformed: {e}", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(DockerConfig::default()),
        Err(e) => Err(format!("failed to read {}: {e}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Args;
    use crate::cli::build::{EVERYDAY_FLAGS, FLAGS};

    pub(super) fn plan(mode: Mode, args: &[&str], environment: &[(&str, &str)]) -> Result<Plan, String> {
        let args: Vec<String> = args.iter().map(|s| (*s).to_owned()).collect();
        let args = Args::parse(&[FLAGS, EVERYDAY_FLAGS].concat(), &args).unwrap();
        make(&Call { mode, args, environment: Environment::of(environment) }, Box::new(std::io::empty()))
    }

    fn with_input(args: &[&str], input: &[u8]) -> Result<Plan, String> {
        let args: Vec<String> = args.iter().map(|s| (*s).to_owned()).collect();
        let args = Args::parse(&[FLAGS, EVERYDAY_FLAGS].concat(), &args).unwrap();
        make(&Call { mode: Mode::Kiln, args, environment: Environment::of(&[]) }, Box::new(std::io::Cursor::new(input.to_vec())))
    }

    #[test]
    fn standard_input_is_a_dockerfile_or_an_archive() {
        let attr = |plan: &Plan, key: &str| plan.build.frontend_attrs.get(key).cloned().unwrap_or_default();
        let written = |plan: &Plan| std::fs::read(plan.written.as_ref().unwrap().path().join("dockerfile/Dockerfile")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().to_str().unwrap();
        for args in [&["-"][..], &["-f", "-", context], &["-f", "-", "https://h/x.git"]] {
            let plan = with_input(args, b"FROM scratch\n").unwrap();
            assert_eq!((attr(&plan, "filename").as_str(), attr(&plan, "dockerfilekey").as_str()), ("Dockerfile", "dockerfile"), "{args:?}");
            assert_eq!(written(&plan), b"FROM scratch\n");
        }
        let plan = with_input(&["-", "-f", "sub/Other"], &[0x1f, 0x8b, 8, 0]).unwrap();
        assert!(attr(&plan, "context").starts_with("http://buildkit-session/") && plan.written.is_none());
        assert_eq!((attr(&plan, "filename").as_str(), attr(&plan, "dockerfilekey").as_str()), ("sub/Other", ""));
        let refused = |args: &[&str]| with_input(args, b"FROM scratch\n").map(|_| ()).unwrap_err();
        assert_eq!(refused(&["-", "-f", "-"]), "invalid argument: can't use stdin for both build context and dockerfile");
        assert_eq!(refused(&["-", "-f", "x"]), "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles");
    }

    #[test]
    fn buildctls_way() {
        let environment = [("FOO", "env"), ("SOURCE_DATE_EPOCH", "7")];
        let args = [
            "--frontend=dockerfile.v0",
            "--opt",
            "build-arg:FOO",
            "--opt",
            "build-arg:NONE",
            "--opt=filename=a=b",
            "--no-cache",
            "--output",
            "type=image,name=x",
        ];
        let plan = plan(Mode::Buildctl, &args, &environment).unwrap();
        let attrs: Vec<(&str, &str)> = plan.build.frontend_attrs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(attrs, [("build-arg:FOO", "env"), ("build-arg:SOURCE_DATE_EPOCH", "7"), ("filename", "a=b"), ("no-cache", "")]);
        assert_eq!(plan.build.exporters[0].kind, "image");
    }

    #[test]
    fn the_everyday_way() {
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().to_str().unwrap();
        let args =
            ["-t", "a:1", "-t", "b", "--push", "--build-arg", "X=y", "--platform", "linux/amd64,linux/arm64", "--target", "t", context];
        let plan = plan(Mode::Kiln, &args, &[]).unwrap();
        let attr = |key: &str| plan.build.frontend_attrs.get(key).map(String::as_str);
        assert_eq!((attr("build-arg:X"), attr("platform"), attr("target")), (Some("y"), Some("linux/amd64,linux/arm64"), Some("t")));
        let image = &plan.build.exporters[0];
        assert_eq!((image.kind.as_str(), image.attrs["name"].as_str(), image.attrs["push"].as_str()), ("image", "a:1,b", "true"));
    }

    #[test]
    fn what_is_refused() {
        let refused = |mode, args: &[&str]| plan(mode, args, &[]).map(|_| ()).unwrap_err();
        assert_eq!(refused(Mode::Buildctl, &["--frontend=x", "dir"]), "unexpected argument \"dir\"");
        assert_eq!(refused(Mode::Buildctl, &["--frontend=x", "--opt", "plain"]), "invalid opt: invalid value plain");
        assert!(refused(Mode::Kiln, &["/no/such/directory"]).contains("/no/such/directory"));
    }
}
