//! An op as the JSON that BuildKit's provenance shows of it: the wire's own field names, empty fields left out, enumerations as numbers.
use base64::Engine as _;
use oci::gojson;
use prost::Message as _;
use proto::pb;

use crate::types::{Location, Range, Vertex};

impl Vertex {
    /// Compact JSON of the op, its platform and its constraints; without inputs, which mean nothing outside of the definition, and without what only
    /// this session knows of a local directory. `None` for bytes that are no op.
    pub fn to_json(&self) -> Option<String> {
        let wire = pb::Op::decode(self.encoded.clone()).ok()?;
        let mut out = Object::default();
        out.raw("Op", Some(op(wire.op.as_ref())));
        out.raw("platform", wire.platform.as_ref().map(platform));
        out.raw("constraints", wire.constraints.map(|c| Object::default().texts("filter", &c.filter).end()));
        Some(out.end())
    }
}

/// The places of one vertex, as JSON.
pub fn locations_to_json(locations: &[Location]) -> String {
    let position = |(line, character): (i32, i32)| {
        let mut out = Object::default();
        out.number("line", line.into()).number("character", character.into());
        Some(out.end())
    };
    let range = |range: &Range| {
        let mut out = Object::default();
        out.raw("start", position(range.start)).raw("end", position(range.end));
        out.end()
    };
    let location = |location: &Location| {
        let mut out = Object::default();
        out.number("sourceIndex", i64::try_from(location.source).unwrap_or_default());
        out.list("ranges", location.ranges.iter().map(range));
        out.end()
    };
    let mut out = Object::default();
    out.list("locations", locations.iter().map(location));
    out.end()
}

/// Fields in the order in which they are added; those that Go would call empty are left out.
#[derive(Default)]
struct Object(String);

impl Object {
    fn raw(&mut self, name: &str, value: Option<String>) -> &mut Self {
        let Some(value) = value else { return self };
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&gojson::to_string(name));
        self.0.push(':');
        self.0.push_str(&value);
        self
    }

    fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.raw(name, (!value.is_empty()).then(|| gojson::to_string(value)))
    }

    fn number(&mut self, name: &str, value: i64) -> &mut Self {
        self.raw(name, (value != 0).then(|| value.to_string()))
    }

    fn flag(&mut self, name: &str, value: bool) -> &mut Self {
        self.raw(name, value.then(|| "true".to_owned()))
    }

    fn list(&mut self, name: &str, values: impl ExactSizeIterator<Item = String>) -> &mut Self {
        let some = values.len() > 0;
        let values: Vec<String> = values.collect();
        self.raw(name, some.then(|| format!("[{}]", values.join(","))))
    }

    fn texts(&mut self, name: &str, values: &[String]) -> &mut Self {
        self.list(name, values.iter().map(gojson::to_string))
    }

    fn map<'m>(&mut self, name: &str, entries: impl ExactSizeIterator<Item = (&'m String, String)>) -> &mut Self {
        let some = entries.len() > 0;
        let mut inner = Self::default();
        for (key, value) in entries {
            inner.raw(key, Some(value));
        }
        self.raw(name, some.then(|| inner.end()))
    }

    fn bytes(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.text(name, &base64::engine::general_purpose::STANDARD.encode(value))
    }

    fn end(&mut self) -> String {
        format!("{{{}}}", std::mem::take(&mut self.0))
    }
}

fn op(op: Option<&pb::op::Op>) -> String {
    let mut out = Object::default();
    match op {
        None => {}
        Some(pb::op::Op::Exec(op)) => _ = out.raw("exec", Some(exec(op))),
        Some(pb::op::Op::Source(op)) => _ = out.raw("source", Some(source(op))),
        Some(pb::op::Op::File(op)) => {
            let mut file = Object::default();
            file.list("actions", op.actions.iter().map(action));
            out.raw("file", Some(file.end()));
        }
        Some(pb::op::Op::Build(op)) => _ = out.raw("build", Some(build(op))),
        Some(pb::op::Op::Merge(op)) => {
            let mut merge = Object::default();
            merge.list("inputs", op.inputs.iter().map(|input| only_input(input.input)));
            out.raw("merge", Some(merge.end()));
        }
        Some(pb::op::Op::Diff(op)) => {
            let mut diff = Object::default();
            diff.raw("lower", op.lower.as_ref().map(|side| only_input(side.input)));
            diff.raw("upper", op.upper.as_ref().map(|side| only_input(side.input)));
            out.raw("diff", Some(diff.end()));
        }
        Some(pb::op::Op::Passthrough(op)) => {
            let mut pass = Object::default();
            pass.text("id", &op.id).list("outputs", op.outputs.iter().map(i64::to_string));
            out.raw("passthrough", Some(pass.end()));
        }
    }
    out.end()
}

fn only_input(input: i64) -> String {
    Object::default().number("input", input).end()
}

fn platform(platform: &pb::Platform) -> String {
    let mut out = Object::default();
    out.text("Architecture", &platform.architecture).text("OS", &platform.os).text("Variant", &platform.variant);
    out.text("OSVersion", &platform.os_version).texts("OSFeatures", &platform.os_features).end()
}

fn source(source: &pb::SourceOp) -> String {
    let attrs: Vec<_> = source.attrs.iter().filter(|(key, _)| !matches!(key.as_str(), "local.session" | "local.unique")).collect();
    let mut out = Object::default();
    out.text("identifier", &source.identifier);
    out.map("attrs", attrs.into_iter().map(|(key, value)| (key, gojson::to_string(value))));
    out.end()
}

fn build(build: &pb::BuildOp) -> String {
    let mut out = Object::default();
    out.number("builder", build.builder);
    out.map("inputs", build.inputs.iter().map(|(name, input)| (name, only_input(input.input))));
    if let Some(def) = &build.def {
        let mut nested = Object::default();
        nested.list("def", def.def.iter().map(|op| gojson::to_string(&base64::engine::general_purpose::STANDARD.encode(op))));
        out.raw("def", Some(nested.end()));
    }
    out.map("attrs", build.attrs.iter().map(|(key, value)| (key, gojson::to_string(value))));
    out.end()
}

fn exec(exec: &pb::ExecOp) -> String {
    let mut out = Object::default();
    out.raw("meta", exec.meta.as_ref().map(meta));
    out.list("mounts", exec.mounts.iter().map(mount));
    out.number("network", exec.network.into()).number("security", exec.security.into());
    out.list(
        "secretenv",
        exec.secretenv.iter().map(|s| Object::default().text("ID", &s.id).text("name", &s.name).flag("optional", s.optional).end()),
    );
    out.list("cdiDevices", exec.cdi_devices.iter().map(|d| Object::default().text("name", &d.name).flag("optional", d.optional).end()));
    out.end()
}

fn meta(meta: &pb::Meta) -> String {
    let mut out = Object::default();
    out.texts("args", &meta.args).texts("env", &meta.env).text("cwd", &meta.cwd).text("user", &meta.user);
    out.raw(
        "proxy_env",
        meta.proxy_env.as_ref().map(|p| {
            let mut proxy = Object::default();
            proxy.text("http_proxy", &p.http_proxy).text("https_proxy", &p.https_proxy).text("ftp_proxy", &p.ftp_proxy);
            proxy.text("no_proxy", &p.no_proxy).text("all_proxy", &p.all_proxy).end()
        }),
    );
    out.list("extraHosts", meta.extra_hosts.iter().map(|h| Object::default().text("Host", &h.host).text("IP", &h.ip).end()));
    out.text("hostname", &meta.hostname);
    out.list(
        "ulimit",
        meta.ulimit.iter().map(|u| Object::default().text("Name", &u.name).number("Soft", u.soft).number("Hard", u.hard).end()),
    );
    out.text("cgroupParent", &meta.cgroup_parent).flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive);
    out.list("validExitCodes", meta.valid_exit_codes.iter().map(i32::to_string));
    out.end()
}

fn mount(mount: &pb::Mount) -> String {
    let mut out = Object::default();
    out.number("input", mount.input).text("selector", &mount.selector).text("dest", &mount.dest).number("output", mount.output);
    out.flag("readonly", mount.readonly).number("mountType", mount.mount_type.into());
    out.raw("TmpfsOpt", mount.tmpfs_opt.as_ref().map(|t| Object::default().number("size", t.size).end()));
    out.raw("cacheOpt", mount.cache_opt.as_ref().map(|c| Object::default().text("ID", &c.id).number("sharing", c.sharing.into()).end()));
    out.raw("secretOpt", mount.secret_opt.as_ref().map(|s| given(&s.id, s.uid, s.gid, s.mode, s.optional)));
    out.raw("SSHOpt", mount.ssh_opt.as_ref().map(|s| given(&s.id, s.uid, s.gid, s.mode, s.optional)));
    out.text("resultID", &mount.result_id).number("contentCache", mount.content_cache.into());
    out.end()
}

/// A secret or an ssh socket.
fn given(id: &str, uid: u32, gid: u32, mode: u32, optional: bool) -> String {
    let mut out = Object::default();
    out.text("ID", id).number("uid", uid.into()).number("gid", gid.into()).number("mode", mode.into()).flag("optional", optional).end()
}

fn action(action: &pb::FileAction) -> String {
    use pb::file_action::Action;
    let mut kind = Object::default();
    match &action.action {
        // BuildKit shows no links.
        None | Some(Action::Symlink(_)) => {}
        Some(Action::Copy(copy)) => _ = kind.raw("copy", Some(self::copy(copy))),
        Some(Action::Mkfile(file)) => {
            let mut out = Object::default();
            out.text("path", &file.path).number("mode", file.mode.into()).bytes("data", &file.data);
            out.raw("owner", file.owner.as_ref().map(owner)).number("timestamp", file.timestamp);
            kind.raw("mkfile", Some(out.end()));
        }
        Some(Action::Mkdir(dir)) => {
            let mut out = Object::default();
            out.text("path", &dir.path).number("mode", dir.mode.into()).flag("makeParents", dir.make_parents);
            out.raw("owner", dir.owner.as_ref().map(owner)).number("timestamp", dir.timestamp);
            kind.raw("mkdir", Some(out.end()));
        }
        Some(Action::Rm(rm)) => {
            let mut out = Object::default();
            out.text("path", &rm.path).flag("allowNotFound", rm.allow_not_found).flag("allowWildcard", rm.allow_wildcard);
            kind.raw("rm", Some(out.end()));
        }
    }
    format!(
        r#"{{"input":{},"secondaryInput":{},"output":{},"Action":{}}}"#,
        action.input,
        action.secondary_input,
        action.output,
        kind.end()
    )
}

fn copy(copy: &pb::FileActionCopy) -> String {
    let mut out = Object::default();
    out.text("src", &copy.src).text("dest", &copy.dest).raw("owner", copy.owner.as_ref().map(owner));
    out.number("mode", copy.mode.into()).flag("followSymlink", copy.follow_symlink).flag("dirCopyContents", copy.dir_copy_contents);
    out.flag("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility);
    out.flag("createDestPath", copy.create_dest_path).flag("allowWildcard", copy.allow_wildcard);
    out.flag("allowEmptyWildcard", copy.allow_empty_wildcard).number("timestamp", copy.timestamp);
    out.texts("include_patterns", &copy.include_patterns).texts("exclude_patterns", &copy.exclude_patterns);
    out.flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths).text("modeStr", &copy.mode_str);
    out.texts("required_paths", &copy.required_paths);
    out.end()
}

fn owner(owner: &pb::ChownOpt) -> String {
    Object::default().raw("user", owner.user.as_ref().map(who)).raw("group", owner.group.as_ref().map(who)).end()
}

fn who(who: &pb::UserOpt) -> String {
    let mut inner = Object::default();
    match &who.user {
        Some(pb::user_opt::User::ByName(named)) => {
            let name = Object::default().text("name", &named.name).number("input", named.input).end();
            inner.raw("byName", Some(name));
        }
        Some(pb::user_opt::User::ById(id)) => _ = inner.number("byId", (*id).into()),
        None => {}
    }
    Object::default().raw("User", Some(inner.end())).end()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use oci::Platform;

    use super::*;
    use crate::Builder;
    use crate::types::*;

    fn json(op: Op, inputs: Vec<Edge>) -> String {
        let mut builder = Builder::new();
        let edge = builder.add(op, inputs, Some(Platform::new("linux", "arm64", "")), vec!["a=b".into()], Metadata::default());
        builder.finish(Some(edge)).vertices[0].to_json().unwrap()
    }

    #[test]
    fn ops_are_shown_by_the_wires_names() {
        let attrs = [("local.session", "s"), ("local.unique", "u"), ("local.followpaths", "[\"<a>\"]")];
        let attrs: BTreeMap<String, String> = attrs.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(
            json(Op::Source(SourceOp { identifier: "local://context".into(), attrs }), Vec::new()),
            concat!(
                r#"{"Op":{"source":{"identifier":"local://context","attrs":{"local.followpaths":"[\"\u003ca\u003e\"]"}}},"#,
                r#""platform":{"Architecture":"arm64","OS":"linux"},"constraints":{"filter":["a=b"]}}"#
            )
        );
        let owner = Some(Owner { user: Some(Who::Id(0)), group: Some(Who::Name { name: "g".into(), input: Some(0) }) });
        let mkfile = FileActionKind::Mkfile { path: "/f".into(), mode: 0o644, data: "hi".into(), owner, timestamp: -1 };
        let file = FileOp { actions: vec![FileAction { input: None, secondary_input: None, output: Some(0), kind: mkfile }] };
        assert_eq!(
            json(Op::File(file), Vec::new()).split(r#","platform""#).next().unwrap(),
            concat!(
                r#"{"Op":{"file":{"actions":[{"input":-1,"secondaryInput":-1,"output":0,"Action":{"mkfile":{"path":"/f","mode":420,"#,
                r#""data":"aGk=","owner":{"user":{"User":{}},"group":{"User":{"byName":{"name":"g"}}}},"timestamp":-1}}}]}}"#
            )
        );
    }

    #[test]
    fn places_leave_zeros_out() {
        let locations = [Location { source: 0, ranges: vec![Range { start: (3, 0), end: (4, 2) }] }];
        assert_eq!(locations_to_json(&locations), r#"{"locations":[{"ranges":[{"start":{"line":3},"end":{"line":4,"character":2}}]}]}"#);
    }
}
