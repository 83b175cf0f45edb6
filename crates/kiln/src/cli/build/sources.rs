//! What a build may read from us: directories, image layouts, secrets, ssh agents.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use client::session::{Agent, BlobDir, Secret};

use crate::cli::args::{boolean, csv_pairs};
use crate::cli::environment::Environment;

fn pair(flag: &str) -> Result<(&str, &str), String> {
    flag.split_once('=').ok_or_else(|| format!("invalid value {flag}"))
}

pub fn locals(flags: &[String]) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut locals = BTreeMap::new();
    for flag in flags {
        let (name, path) = pair(flag).map_err(|e| format!("invalid local: {e}"))?;
        if !Path::new(path).is_dir() {
            return Err(format!("invalid local: could not find directory {path}"));
        }
        locals.insert(name.to_owned(), PathBuf::from(path));
    }
    Ok(locals)
}

pub fn layouts(flags: &[String]) -> Result<BTreeMap<String, BlobDir>, String> {
    let mut layouts = BTreeMap::new();
    for flag in flags {
        let (name, path) = pair(flag).map_err(|e| format!("invalid oci-layout: {e}"))?;
        if !Path::new(path).is_dir() {
            return Err(format!("invalid oci-layout: could not find directory {path}"));
        }
        layouts.insert(name.to_owned(), BlobDir::new(path));
    }
    Ok(layouts)
}

/// `id=x,src=file`, `id=x,env=NAME`, `id=x`: the variable or the file of that name.
pub fn secrets(flags: &[String], environment: &Environment) -> Result<BTreeMap<String, Secret>, String> {
    let mut secrets = BTreeMap::new();
    for flag in flags {
        let (mut id, mut file, mut variable, mut kind) = (String::new(), String::new(), String::new(), String::new());
        for (key, value) in csv_pairs(flag)? {
            match key.as_str() {
                "type" if matches!(value.as_str(), "file" | "env") => kind = value,
                "type" => return Err(format!("unsupported secret type {value:?}")),
                "id" => id = value,
                "source" | "src" => file = value,
                "env" => variable = value,
                other => return Err(format!("unexpected key '{other}' in '{other}={value}'")),
            }
        }
        if id.is_empty() {
            return Err(format!("secret missing ID: {flag}"));
        }
        if kind == "env" && variable.is_empty() {
            variable = std::mem::take(&mut file);
        }
        if kind != "file" && file.is_empty() && variable.is_empty() && environment.get(&id).is_some() {
            variable.clone_from(&id);
        }
        let secret = if variable.is_empty() {
            let file = PathBuf::from(if file.is_empty() { &id } else { &file });
            if let Err(e) = std::fs::metadata(&file) {
                return Err(format!("failed to stat {}: {e}", file.display()));
            }
            Secret::File(file)
        } else {
            let value = environment.get(&variable).unwrap_or_default().to_owned();
            Secret::Value(value.into())
        };
        secrets.insert(id, secret);
    }
    Ok(secrets)
}

/// `default`, `id=/agent.sock`. Key files would need an agent of our own.
pub fn agents(flags: &[String], environment: &Environment) -> Result<BTreeMap<String, Agent>, String> {
    use std::os::unix::fs::FileTypeExt as _;
    let mut agents = BTreeMap::new();
    for flag in flags {
        let (id, value) = flag.split_once('=').unwrap_or((flag, ""));
        let raw = |path: &&str| path.split_once('=').is_some_and(|(key, value)| key == "raw" && boolean(value).is_some());
        let paths: Vec<&str> = value.split(',').filter(|path| !path.is_empty() && !raw(path)).collect();
        let socket = match paths.as_slice() {
            [] => environment
                .filled("SSH_AUTH_SOCK")
                .map(PathBuf::from)
                .ok_or("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")?,
            [path] => {
                let found = std::fs::metadata(path).map_err(|e| format!("failed to open {path}: {e}"))?;
                if !found.file_type().is_socket() {
                    return Err(format!(
                        "{path} is not an agent's socket: keys as files are not supported, add them to an agent with ssh-add"
                    ));
                }
                PathBuf::from(path)
            }
            _ => return Err(format!("only one agent's socket can be given for ssh id {id:?}")),
        };
        let id = if id.is_empty() { "default" } else { id };
        if agents.insert(id.to_owned(), Agent { socket }).is_some() {
            return Err(format!("duplicate ssh id {id}"));
        }
    }
    Ok(agents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_from_files_and_variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        let environment = Environment::of(&[("TOKEN", "t"), ("named", "n")]);
        let parse = |flag: &str| secrets(&[flag.to_owned()], &environment).map(|mut s| s.pop_first().unwrap());
        let value = |flag: &str| match parse(flag).unwrap().1 {
            Secret::Value(value) => String::from_utf8(value.to_vec()).unwrap(),
            Secret::File(path) => format!("file {}", path.file_name().unwrap().to_str().unwrap()),
        };
        assert_eq!(value(&format!("id=a,src={}", file.display())), "file f");
        assert_eq!((value("id=a,env=TOKEN"), value("id=a,type=env,src=TOKEN"), value("id=named")), ("t".into(), "t".into(), "n".into()));
        assert_eq!(parse("id=a,type=x").unwrap_err_text(), "unsupported secret type \"x\"");
        assert_eq!(parse("src=a").unwrap_err_text(), "secret missing ID: src=a");
        assert!(parse("id=a,src=/no/such").unwrap_err_text().starts_with("failed to stat /no/such"));
    }

    trait ErrorText {
        fn unwrap_err_text(self) -> String;
    }

    impl<T> ErrorText for Result<T, String> {
        fn unwrap_err_text(self) -> String {
            self.map(|_| ()).unwrap_err()
        }
    }

    #[test]
    fn agents_are_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let path = socket.to_str().unwrap();
        let environment = Environment::of(&[("SSH_AUTH_SOCK", path)]);
        let found = agents(&["default".to_owned(), format!("other={path},raw=true")], &environment).unwrap();
        assert!(found.values().all(|agent| agent.socket == socket) && found.len() == 2);
        let file = dir.path().join("key");
        std::fs::write(&file, "x").unwrap();
        assert!(agents(&[format!("k={}", file.display())], &environment).map(|_| ()).unwrap_err().contains("ssh-add"));
        assert!(agents(&["default".to_owned()], &Environment::default()).is_err());
    }
}
