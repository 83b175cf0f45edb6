//! Named contexts: `context:<name>[::<platform>]` options that stand in for stages and images.
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use dockerfile::GitRef;
use dockerfile::convert::{ContextFiles, LoadedContext, NamedContext};
use dockerfile::source::{self, Local, ResolveMode};
use fault::{Context as _, Fault, Result};
use llb::{Graph, SourceOp};
use oci::{ImageConfig, Platform, Reference};

use super::answers::{Images, image_request, not_an_image};
use super::context::{IGNORE_FILE, named_git};
use super::opts::{Config, invalid};
use crate::bridge::{Bridge, ResolveRequest, SolveRequest};

/// How often source policy may turn one source into another.
const MAX_REDIRECTS: usize = 10;

pub(super) fn find(config: &Config, name: &str, platform: Option<&Platform>) -> Result<Option<NamedContext>> {
    let reference: Reference = name.parse().map_err(|e| invalid(format!("invalid context name {name}: {e}")))?;
    Ok(keys(&reference, platform).find_map(|key| {
        let input = config.opts.get(&format!("context:{key}"))?.clone();
        Some(NamedContext { name: short(&reference), key, input })
    }))
}

/// As whom a context may be named: for its platform first.
fn keys(reference: &Reference, platform: Option<&Platform>) -> impl Iterator<Item = String> {
    let platform = platform.cloned().unwrap_or_else(Platform::host).normalized();
    let name = short(reference);
    [format!("{name}::{platform}"), name].into_iter()
}

fn short(reference: &Reference) -> String {
    let familiar = reference.familiar();
    familiar.strip_suffix(":latest").unwrap_or(&familiar).to_owned()
}

/// What the request puts in the place of an image.
pub struct Replacement {
    /// `None` is scratch.
    pub graph: Option<Arc<Graph>>,
    pub config: Option<ImageConfig>,
}

/// What a named context of the bridge's request puts in the place of the image `name`, if one does.
pub async fn replacement(bridge: &dyn Bridge, name: &str) -> Result<Option<Replacement>> {
    let config = Config::parse(bridge.build())?;
    let Some(context) = find(&config, name, None)? else { return Ok(None) };
    let LoadedContext { files, image } = load(&Images::new(bridge, &config), &context, None, ResolveMode::Default).await?;
    let graph = match files {
        ContextFiles::Graph(graph) => graph,
        ContextFiles::Local { local, name } => Some(Arc::new(source::local(&local).named(name).into_graph())),
    };
    Ok(Some(Replacement { graph, config: image }))
}

/// Whether there is one.
pub fn is_replaced(opts: &BTreeMap<String, String>, name: &str) -> bool {
    name.parse().is_ok_and(|reference: Reference| keys(&reference, None).any(|key| opts.contains_key(&format!("context:{key}"))))
}

pub(super) async fn load(
    images: &Images<'_>,
    context: &NamedContext,
    platform: Option<&Platform>,
    mode: ResolveMode,
) -> Result<LoadedContext> {
    let mut context = context.clone();
    for _ in 0..=MAX_REDIRECTS {
        match load_once(images, &context, platform, mode).await? {
            Loaded::Done(loaded) => return Ok(*loaded),
            Loaded::Elsewhere(input) => context.input = input,
        }
    }
    let why = "this may indicate a cycle in the provided source policies";
    Err(invalid(format!("context recursion limit exceeded; {why}: {}", context.input)))
}

enum Loaded {
    Done(Box<LoadedContext>),
    /// Policy says that it is to be had from here.
    Elsewhere(String),
}

async fn load_once(images: &Images<'_>, context: &NamedContext, platform: Option<&Platform>, mode: ResolveMode) -> Result<Loaded> {
    let NamedContext { key, input, .. } = context;
    let Some((kind, rest)) = input.split_once(':') else {
        return Err(invalid(format!("invalid context specifier {input} for {key}")));
    };
    let plain = |graph: Graph| Loaded::Done(Box::new(LoadedContext { files: ContextFiles::Graph(Some(Arc::new(graph))), image: None }));
    let location = rest.strip_prefix("//").unwrap_or(rest);
    Ok(match kind {
        "docker-image" => return image(images, context, location, platform, mode).await,
        kind if kind == "git" || kind.starts_with("git@") => match GitRef::parse(input) {
            Some(git) => plain(named_git(input, &git.map_err(fault_of)?).into_graph()),
            None => return Err(invalid(format!("invalid git context {input}"))),
        },
        "http" | "https" => match GitRef::parse(input) {
            Some(git) => plain(named_git(input, &git.map_err(fault_of)?).into_graph()),
            None => plain(source::http(input, "context", "").named(format!("[context {key}] {input}")).into_graph()),
        },
        "oci-layout" => Loaded::Done(Box::new(oci_layout(images, context, location, platform).await?)),
        "local" => Loaded::Done(Box::new(local(images, context, rest).await?)),
        "input" => Loaded::Done(Box::new(client_input(images, context, rest).await?)),
        other => return Err(invalid(format!("unsupported context source {other} for {key}"))),
    })
}

fn fault_of(error: dockerfile::Error) -> Fault {
    invalid(error.to_string())
}

fn parse_config(data: &[u8]) -> Result<ImageConfig> {
    ImageConfig::parse(data).map_err(|e| invalid(std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string)))
}

async fn image(
    images: &Images<'_>,
    context: &NamedContext,
    written: &str,
    platform: Option<&Platform>,
    mode: ResolveMode,
) -> Result<Loaded> {
    if written == "scratch" {
        return Ok(Loaded::Done(Box::new(LoadedContext { files: ContextFiles::Graph(None), image: None })));
    }
    let key = &context.key;
    let reference: Reference = written.parse().map_err(|e: oci::ReferenceError| invalid(e.to_string()))?;
    let full = reference.or_latest().to_string();
    let log_name = format!("[context {key}] load metadata for {written}");
    let found = images.resolve(image_request(&full, platform, mode, log_name)).await?;
    let Some((_, config)) = found.image else {
        let (scheme, rest) =
            found.reference.split_once("://").ok_or_else(|| invalid(format!("could not parse ref: {}", found.reference)))?;
        return Ok(Loaded::Elsewhere(format!("{scheme}:{rest}")));
    };
    let config = parse_config(&config)?;
    let named: Reference = found.reference.parse().map_err(|e: oci::ReferenceError| invalid(e.to_string()))?;
    let platform = platform.unwrap_or(images.config.native_platform()).clone();
    let source = source::image(&named.or_latest().to_string(), Some(platform), ResolveMode::Default);
    let graph = source.named(format!("[context {key}] {written}")).into_graph();
    Ok(Loaded::Done(Box::new(LoadedContext {
        files: ContextFiles::Graph(Some(Arc::new(graph))),
        image: Some(ImageConfig { created: None, ..config }),
    })))
}

/// `name@digest`; the name is the client's content store.
async fn oci_layout(images: &Images<'_>, context: &NamedContext, written: &str, platform: Option<&Platform>) -> Result<LoadedContext> {
    let wrong = |what: &str| invalid(format!("oci-layout reference {written:?} has no {what}"));
    let (store, digest) = match written.split_once('@') {
        Some(("", _)) => return Err(wrong("name")),
        Some((store, digest)) => (store, digest),
        None => return Err(wrong("digest")),
    };
    let store = store.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(store, |(name, _)| name);
    let could_not = |e: &dyn std::fmt::Display| invalid(format!("could not parse oci-layout reference {written:?}: {e}"));
    let digest: oci::Digest = digest.parse().map_err(|e| could_not(&e))?;
    let name: Reference =
        context.name.parse().map_err(|e| invalid(format!("could not parse oci-layout reference {:?}: {e}", context.name)))?;
    let dummy = name.with_digest(digest).to_string();
    let session = images.bridge.build().session_id.clone();
    let request = ResolveRequest {
        op: SourceOp {
            identifier: format!("oci-layout://{dummy}"),
            attrs: BTreeMap::from([("oci.session".into(), session.clone()), ("oci.store".into(), store.to_owned())]),
        },
        platform: platform.cloned(),
        log_name: format!("[context {}] load metadata for {dummy}", context.key),
        ..ResolveRequest::default()
    };
    let found = images.resolve(request).await?;
    let Some((_, config)) = found.image else { return Err(not_an_image(&dummy, &found.reference)) };
    let config = parse_config(&config).context("could not parse oci-layout image config")?;
    let platform = platform.unwrap_or(images.config.native_platform()).clone();
    let source = source::oci_layout(&dummy, Some(platform), &session, store);
    let graph = source.named(format!("[context {}] OCI load from client", context.key)).into_graph();
    Ok(LoadedContext { files: ContextFiles::Graph(Some(Arc::new(graph))), image: Some(ImageConfig { created: None, ..config }) })
}

/// A directory of the client. Its ignore file is read now, its files when it is known which are used.
async fn local(images: &Images<'_>, context: &NamedContext, name: &str) -> Result<LoadedContext> {
    let key = &context.key;
    let session_id = images.config.session_for(name, images.bridge.build()).to_owned();
    let ignore = Local {
        name: name.to_owned(),
        session_id: session_id.clone(),
        follow_paths: vec![IGNORE_FILE.into()],
        shared_key_hint: format!("context:{key}-{IGNORE_FILE}"),
        no_diff: true,
        ..Local::default()
    };
    let source = source::local(&ignore).named(format!("[context {key}] load {IGNORE_FILE}"));
    let request = SolveRequest { graph: Some(Arc::new(source.into_graph())), evaluate: true, ..SolveRequest::default() };
    let mut exclude = Vec::new();
    if let Some(reference) = images.bridge.solve(request).await?.single_ref()?
        && let Ok(data) = reference.read_file(IGNORE_FILE, None).await
    {
        exclude = patterns::parse_ignore_file(&data);
    }
    let shared_key = images.config.opt(&format!("sharedkey:localdir:{key}"));
    let local =
        Local { name: name.to_owned(), session_id, exclude, shared_key_hint: format!("context:{key}-{shared_key}"), ..Local::default() };
    Ok(LoadedContext { files: ContextFiles::Local { local, name: format!("[context {key}] load from client") }, image: None })
}

/// A graph that the client handed over with the request, perhaps with an image config.
async fn client_input(images: &Images<'_>, context: &NamedContext, name: &str) -> Result<LoadedContext> {
    let mut inputs = images.bridge.inputs().await?;
    let Some(graph) = inputs.remove(name) else {
        return Err(invalid(format!("invalid input {name} for {}", context.key)));
    };
    let mut image = None;
    if let Some(text) = images.config.opts.get(&format!("input-metadata:{name}")) {
        let wrong = |why: String| invalid(format!("failed to parse input metadata {text}: {why}"));
        let metadata: BTreeMap<String, String> = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if let Some(encoded) = metadata.get("containerimage.config") {
            let data = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|e| wrong(e.to_string()))?;
            image = Some(parse_config(&data).with_context(|| format!("failed to parse image config for {}", context.key))?);
        }
    }
    Ok(LoadedContext { files: ContextFiles::Graph(Some(graph)), image })
}
