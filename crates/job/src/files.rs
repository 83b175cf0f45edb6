//! A result's files, as frontends and containers of the gateway may look at them.
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use fault::{Fault, Kind, Result};
use layers::Layer;
use patterns::Matcher;
use progress::Reporter;
use session::{Stat, go_mode};
use snapshot::{Entry, Follow, PathError, View};
use task::Cancel;

/// The largest file that is handed out in one piece.
const MAX_FILE: u64 = 16 << 20;

/// A result on disk. `None` (scratch) has no files.
pub struct Tree {
    /// Keeps the files from being pruned while they are read.
    layer: Option<Layer>,
    view: Option<View>,
}

impl Tree {
    /// Fetches and unpacks what is still missing of the layer.
    pub async fn open(layer: Option<Layer>, cancel: &Cancel) -> Result<Self> {
        let Some(layer) = layer else { return Ok(Self { layer: None, view: None }) };
        layer.realize_with_room(cancel, &Reporter::silent()).await?;
        let view = layer.view()?;
        Ok(Self { layer: Some(layer), view: Some(view) })
    }

    /// Files that the caller keeps.
    pub fn of(view: View) -> Self {
        Self { layer: None, view: Some(view) }
    }

    pub async fn read_file(&self, path: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        self.with(path, "open", move |view, path| {
            let entry = view.require(path, Follow::Yes).map_err(|e| path_fault("open", path, &e))?;
            if !entry.metadata().is_file() {
                return Err(Fault::invalid(format!("{path} is not a regular file")));
            }
            let mut file = entry.open()?;
            let (offset, length) = range.unwrap_or_default();
            let rest = entry.metadata().size.saturating_sub(offset);
            let length = if length == 0 { rest } else { length.min(rest) };
            if length > MAX_FILE {
                return Err(Fault::new(
                    Kind::Exhausted,
                    format!("{path}: {length} bytes are more than the {MAX_FILE} that one read may give"),
                ));
            }
            file.seek(SeekFrom::Start(offset))?;
            let mut data = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
            file.take(length).read_to_end(&mut data)?;
            Ok(Bytes::from(data))
        })
        .await
    }

    /// A whole regular file of at most `limit` bytes.
    pub async fn read_whole(&self, path: &str, limit: u64) -> Result<Bytes> {
        self.with(path, "open", move |view, path| {
            let entry = view.require(path, Follow::Yes).map_err(|e| path_fault("open", path, &e))?;
            if !entry.metadata().is_file() {
                return Err(Fault::new(Kind::Unknown, format!("{path} is not a regular file")));
            }
            if entry.metadata().size > limit {
                return Err(Fault::new(Kind::Unknown, format!("{path} exceeds {limit} bytes")));
            }
            let mut data = Vec::new();
            entry.open()?.read_to_end(&mut data)?;
            Ok(Bytes::from(data))
        })
        .await
    }

    pub async fn read_dir(&self, path: &str, include: &str) -> Result<Vec<Stat>> {
        // Scratch has a root, if nothing else.
        if self.view.is_none() && Path::new("/").join(path) == Path::new("/") {
            return Ok(Vec::new());
        }
        let include = include.to_owned();
        self.with(path, "open", move |view, path| {
            let entries = view.read_dir(path).map_err(|e| path_fault("open", path, &e))?;
            let matcher =
                (!include.is_empty()).then(|| Matcher::new([include.as_str()])).transpose().map_err(|e| Fault::invalid(e.to_string()))?;
            let mut stats = Vec::with_capacity(entries.len());
            for entry in entries {
                let name = entry.name().to_string_lossy().into_owned();
                let wanted = matcher.as_ref().map_or(Ok(true), |m| m.matches(&name)).map_err(|e| Fault::invalid(e.to_string()))?;
                if wanted {
                    stats.push(stat(view, &entry, name)?);
                }
            }
            Ok(stats)
        })
        .await
    }

    pub async fn stat(&self, path: &str) -> Result<Stat> {
        self.with(path, "lstat", move |view, path| {
            let entry = view.require(path, Follow::Yes).map_err(|e| path_fault("lstat", path, &e))?;
            let name = Path::new(path).file_name().map_or_else(|| "/".to_owned(), |n| n.to_string_lossy().into_owned());
            stat(view, &entry, name)
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        path: &str,
        action: &'static str,
        work: impl FnOnce(&View, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Some(view) = self.view.clone() else {
            return Err(Fault::new(Kind::NotFound, format!("{action} {path}: no such file or directory")));
        };
        let (path, keep) = (path.to_owned(), self.layer.clone());
        task::blocking(move || {
            let _keep = keep;
            work(&view, &path)
        })
        .await
    }
}

/// As Go's `os.PathError` prints, with the path that the caller gave.
fn path_fault(action: &str, path: &str, error: &PathError) -> Fault {
    let kind = Kind::of_io(&error.source);
    let reason = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.source.to_string(),
    };
    Fault::new(kind, format!("{action} {path}: {reason}"))
}

fn stat(view: &View, entry: &Entry, path: String) -> Result<Stat> {
    let metadata = entry.metadata();
    let linkname = if metadata.is_symlink() {
        view.read_link(entry.path()).map_err(|e| Fault::internal(e.to_string()))?.to_string_lossy().into_owned()
    } else {
        String::new()
    };
    let (devmajor, devminor) = metadata.device();
    Ok(Stat {
        path,
        mode: go_mode::from_posix(metadata.mode),
        uid: metadata.uid,
        gid: metadata.gid,
        size: if metadata.is_file() { metadata.size as i64 } else { 0 },
        mod_time: metadata.mtime.unix_nanos(),
        linkname,
        devmajor: devmajor.into(),
        devminor: devminor.into(),
        xattrs: Default::default(),
    })
}
