//! Networks by plugins, as the Container Network Interface has it (<https://www.cni.dev/docs/spec/>, version 1.0 and before): a configuration
//! names programs, which are run one after the other with what they are to do in their environment and the configuration on standard input.
//!
//! For each namespace there is a file that says what the plugins were told and what they answered, from before the first is run until the
//! last has undone its part. What an earlier daemon left is undone from there.
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::pool::Source;
use super::{Namespace, Tag, new_namespace, within};
use crate::SandboxError;

/// Which configuration, and where its plugins are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cni {
    /// A list of plugins if its name ends in `.conflist`, else one plugin.
    pub config: PathBuf,
    pub binaries: PathBuf,
}

/// A configuration that was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct List {
    #[serde(rename = "cniVersion", default)]
    version: String,
    name: String,
    plugins: Vec<Map<String, Value>>,
}

/// What plugins know of a namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Attachment {
    id: String,
    interface: String,
    /// `KEY=VALUE;KEY=VALUE`.
    args: String,
    list: List,
    /// The last plugin's.
    #[serde(default)]
    result: Option<Value>,
}

impl Cni {
    pub(super) fn open(self, base: Option<OwnedFd>, state: &Path) -> Result<Open, SandboxError> {
        let (list, interface) = self.load()?;
        let records = state.join("cni");
        fs::create_dir_all(&records).map_err(SandboxError::io(format!("create {}", records.display())))?;
        let plugins = Arc::new(Plugins { binaries: self.binaries, base, records });
        let left = plugins.left_over();
        if !left.is_empty() {
            let plugins = Arc::clone(&plugins);
            task::spawn(
                "old networks",
                task::blocking(move || {
                    left.iter().for_each(|path| plugins.undo(path));
                    Ok(())
                }),
            );
        }
        Ok(Open { list, interface, plugins })
    }

    /// The list, and the name that the interface gets: upstream counts the loopback interface where there is a list.
    fn load(&self) -> Result<(List, &'static str), SandboxError> {
        let invalid = |why: String| SandboxError::Invalid(format!("CNI configuration {}: {why}", self.config.display()));
        let text = fs::read(&self.config).map_err(SandboxError::io(format!("read CNI configuration {}", self.config.display())))?;
        let is_list = self.config.extension().is_some_and(|extension| extension == "conflist");
        let list: List = if is_list {
            serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?
        } else {
            let plugin: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
            let text = |key: &str| plugin.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            List { version: text("cniVersion"), name: text("name"), plugins: vec![plugin] }
        };
        if list.plugins.is_empty() {
            return Err(invalid("it lists no plugins".to_owned()));
        }
        for plugin in &list.plugins {
            let kind = kind(plugin);
            if kind.is_empty() || kind.contains('/') {
                return Err(invalid("a plugin has no type".to_owned()));
            }
            if !self.binaries.join(kind).exists() {
                return Err(invalid(format!(
                    "plugin {kind:?} is not in {} (cniBinaryPath, --oci-cni-binary-dir)",
                    self.binaries.display()
                )));
            }
        }
        Ok((list, if is_list { "eth1" } else { "eth0" }))
    }
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Makes namespaces by one configuration.
#[derive(Debug)]
pub(super) struct Open {
    list: List,
    interface: &'static str,
    plugins: Arc<Plugins>,
}

impl Source for Open {
    fn make(&self, hostname: Option<&str>) -> Result<Namespace, SandboxError> {
        let (fd, _) = new_namespace().map_err(|error| SandboxError::network("create a network namespace".to_owned(), error))?;
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(SandboxError::io("read random bytes"))?;
        let mut attachment = Attachment {
            id: id.trim().replace('-', ""),
            interface: self.interface.to_owned(),
            // The name under which plugins that know names look for one.
            args: hostname.map(|name| format!("IgnoreUnknown=1;K8S_POD_NAME={name}")).unwrap_or_default(),
            list: self.list.clone(),
            result: None,
        };
        if let Err(error) = self.plugins.add(&mut attachment, fd.as_fd()) {
            // What was done so far.
            let _ = self.plugins.delete(&attachment, fd.as_fd());
            return Err(error);
        }
        Ok(Namespace { fd, tag: Tag::Attachment(Box::new(attachment)) })
    }

    fn release(&self, namespace: Namespace) -> Result<(), SandboxError> {
        match &namespace.tag {
            Tag::Attachment(attachment) => self.plugins.delete(attachment, namespace.fd.as_fd()),
            _ => Ok(()),
        }
    }

    fn knows_names(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Plugins {
    binaries: PathBuf,
    base: Option<OwnedFd>,
    records: PathBuf,
}

impl Plugins {
    fn left_over(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.records).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
    }

    /// What an earlier daemon's plugins did for a namespace that is gone. An empty one stands in for it, for plugins that insist.
    fn undo(&self, record: &Path) {
        let undone = || -> Result<(), String> {
            let text = fs::read(record).map_err(|error| error.to_string())?;
            // A daemon that was killed while it wrote has run no plugin yet.
            if let Ok(attachment) = serde_json::from_slice::<Attachment>(&text) {
                let (fd, _) = new_namespace().map_err(|error| error.to_string())?;
                self.delete(&attachment, fd.as_fd()).map_err(|error| error.to_string())?;
            }
            let _ = fs::remove_file(record);
            Ok(())
        };
        if let Err(error) = undone() {
            tracing::warn!(record = %record.display(), error, "failed to release a network that an earlier daemon left");
        }
    }

    fn record(&self, attachment: &Attachment) -> Result<(), SandboxError> {
        let path = self.records.join(format!("{}.json", attachment.id));
        let fresh = path.with_extension("tmp");
        let text = serde_json::to_vec(attachment).expect("it is plain data");
        let write = || fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        write().map_err(SandboxError::io(format!("write {}", path.display())))
    }

    fn add(&self, attachment: &mut Attachment, namespace: BorrowedFd<'_>) -> Result<(), SandboxError> {
        self.record(attachment)?;
        for at in 0..attachment.list.plugins.len() {
            let config = attachment.config(at);
            let answer = self.run("ADD", attachment, config, namespace)?;
            let result = serde_json::from_slice(&answer).map_err(|error| SandboxError::Plugin {
                plugin: kind(&attachment.list.plugins[at]).to_owned(),
                command: "add",
                message: format!("its answer is no result: {error}"),
            })?;
            attachment.result = Some(result);
        }
        self.record(attachment)
    }

    /// In reverse order, and all of them, whatever one of them says.
    fn delete(&self, attachment: &Attachment, namespace: BorrowedFd<'_>) -> Result<(), SandboxError> {
        let mut outcome = Ok(());
        for at in (0..attachment.list.plugins.len()).rev() {
            if let Err(error) = self.run("DEL", attachment, attachment.config(at), namespace) {
                outcome = Err(error);
            }
        }
        if outcome.is_ok() {
            let _ = fs::remove_file(self.records.join(format!("{}.json", attachment.id)));
        }
        outcome
    }

    fn run(
        &self,
        command: &'static str,
        attachment: &Attachment,
        config: Value,
        namespace: BorrowedFd<'_>,
    ) -> Result<Vec<u8>, SandboxError> {
        let name = config["type"].as_str().unwrap_or_default().to_owned();
        let failed = |message: String| SandboxError::Plugin {
            plugin: name.clone(),
            command: if command == "ADD" { "add" } else { "delete" },
            message,
        };
        let mut program = Command::new(self.binaries.join(&name));
        program
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &attachment.id)
            .env("CNI_NETNS", format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()))
            .env("CNI_IFNAME", &attachment.interface)
            .env("CNI_ARGS", &attachment.args)
            .env("CNI_PATH", &self.binaries)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let run = || {
            let mut child = program.spawn()?;
            // A plugin that ends without reading says more than a broken pipe.
            let _ = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?.write_all(config.to_string().as_bytes());
            child.wait_with_output()
        };
        let output = within(self.base.as_ref().map(|fd| fd.as_fd()), run).map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let words: Vec<&str> = ["msg", "details"].iter().filter_map(|key| said[*key].as_str()).filter(|text| !text.is_empty()).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(failed(if words.is_empty() { format!("{}: {}", output.status, errors.trim()) } else { words.join("; ") }))
    }
}

impl Attachment {
    /// What the plugin at that place is told: its own part of the configuration, and what the one before it answered.
    fn config(&self, at: usize) -> Value {
        let mut config = self.list.plugins[at].clone();
        config.insert("name".to_owned(), json!(self.list.name));
        config.insert("cniVersion".to_owned(), json!(self.list.version));
        if let Some(result) = &self.result {
            config.insert("prevResult".to_owned(), result.clone());
        }
        config.into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Plugins that write down how they were called, and answer with their name.
    fn plugins(dir: &Path, failing: &str) -> PathBuf {
        let binaries = dir.join("bin");
        fs::create_dir_all(&binaries).unwrap();
        for name in ["first", "second"] {
            let log = dir.join("log");
            let fails =
                if name == failing { "[ $CNI_COMMAND = DEL ] || { echo '{\"code\": 7, \"msg\": \"no luck\"}'; exit 1; }" } else { "" };
            let script = format!(
                "#!/bin/sh\nconfig=$(cat)\necho \"$CNI_COMMAND {name} $CNI_IFNAME [$CNI_ARGS] $config\" >> {}\ntest -e $CNI_NETNS || exit 3\n{fails}\necho '{{\"from\": \"{name}\"}}'\n",
                log.display()
            );
            fs::write(binaries.join(name), script).unwrap();
            fs::set_permissions(binaries.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        binaries
    }

    fn cni(dir: &Path, failing: &str) -> Cni {
        let config = dir.join("net.conflist");
        let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "first", "a": 1}, {"type": "second"}]});
        fs::write(&config, list.to_string()).unwrap();
        Cni { config, binaries: plugins(dir, failing) }
    }

    fn log(dir: &Path) -> String {
        fs::read_to_string(dir.join("log")).unwrap_or_default()
    }

    const FIRST: &str = r#"{"type":"first","a":1,"name":"n","cniVersion":"1.0.0""#;
    const SECOND: &str = r#"{"type":"second","name":"n","cniVersion":"1.0.0""#;

    #[test]
    fn plugins_are_chained_and_undone_in_reverse() {
        let dir = tempfile::tempdir().unwrap();
        let open = cni(dir.path(), "").open(None, dir.path()).unwrap();
        let namespace = open.make(Some("db")).unwrap();
        let args = "[IgnoreUnknown=1;K8S_POD_NAME=db]";
        let added = format!("ADD first eth1 {args} {FIRST}}}\nADD second eth1 {args} {SECOND},\"prevResult\":{{\"from\":\"first\"}}}}\n");
        assert_eq!(log(dir.path()), added);
        open.release(namespace).unwrap();
        let previous = r#","prevResult":{"from":"second"}}"#;
        assert_eq!(log(dir.path()), format!("{added}DEL second eth1 {args} {SECOND}{previous}\nDEL first eth1 {args} {FIRST}{previous}\n"));
        assert_eq!(fs::read_dir(dir.path().join("cni")).unwrap().count(), 0);
    }

    #[test]
    fn a_failure_names_the_plugin_and_undoes_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let open = cni(dir.path(), "second").open(None, dir.path()).unwrap();
        let error = open.make(None).unwrap_err();
        assert_eq!(error.to_string(), "CNI setup error: plugin type=\"second\" failed (add): no luck");
        let calls: Vec<String> = log(dir.path()).lines().map(|line| line.split(" eth1").next().unwrap().to_owned()).collect();
        assert_eq!(calls, ["ADD first", "ADD second", "DEL second", "DEL first"]);
    }

    #[tokio::test]
    async fn what_a_killed_daemon_left_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let open = cni(dir.path(), "").open(None, dir.path()).unwrap();
        std::mem::forget(open.make(None).unwrap());
        drop(open);
        let records = dir.path().join("cni");
        assert_eq!(fs::read_dir(&records).unwrap().count(), 1);
        let _next = cni(dir.path(), "").open(None, dir.path()).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(60), async {
            while fs::read_dir(&records).unwrap().count() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        let calls: Vec<String> = log(dir.path()).lines().map(|line| line.split(" eth1").next().unwrap().to_owned()).collect();
        assert_eq!(calls, ["ADD first", "ADD second", "DEL second", "DEL first"]);
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |name: &str, text: &str| {
            let config = dir.path().join(name);
            fs::write(&config, text).unwrap();
            Cni { config, binaries: dir.path().to_owned() }.open(None, dir.path()).unwrap_err().to_string()
        };
        assert!(refused("a.conflist", r#"{"name": "n", "plugins": []}"#).contains("lists no plugins"));
        assert!(refused("a.json", r#"{"name": "n"}"#).contains("no type"));
        assert!(refused("a.json", r#"{"name": "n", "type": "nonesuch"}"#).contains("--oci-cni-binary-dir"));
        assert!(refused("a.json", "{").contains("CNI configuration"));
    }
}
