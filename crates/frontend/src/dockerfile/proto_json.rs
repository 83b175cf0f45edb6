//! Ops as protobuf's own JSON writes them: names in camel case, zeros left out, 64-bit numbers as text, bytes in base 64.
use std::collections::BTreeSet;

use base64::Engine as _;
use llb::{
    CdiDevice, ContentCache, Copy, Edge, ExecOp, FileAction, FileActionKind, Graph, Meta, Mount, MountKind, NetMode, Op, Owner, SecretOpt,
    SecurityMode, Sharing, Vertex, Who,
};
use oci::{Digest, Platform};
use serde_json::{Map, Value, json};

/// A message. Fields are put in the order of their declaration.
#[derive(Default)]
struct Message(Map<String, Value>);

impl Message {
    fn value(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    fn text(self, key: &str, text: &str) -> Self {
        if text.is_empty() { self } else { self.value(key, text) }
    }

    fn flag(self, key: &str, flag: bool) -> Self {
        if flag { self.value(key, true) } else { self }
    }

    /// 32 bits or fewer.
    fn short(self, key: &str, number: i64) -> Self {
        if number == 0 { self } else { self.value(key, number) }
    }

    fn long(self, key: &str, number: i64) -> Self {
        if number == 0 { self } else { self.value(key, number.to_string()) }
    }

    fn index(self, key: &str, index: Option<u32>) -> Self {
        self.long(key, wire_index(index))
    }

    fn list(self, key: &str, items: Vec<Value>) -> Self {
        if items.is_empty() { self } else { self.value(key, items) }
    }

    fn texts(self, key: &str, items: &[String]) -> Self {
        self.list(key, items.iter().map(|item| item.as_str().into()).collect())
    }

    fn message(self, key: &str, message: Option<Message>) -> Self {
        match message {
            Some(message) => self.value(key, message),
            None => self,
        }
    }
}

impl From<Message> for Value {
    fn from(message: Message) -> Self {
        Value::Object(message.0)
    }
}

fn wire_index(index: Option<u32>) -> i64 {
    index.map_or(-1, i64::from)
}

pub(super) fn base64(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

/// A vertex's op. `None` for nested builds, which no Dockerfile makes.
pub(super) fn op(vertex: &Vertex) -> Option<Value> {
    let inputs = vertex.inputs.iter().map(|edge| input(edge).into()).collect();
    let message = Message::default().list("inputs", inputs);
    let message = match &vertex.op {
        Op::Exec(op) => message.value("exec", exec(op)),
        Op::Source(op) => {
            let source = Message::default().text("identifier", &op.identifier);
            let source = if op.attrs.is_empty() { source } else { source.value("attrs", json!(op.attrs)) };
            message.value("source", source)
        }
        Op::File(op) => message.value("file", Message::default().list("actions", op.actions.iter().map(|a| action(a).into()).collect())),
        Op::Merge(parts) => {
            let part = |index: &Option<u32>| Message::default().index("input", *index).into();
            message.value("merge", Message::default().list("inputs", parts.iter().map(part).collect()))
        }
        Op::Diff { lower, upper } => {
            let side = |index: &Option<u32>| Some(Message::default().index("input", *index));
            message.value("diff", Message::default().message("lower", side(lower)).message("upper", side(upper)))
        }
        Op::Passthrough { id, outputs } => {
            let outputs = outputs.iter().map(|output| output.to_string().into()).collect();
            message.value("passthrough", Message::default().text("id", id).list("outputs", outputs))
        }
        Op::Build(_) => return None,
    };
    let constraints = Message::default().texts("filter", &vertex.constraints);
    Some(message.message("platform", vertex.platform.as_ref().map(platform)).value("constraints", constraints).into())
}

/// The op that ends a definition.
pub(super) fn terminal(result: &Edge) -> Value {
    Message::default().list("inputs", vec![input(result).into()]).into()
}

fn input(edge: &Edge) -> Message {
    Message::default().text("digest", edge.vertex.as_str()).long("index", i64::from(edge.output))
}

fn platform(platform: &Platform) -> Message {
    Message::default()
        .text("Architecture", &platform.architecture)
        .text("OS", &platform.os)
        .text("Variant", &platform.variant)
        .text("OSVersion", &platform.os_version)
        .texts("OSFeatures", &platform.os_features)
}

fn exec(op: &ExecOp) -> Message {
    let secret = |s: &llb::SecretEnv| Message::default().text("ID", &s.id).text("name", &s.name).flag("optional", s.optional).into();
    let device = |d: &CdiDevice| Message::default().text("name", &d.name).flag("optional", d.optional).into();
    let network = match op.network {
        NetMode::Unset => "",
        NetMode::Host => "HOST",
        NetMode::None => "NONE",
    };
    Message::default()
        .value("meta", meta(&op.meta))
        .list("mounts", op.mounts.iter().map(|m| mount(m).into()).collect())
        .text("network", network)
        .text("security", if op.security == SecurityMode::Insecure { "INSECURE" } else { "" })
        .list("secretenv", op.secret_env.iter().map(secret).collect())
        .list("cdiDevices", op.cdi_devices.iter().map(device).collect())
}

fn meta(meta: &Meta) -> Message {
    let proxy = meta.proxy_env.as_ref().map(|proxy| {
        Message::default()
            .text("httpProxy", &proxy.http_proxy)
            .text("httpsProxy", &proxy.https_proxy)
            .text("ftpProxy", &proxy.ftp_proxy)
            .text("noProxy", &proxy.no_proxy)
            .text("allProxy", &proxy.all_proxy)
    });
    let host = |h: &llb::HostIp| Message::default().text("Host", &h.host).text("IP", &h.ip).into();
    let ulimit = |u: &llb::Ulimit| Message::default().text("Name", &u.name).long("Soft", u.soft).long("Hard", u.hard).into();
    Message::default()
        .texts("args", &meta.args)
        .texts("env", &meta.env)
        .text("cwd", &meta.cwd)
        .text("user", &meta.user)
        .message("proxyEnv", proxy)
        .list("extraHosts", meta.extra_hosts.iter().map(host).collect())
        .text("hostname", &meta.hostname)
        .list("ulimit", meta.ulimits.iter().map(ulimit).collect())
        .text("cgroupParent", &meta.cgroup_parent)
        .flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .list("validExitCodes", meta.valid_exit_codes.iter().map(|code| (*code).into()).collect())
}

fn mount(mount: &Mount) -> Message {
    let (kind, key, opt) = match &mount.kind {
        MountKind::Bind => ("", "", None),
        MountKind::Cache { id, sharing } => ("CACHE", "cacheOpt", Some(cache(id, *sharing))),
        MountKind::Tmpfs { size } => ("TMPFS", "TmpfsOpt", Some(Message::default().long("size", *size))),
        MountKind::Secret(opt) => ("SECRET", "secretOpt", Some(secret(opt))),
        MountKind::Ssh(opt) => ("SSH", "SSHOpt", Some(secret(opt))),
    };
    // Secrets and sockets have no output, which the wire says with its zero.
    let output = if matches!(mount.kind, MountKind::Secret(_) | MountKind::Ssh(_)) { 0 } else { wire_index(mount.output) };
    let content_cache = match mount.content_cache {
        ContentCache::Default => "",
        ContentCache::On => "ON",
        ContentCache::Off => "OFF",
    };
    Message::default()
        .index("input", mount.input)
        .text("selector", &mount.selector)
        .text("dest", &mount.dest)
        .long("output", output)
        .flag("readonly", mount.readonly)
        .text("mountType", kind)
        .message(key, opt)
        .text("resultID", &mount.result_id)
        .text("contentCache", content_cache)
}

fn cache(id: &str, sharing: Sharing) -> Message {
    let sharing = match sharing {
        Sharing::Shared => "",
        Sharing::Private => "PRIVATE",
        Sharing::Locked => "LOCKED",
    };
    Message::default().text("ID", id).text("sharing", sharing)
}

fn secret(opt: &SecretOpt) -> Message {
    Message::default()
        .text("ID", &opt.id)
        .short("uid", i64::from(opt.uid))
        .short("gid", i64::from(opt.gid))
        .short("mode", i64::from(opt.mode))
        .flag("optional", opt.optional)
}

fn action(action: &FileAction) -> Message {
    let message =
        Message::default().index("input", action.input).index("secondaryInput", action.secondary_input).index("output", action.output);
    match &action.kind {
        FileActionKind::Copy(files) => message.value("copy", copy(files)),
        FileActionKind::Mkfile { path, mode, data, owner, timestamp } => {
            let file = Message::default().text("path", path).short("mode", i64::from(*mode)).text("data", &base64(data));
            message.value("mkfile", file.message("owner", owner.as_ref().map(chown)).long("timestamp", *timestamp))
        }
        FileActionKind::Mkdir { path, mode, make_parents, owner, timestamp } => {
            let dir = Message::default().text("path", path).short("mode", i64::from(*mode)).flag("makeParents", *make_parents);
            message.value("mkdir", dir.message("owner", owner.as_ref().map(chown)).long("timestamp", *timestamp))
        }
        FileActionKind::Rm { path, allow_not_found, allow_wildcard } => {
            let rm = Message::default().text("path", path).flag("allowNotFound", *allow_not_found);
            message.value("rm", rm.flag("allowWildcard", *allow_wildcard))
        }
        FileActionKind::Symlink { oldpath, newpath, owner, timestamp } => {
            let link = Message::default().text("oldpath", oldpath).text("newpath", newpath);
            message.value("symlink", link.message("owner", owner.as_ref().map(chown)).long("timestamp", *timestamp))
        }
    }
}

fn copy(copy: &Copy) -> Message {
    Message::default()
        .text("src", &copy.src)
        .text("dest", &copy.dest)
        .message("owner", copy.owner.as_ref().map(chown))
        .short("mode", i64::from(copy.mode))
        .flag("followSymlink", copy.follow_symlink)
        .flag("dirCopyContents", copy.dir_copy_contents)
        .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack)
        .flag("createDestPath", copy.create_dest_path)
        .flag("allowWildcard", copy.allow_wildcard)
        .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
        .long("timestamp", copy.timestamp)
        .texts("includePatterns", &copy.include_patterns)
        .texts("excludePatterns", &copy.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
        .text("modeStr", &copy.mode_str)
        .texts("requiredPaths", &copy.required_paths)
}

fn chown(owner: &Owner) -> Message {
    let who = |who: &Who| match who {
        Who::Id(id) => Message::default().value("byID", *id),
        Who::Name { name, input } => Message::default().value("byName", Message::default().text("name", name).index("input", *input)),
    };
    Message::default().message("user", owner.user.as_ref().map(who)).message("group", owner.group.as_ref().map(who))
}

/// Where vertices stem from; those that stem from nowhere are named too. `definition` is what the files were read from.
pub(super) fn source_map(graph: &Graph, definition: Value) -> Value {
    let position = |(line, character): (i32, i32)| Message::default().short("line", line.into()).short("character", character.into());
    let range = |r: &llb::Range| Message::default().value("start", position(r.start)).value("end", position(r.end)).into();
    let location = |l: &llb::Location| {
        Message::default().short("sourceIndex", l.source as i64).list("ranges", l.ranges.iter().map(range).collect()).into()
    };
    let digests: BTreeSet<&Digest> = graph.vertices.iter().map(|vertex| &vertex.digest).collect();
    let locations = digests.into_iter().map(|digest| {
        let all = graph.locations(digest).iter().map(location).collect();
        (digest.to_string(), Message::default().list("locations", all).into())
    });
    let info = |i: &llb::SourceInfo| {
        let message = Message::default().text("filename", &i.filename).text("data", &base64(&i.data));
        let message = if i.definition.is_some() { message.value("definition", definition.clone()) } else { message };
        message.text("language", &i.language).into()
    };
    Message::default()
        .value("locations", Value::Object(locations.collect()))
        .list("infos", graph.sources.infos.iter().map(info).collect())
        .into()
}
