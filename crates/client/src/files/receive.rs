//! The receiving side of a transfer into a directory of the client: nothing is ever written outside of it.
//!
//! A synchronous state machine: packets in, packets out. Every step from the root to a file is taken through an open directory without following
//! links, so neither a name nor a link that lies there already leads out.
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fault::{Context as _, Fault, Kind, Result};
use rustix::fs::{AtFlags, FileType, Mode as Permissions, OFlags};
use rustix::io::Errno;
use session::{Packet, Stat, go_mode};

use super::place::{Growing, clear, names, open_directory_at, set_times, times};

/// What happens to files that the daemon does not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Keep,
    Delete,
}

pub struct Receiver {
    root: PathBuf,
    top: Arc<OwnedFd>,
    mode: Mode,
    /// Nothing but what is sent lies in the root, since it was made for that.
    top_is_new: bool,
    /// The directory that the last file was in.
    recent: (String, Arc<OwnedFd>),
    next_id: u32,
    last_path: Option<String>,
    directories: Vec<(String, Permissions, i64)>,
    /// Everything sent, by path.
    sent: HashMap<String, Sent>,
    wanted: HashMap<u32, Wanted>,
    /// Hard links, made when their targets are complete: path and target.
    links: Vec<(String, String)>,
    announced: bool,
    finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// `is_new` if the transfer made it: then nothing else lies in it.
    Directory {
        is_new: bool,
    },
    Other,
}

/// A requested file. It is opened with its first bytes, so that the number of open files is the sender's, which is small.
struct Wanted {
    stat: Stat,
    growing: Option<Growing>,
}

impl Receiver {
    /// Creates the directory where it is missing. Blocking, as all of this is.
    pub fn new(root: &Path, mode: Mode) -> Result<Self> {
        let top_is_new = make_root(root).with_context(|| format!("failed to create {}", root.display()))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let top = rustix::fs::open(root, flags, Permissions::empty()).map_err(io::Error::from);
        let top = Arc::new(top.with_context(|| format!("failed to open {}", root.display()))?);
        Ok(Self {
            root: root.to_owned(),
            recent: (String::new(), top.clone()),
            top,
            mode,
            top_is_new,
            next_id: 0,
            last_path: None,
            directories: Vec::new(),
            sent: HashMap::new(),
            wanted: HashMap::new(),
            links: Vec::new(),
            announced: false,
            finished: false,
        })
    }

    /// Takes a packet and returns what to answer.
    pub fn take(&mut self, packet: Packet) -> Result<Option<Packet>> {
        match packet {
            Packet::Stat(stat) if !self.announced => {
                let path = stat.path.clone();
                self.entry(stat).with_context(|| format!("failed to write {}", self.root.join(path).display()))
            }
            Packet::StatEnd if !self.announced => {
                self.announced = true;
                self.finish()
            }
            Packet::Data { id, data } => {
                let mut file = self.wanted.remove(&id).ok_or_else(|| Fault::invalid(format!("invalid file request {id}")))?;
                let shown = self.root.join(&file.stat.path);
                let context = || format!("failed to write {}", shown.display());
                let mut growing = match file.growing.take() {
                    Some(growing) => growing,
                    None => self.create(id, &file.stat).with_context(context)?,
                };
                if data.is_empty() {
                    growing.complete(file.stat.mod_time).with_context(context)?;
                    return self.finish();
                }
                growing.write(&data).with_context(context)?;
                file.growing = Some(growing);
                self.wanted.insert(id, file);
                Ok(None)
            }
            Packet::Error(text) => Err(Fault::new(Kind::Unknown, format!("error from sender: {text}"))),
            Packet::Fin if self.finished => Ok(None),
            other => Err(Fault::invalid(format!("a sender does not send {other:?} now"))),
        }
    }

    /// Whether everything is in place; the sender's last packet may still be on its way.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    fn entry(&mut self, stat: Stat) -> Result<Option<Packet>> {
        self.check(&stat)?;
        let id = self.next_id;
        self.next_id += 1;
        let path = stat.path.clone();
        self.last_path = Some(path.clone());
        let (parent, name) = split(&path);
        let permissions = permissions(&stat);
        if stat.mode & go_mode::DIR != 0 {
            let is_new = self.make_directory(parent, name)?;
            self.sent.insert(path.clone(), Sent::Directory { is_new });
            self.directories.push((path, permissions, stat.mod_time));
            return Ok(None);
        }
        self.sent.insert(path.clone(), Sent::Other);
        if stat.mode & go_mode::SYMLINK != 0 {
            let at = self.open_directory(parent)?;
            clear(&at, name)?;
            rustix::fs::symlinkat(&stat.linkname, &at, name).map_err(io::Error::from)?;
            set_times(&at, name, stat.mod_time)?;
        } else if stat.mode & (go_mode::DEVICE | go_mode::NAMED_PIPE) != 0 {
            let at = self.open_directory(parent)?;
            clear(&at, name)?;
            let kind = FileType::from_raw_mode(go_mode::to_posix(stat.mode));
            let device = rustix::fs::makedev(stat.devmajor as u32, stat.devminor as u32);
            rustix::fs::mknodat(&at, name, kind, permissions, device).map_err(io::Error::from)?;
            set_times(&at, name, stat.mod_time)?;
        } else if !stat.linkname.is_empty() {
            self.links.push((path, stat.linkname));
        } else {
            self.wanted.insert(id, Wanted { stat, growing: None });
            return Ok(Some(Packet::Request { id }));
        }
        Ok(None)
    }

    /// What the protocol does not allow is an error of the sender, or an attack.
    fn check(&self, stat: &Stat) -> Result<()> {
        let bad = |problem: &str| Err(Fault::invalid(format!("invalid path {:?}: {problem}", stat.path)));
        if stat.path.contains('\0') || stat.path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return bad("not a clean relative path");
        }
        if self.last_path.as_ref().is_some_and(|last| stat.path.split('/').cmp(last.split('/')).is_le()) {
            return bad("out of order");
        }
        let (parent, _) = split(&stat.path);
        if !parent.is_empty() && !matches!(self.sent.get(parent), Some(Sent::Directory { .. })) {
            return bad("its directory was not sent");
        }
        let hard_link = stat.mode & go_mode::SYMLINK == 0 && !stat.linkname.is_empty();
        if hard_link && self.sent.get(&stat.linkname) != Some(&Sent::Other) {
            return bad("a hard link to what was not sent");
        }
        Ok(())
    }

    /// Leaves a directory that exists; anything else of that name is replaced. Ours to write in until the end. Says whether it is new.
    fn make_directory(&mut self, parent: &str, name: &str) -> Result<bool> {
        let at = self.open_directory(parent)?;
        let make = || rustix::fs::mkdirat(&at, name, Permissions::RWXU);
        match make() {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
        let found = rustix::fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory) {
            // Not ours to change, perhaps; then writing in it fails or works by itself.
            let _ = rustix::fs::chmodat(&at, name, Permissions::RWXU, AtFlags::empty());
            return Ok(false);
        }
        clear(&at, name)?;
        make().map_err(io::Error::from)?;
        Ok(true)
    }

    fn create(&mut self, id: u32, stat: &Stat) -> Result<Growing> {
        let (parent, name) = split(&stat.path);
        let directory = self.open_directory(parent)?;
        let is_new = if parent.is_empty() { self.top_is_new } else { self.sent.get(parent) == Some(&Sent::Directory { is_new: true }) };
        let name = name.to_owned();
        let permissions = permissions(stat);
        Ok(if is_new { Growing::in_place(directory, name, permissions, id)? } else { Growing::aside(directory, name, permissions, id)? })
    }

    fn finish(&mut self) -> Result<Option<Packet>> {
        if !self.announced || !self.wanted.is_empty() || self.finished {
            return Ok(None);
        }
        for (path, target) in std::mem::take(&mut self.links) {
            let ((parent, name), (target_parent, target_name)) = (split(&path), split(&target));
            let link = || -> Result<()> {
                let from = self.open_directory_uncached(target_parent)?;
                let at = self.open_directory_uncached(parent)?;
                clear(&at, name)?;
                Ok(rustix::fs::linkat(&from, target_name, &at, name, AtFlags::empty()).map_err(io::Error::from)?)
            };
            link().with_context(|| format!("failed to link {} to {}", self.root.join(&path).display(), target))?;
        }
        if self.mode == Mode::Delete {
            delete_unsent(&self.top, "", &self.sent).context("failed to delete what was not exported")?;
        }
        for (path, permissions, mod_time) in std::mem::take(&mut self.directories).iter().rev() {
            let set = || -> Result<()> {
                let directory = self.open_directory_uncached(path)?;
                rustix::fs::fchmod(&directory, *permissions).map_err(io::Error::from)?;
                Ok(rustix::fs::futimens(&directory, &times(*mod_time)).map_err(io::Error::from)?)
            };
            set().with_context(|| format!("failed to set what {} is like", self.root.join(path).display()))?;
        }
        self.finished = true;
        Ok(Some(Packet::Fin))
    }

    fn open_directory(&mut self, path: &str) -> Result<Arc<OwnedFd>> {
        if self.recent.0 != path {
            self.recent = (path.to_owned(), self.open_directory_uncached(path)?);
        }
        Ok(self.recent.1.clone())
    }

    fn open_directory_uncached(&self, path: &str) -> Result<Arc<OwnedFd>> {
        let mut directory = self.top.clone();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            directory = Arc::new(open_directory_at(&directory, part)?);
        }
        Ok(directory)
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn permissions(stat: &Stat) -> Permissions {
    Permissions::from_raw_mode(go_mode::to_posix(stat.mode) & 0o7777)
}

/// Says whether it was missing.
fn make_root(root: &Path) -> io::Result<bool> {
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::create_dir(root) {
        Ok(()) => Ok(true),
        // Is it a directory, or a link to one?
        Err(_) => std::fs::create_dir_all(root).map(|()| false),
    }
}

fn delete_unsent(at: &OwnedFd, path: &str, sent: &HashMap<String, Sent>) -> io::Result<()> {
    for name in names(at)? {
        let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        match sent.get(&below) {
            None => clear(at, &name)?,
            Some(Sent::Directory { .. }) => delete_unsent(&open_directory_at(at, &name)?, &below, sent)?,
            Some(Sent::Other) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(path: &str, mode: u32) -> Stat {
        Stat { path: path.into(), mode, mod_time: 1_500_000_000_000_000_005, ..Stat::default() }
    }

    fn link(path: &str, mode: u32, target: &str) -> Stat {
        Stat { linkname: target.into(), ..stat(path, mode) }
    }

    /// Sends the entries; every requested file gets its own path as content.
    fn receive(root: &Path, mode: Mode, stats: Vec<Stat>) -> Result<()> {
        let mut receiver = Receiver::new(root, mode)?;
        let mut requests = Vec::new();
        for stat in stats.clone() {
            if let Some(Packet::Request { id }) = receiver.take(Packet::Stat(stat))? {
                requests.push(id);
            }
        }
        let mut last = receiver.take(Packet::StatEnd)?;
        for id in requests {
            let data = bytes::Bytes::from(stats[id as usize].path.clone());
            receiver.take(Packet::Data { id, data })?;
            last = receiver.take(Packet::Data { id, data: Default::default() })?;
        }
        assert_eq!(last, Some(Packet::Fin));
        assert!(receiver.is_finished());
        Ok(())
    }

    #[test]
    fn a_tree_arrives_as_it_was_sent() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let stats = vec![
            stat("dir", go_mode::DIR | 0o555),
            stat("dir/file", go_mode::SETUID | 0o755),
            link("dir/hard", 0o644, "dir/file"),
            link("soft", go_mode::SYMLINK | 0o777, "../../outside"),
            stat("zero", 0o600),
        ];
        receive(root.path(), Mode::Keep, stats).unwrap();
        let meta = |path: &str| std::fs::symlink_metadata(root.path().join(path)).unwrap();
        assert_eq!(std::fs::read_to_string(root.path().join("dir/file")).unwrap(), "dir/file");
        assert_eq!((meta("dir").mode() & 0o7777, meta("dir/file").mode() & 0o7777), (0o555, 0o4755));
        assert_eq!(meta("dir/hard").ino(), meta("dir/file").ino());
        assert_eq!(std::fs::read_link(root.path().join("soft")).unwrap(), Path::new("../../outside"));
        for path in ["dir", "dir/file", "soft"] {
            assert_eq!((meta(path).mtime(), meta(path).mtime_nsec()), (1_500_000_000, 5), "{path}");
        }
        assert_eq!(std::fs::read_dir(root.path().join("dir")).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn what_lies_there_is_replaced_or_kept_or_deleted() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir_all(at("a/old")).unwrap();
        std::fs::create_dir_all(at("b")).unwrap();
        std::fs::write(at("b/other"), "x").unwrap();
        let stats = vec![stat("a", 0o644), stat("b", go_mode::DIR | 0o755), stat("b/new", 0o644)];
        receive(root.path(), Mode::Keep, stats.clone()).unwrap();
        assert!(at("a").is_file() && at("b/other").exists() && at("b/new").exists());
        receive(root.path(), Mode::Delete, stats).unwrap();
        assert!(!at("b/other").exists() && at("b/new").exists());
    }

    #[test]
    fn nothing_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a//b", "a/../b", ".", "", "a\0b"] {
            assert!(receive(root.path(), Mode::Keep, vec![stat(path, 0o644)]).is_err(), "{path:?}");
        }
        let through_own_link = vec![link("l", go_mode::SYMLINK, outside.path().to_str().unwrap()), stat("l/x", 0o644)];
        assert!(receive(root.path(), Mode::Keep, through_own_link).is_err());
        // A link that lies there already is replaced by the directory, not followed.
        std::os::unix::fs::symlink(outside.path(), root.path().join("m")).unwrap();
        receive(root.path(), Mode::Keep, vec![stat("m", go_mode::DIR | 0o755), stat("m/x", 0o644)]).unwrap();
        let hard = vec![link("h", 0o644, "../../etc/passwd")];
        assert!(receive(root.path(), Mode::Keep, hard).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_protocol_is_enforced() {
        let root = tempfile::tempdir().unwrap();
        assert!(receive(root.path(), Mode::Keep, vec![stat("b", 0o644), stat("a", 0o644)]).is_err());
        assert!(receive(root.path(), Mode::Keep, vec![stat("a", 0o644), stat("a/b", 0o644)]).is_err());
        let mut receiver = Receiver::new(root.path(), Mode::Keep).unwrap();
        assert!(receiver.take(Packet::Data { id: 0, data: "x".into() }).is_err());
        assert!(receiver.take(Packet::Fin).is_err());
    }

    /// Begins `new/a` and `a`, and says what lies in `new` and above it while they grow.
    fn begin(root: &Path) -> (Receiver, Vec<String>) {
        let mut receiver = Receiver::new(root, Mode::Keep).unwrap();
        for stat in [stat("a", 0o644), stat("new", go_mode::DIR | 0o755), stat("new/a", 0o644)] {
            receiver.take(Packet::Stat(stat)).unwrap();
        }
        for id in [0, 2] {
            receiver.take(Packet::Data { id, data: "x".into() }).unwrap();
        }
        let found = [root.to_owned(), root.join("new")].map(|place| names(&std::fs::File::open(place).unwrap().into()).unwrap());
        (receiver, found.concat())
    }

    #[test]
    fn an_aborted_transfer_leaves_no_part_of_a_file() {
        let root = tempfile::tempdir().unwrap();
        let (receiver, found) = begin(root.path());
        assert_eq!(found.iter().filter(|name| name.starts_with(".tmp.")).count(), 1, "{found:?}");
        drop(receiver);
        assert_eq!(names(&std::fs::File::open(root.path()).unwrap().into()).unwrap(), ["new"]);
        assert_eq!(std::fs::read_dir(root.path().join("new")).unwrap().count(), 0);
    }

    #[test]
    fn a_file_grows_under_its_own_name_only_where_all_is_new() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a"), "old").unwrap();
        let (_receiver, mut found) = begin(root.path());
        found.sort();
        assert!(found.len() == 4 && found[0].starts_with(".tmp.") && found[1..] == ["a", "a", "new"], "{found:?}");
        assert_eq!(std::fs::read_to_string(root.path().join("a")).unwrap(), "old", "whole until it is replaced");
        let missing = root.path().join("b/c");
        let (_receiver, mut found) = begin(&missing);
        found.sort();
        assert_eq!(found, ["a", "a", "new"]);
    }

    #[test]
    fn what_somebody_puts_into_a_new_directory_is_replaced_not_followed() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let root = tempfile::tempdir().unwrap();
        let mut receiver = Receiver::new(root.path(), Mode::Keep).unwrap();
        for path in ["new/link", "new/tree"] {
            let _ = receiver.take(Packet::Stat(stat("new", go_mode::DIR | 0o755)));
            receiver.take(Packet::Stat(stat(path, go_mode::SETUID | 0o711))).unwrap();
        }
        std::os::unix::fs::symlink(outside.path(), root.path().join("new/link")).unwrap();
        std::fs::create_dir_all(root.path().join("new/tree/deep")).unwrap();
        receiver.take(Packet::StatEnd).unwrap();
        for id in [1, 2] {
            receiver.take(Packet::Data { id, data: "x".into() }).unwrap();
            receiver.take(Packet::Data { id, data: Default::default() }).unwrap();
        }
        assert!(receiver.is_finished());
        for path in ["new/link", "new/tree"] {
            use std::os::unix::fs::PermissionsExt as _;
            let found = std::fs::symlink_metadata(root.path().join(path)).unwrap();
            assert!(found.is_file() && found.permissions().mode() & 0o7777 == 0o4711, "{found:?}");
        }
        assert_eq!(std::fs::read(outside.path()).unwrap(), b"");
    }
}
