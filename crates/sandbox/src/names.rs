//! `/etc/hosts` and `/etc/resolv.conf` of containers.
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::container::{Container, DEFAULT_HOSTNAME, Network};
use crate::error::SandboxError;

const HOST_FILE: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the servers behind its own.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";
const RESOLVED: &str = "127.0.0.53";
const PUBLIC: [&str; 4] = ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"];

/// What replaces the host's settings; empty keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    pub nameservers: Vec<String>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// The files, kept in a directory and made again when the host's change.
#[derive(Debug)]
pub(crate) struct Names {
    dir: PathBuf,
    dns: Dns,
    /// Stands in for the host's name servers, which cannot be reached.
    nameserver: Option<IpAddr>,
    /// For each file made: its name and the host's file it was made from, with that one's time.
    made: Mutex<Vec<(&'static str, PathBuf, Option<SystemTime>)>>,
}

/// A hosts file; removed when dropped if it is one container's alone.
#[derive(Debug)]
pub(crate) struct HostsFile {
    path: PathBuf,
    own: bool,
}

impl HostsFile {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for HostsFile {
    fn drop(&mut self) {
        if self.own {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Names {
    pub fn open(dir: &Path, dns: Dns, nameserver: Option<IpAddr>) -> Result<Self, SandboxError> {
        for address in &dns.nameservers {
            parse_address(address).ok_or_else(|| SandboxError::Nameserver { address: address.clone() })?;
        }
        let shared = dir.join("hosts");
        write(&shared, &hosts(DEFAULT_HOSTNAME, &[]))?;
        Ok(Self { dir: dir.to_owned(), dns, nameserver, made: Mutex::default() })
    }

    pub fn hosts(&self, container: &Container) -> Result<HostsFile, SandboxError> {
        if container.hosts.is_empty() && container.hostname() == DEFAULT_HOSTNAME {
            return Ok(HostsFile { path: self.dir.join("hosts"), own: false });
        }
        let file = HostsFile { path: self.dir.join(format!("hosts.{}", container.id)), own: true };
        write(&file.path, &hosts(container.hostname(), &container.hosts))?;
        Ok(file)
    }

    pub fn resolv(&self, network: &Network) -> Result<PathBuf, SandboxError> {
        let host = matches!(network, Network::Host);
        let name = if host { "resolv-host.conf" } else { "resolv.conf" };
        let source = if host { PathBuf::from(HOST_FILE) } else { source() };
        let time = fs::metadata(&source).and_then(|meta| meta.modified()).ok();
        let path = self.dir.join(name);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = (name, source, time);
        if made.contains(&entry) && path.exists() {
            return Ok(path);
        }
        let text = match fs::read_to_string(&entry.1) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(SandboxError::io(format!("read {}", entry.1.display())))?,
        };
        let mut resolver = Resolver::parse(&text);
        if let Some(address) = self.nameserver {
            resolver.nameservers = vec![address.to_string()];
        }
        write(&path, &resolver.with(&self.dns, host).to_string())?;
        made.retain(|(other, ..)| *other != name);
        made.push(entry);
        Ok(path)
    }
}

fn source() -> PathBuf {
    let text = fs::read_to_string(HOST_FILE).unwrap_or_default();
    let resolved = matches!(Resolver::parse(&text).nameservers.as_slice(), [only] if only == RESOLVED);
    PathBuf::from(if resolved { RESOLVED_FILE } else { HOST_FILE })
}

fn hosts(hostname: &str, more: &[(String, IpAddr)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in more {
        let _ = writeln!(text, "{}\t{name}", address.to_canonical());
    }
    text
}

/// Appears whole or not at all, and never changes under a container that has it mounted.
fn write(path: &Path, text: &str) -> Result<(), SandboxError> {
    use std::os::unix::fs::PermissionsExt as _;
    let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
    let steps = || {
        fs::write(&fresh, text)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644))?;
        fs::rename(&fresh, path)
    };
    steps().map_err(SandboxError::io(format!("write {}", path.display())))
}

#[derive(Debug, Default)]
struct Resolver {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
    other: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned).peekable();
            let Some(word) = words.next().filter(|_| !line.starts_with(['#', ';'])) else { continue };
            match word.as_str() {
                "nameserver" => parsed.nameservers.extend(words.next().and_then(|address| canonical(&address))),
                // The last one that says something counts.
                "search" | "domain" if words.peek().is_some() => parsed.search = words.collect(),
                "search" | "domain" => {}
                "options" => parsed.options.extend(words),
                _ => parsed.other.push(line.to_owned()),
            }
        }
        parsed
    }

    /// For a container. In the host's network a server that listens on loopback can be reached; else it cannot.
    fn with(mut self, dns: &Dns, host: bool) -> Self {
        let overridden = !dns.nameservers.is_empty();
        for (kept, replaced) in
            [(&mut self.nameservers, &dns.nameservers), (&mut self.search, &dns.search), (&mut self.options, &dns.options)]
        {
            if !replaced.is_empty() {
                kept.clone_from(replaced);
            }
        }
        if !dns.search.is_empty() {
            // It stands for no search at all.
            self.search.retain(|domain| domain != ".");
        }
        if !host || self.nameservers.is_empty() {
            if !overridden {
                self.nameservers.retain(|address| parse_address(address).is_some_and(|address| !address.is_loopback()));
            }
            if self.nameservers.is_empty() {
                self.nameservers = PUBLIC.map(str::to_owned).to_vec();
            }
        }
        self
    }
}

impl std::fmt::Display for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for address in &self.nameservers {
            writeln!(f, "nameserver {address}")?;
        }
        if !self.search.is_empty() {
            writeln!(f, "search {}", self.search.join(" "))?;
        }
        if !self.options.is_empty() {
            writeln!(f, "options {}", self.options.join(" "))?;
        }
        self.other.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// In the shortest form.
fn canonical(text: &str) -> Option<String> {
    let zone = text.find('%').map_or("", |at| &text[at..]);
    Some(format!("{}{zone}", parse_address(text)?))
}

/// An address may name the interface it is valid on.
fn parse_address(text: &str) -> Option<IpAddr> {
    text.split('%').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str, dns: &Dns, host: bool) -> String {
        Resolver::parse(text).with(dns, host).to_string()
    }

    #[test]
    fn loopback_servers_are_dropped_outside_the_host_network() {
        let text = "# made by hand\nnameserver 127.0.0.1\nnameserver 10.0.0.2\nsearch a b\noptions ndots:2\n";
        assert_eq!(made(text, &Dns::default(), false), "nameserver 10.0.0.2\nsearch a b\noptions ndots:2\n");
        assert_eq!(made(text, &Dns::default(), true), "nameserver 127.0.0.1\nnameserver 10.0.0.2\nsearch a b\noptions ndots:2\n");
        let public = "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n";
        assert_eq!(made("nameserver ::1\n", &Dns::default(), false), public);
        assert_eq!(made("", &Dns::default(), true), public);
    }

    /// As upstream's parser of the file has it.
    #[test]
    fn what_is_not_understood_is_kept() {
        let text = "search a\n\tsearch\nnameserver FE80:0::1%eth0\nnameserver x\n  sortlist 1.2.3.4 \n ; no comment\noptions\n#no\n";
        let kept = "nameserver fe80::1%eth0\nsearch a\n  sortlist 1.2.3.4 \n ; no comment\n";
        assert_eq!(made(text, &Dns::default(), false), kept);
        let none = Dns { search: vec![".".into()], ..Dns::default() };
        assert_eq!(made("nameserver 1.1.1.1\nsearch a b\n", &none, true), "nameserver 1.1.1.1\n");
    }

    #[test]
    fn configured_servers_are_kept_whatever_they_are() {
        let dns = Dns { nameservers: vec!["127.0.0.1".into()], search: vec!["x".into()], options: Vec::new() };
        assert_eq!(made("nameserver 1.1.1.1\noptions a\n", &dns, false), "nameserver 127.0.0.1\nsearch x\noptions a\n");
        let dir = tempfile::tempdir().unwrap();
        let bad = Dns { nameservers: vec!["dns".into()], ..Dns::default() };
        assert!(matches!(Names::open(dir.path(), bad, None), Err(SandboxError::Nameserver { address }) if address == "dns"));
    }

    #[test]
    fn a_container_with_names_has_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names::open(dir.path(), Dns::default(), None).unwrap();
        let root = snapshot::MountSpec::Bind { path: "/".into(), readonly: true };
        let mut container = Container::new("c1", root);
        assert_eq!(names.hosts(&container).unwrap().path(), dir.path().join("hosts"));
        container.hosts.push(("db".into(), "10.1.2.3".parse().unwrap()));
        container.hostname = "here".into();
        let own = names.hosts(&container).unwrap();
        let path = own.path().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "127.0.0.1\tlocalhost here\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb\n");
        drop(own);
        assert!(!path.exists());
    }
}
