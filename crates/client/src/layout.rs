//! The `index.json` of an image layout directory: which image or cache has which name.
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use oci::{Descriptor, Index};
use rustix::fs::FlockOperation;

/// A name in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A whole reference; its tag is the entry's reference name.
    Image(String),
    Tag(String),
}

#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is malformed", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("could not lock {}", path.display())]
    Locked { path: PathBuf },
}

impl fault::Classified for LayoutError {
    fn kind(&self) -> fault::Kind {
        match self {
            Self::Io { source, .. } => fault::Kind::of_io(source),
            Self::Malformed { .. } => fault::Kind::Invalid,
            Self::Locked { .. } => fault::Kind::Unavailable,
        }
    }
}

const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// The entry with this name or tag; `None` also where there is no index.
pub fn find(root: &Path, tag: &str) -> Result<Option<Descriptor>, LayoutError> {
    let Some(index) = read(&root.join("index.json"))? else { return Ok(None) };
    let named = |key: &str| index.manifests.iter().find(|m| m.annotations.get(key).is_some_and(|name| name == tag));
    Ok(named(IMAGE_NAME).or_else(|| named(REF_NAME)).cloned())
}

/// Enters a descriptor under all these names, in the place of what had them; without names just once.
pub fn put(root: &Path, descriptor: &Descriptor, names: &[Name]) -> Result<(), LayoutError> {
    let path = root.join("index.json");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LayoutError::Io { path, source }
    };
    let _lock = Lock::take(root.join("index.json.lock"))?;
    fs::write(root.join("oci-layout"), LAYOUT).map_err(failed(root))?;
    let mut index = read(&path)?.unwrap_or_else(empty);
    if names.is_empty() {
        index.manifests.retain(|m| m.digest != descriptor.digest);
        index.manifests.push(descriptor.clone());
    }
    for name in names {
        let mut entry = descriptor.clone();
        match name {
            Name::Image(image) => {
                let tag = image.parse::<oci::Reference>().ok().and_then(|reference| reference.tag().map(str::to_owned));
                entry.annotations.insert(IMAGE_NAME.into(), image.clone());
                entry.annotations.insert(REF_NAME.into(), tag.unwrap_or_else(|| "latest".into()));
                index.manifests.retain(|m| m.annotations.get(IMAGE_NAME) != Some(image));
            }
            Name::Tag(tag) => {
                entry.annotations.insert(REF_NAME.into(), tag.clone());
                index.manifests.retain(|m| m.annotations.contains_key(IMAGE_NAME) || m.annotations.get(REF_NAME) != Some(tag));
            }
        }
        index.manifests.push(entry);
    }
    // Whole or not at all.
    let fresh = root.join(".index.json.new");
    fs::write(&fresh, oci::gojson::to_vec(&index)).map_err(failed(&fresh))?;
    fs::rename(&fresh, &path).map_err(failed(&path))
}

fn empty() -> Index {
    Index {
        schema_version: 2,
        media_type: oci::media::OCI_INDEX.into(),
        artifact_type: String::new(),
        manifests: Vec::new(),
        subject: None,
        annotations: Default::default(),
    }
}

fn read(path: &Path) -> Result<Option<Index>, LayoutError> {
    match fs::read(path) {
        Ok(bytes) if bytes.is_empty() => Ok(None),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| LayoutError::Malformed { path: path.to_owned(), source }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LayoutError::Io { path: path.to_owned(), source }),
    }
}

/// The lock that BuildKit's tools take too.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(path: PathBuf) -> Result<Self, LayoutError> {
        let file = File::create(&path).map_err(|source| LayoutError::Io { path: path.clone(), source })?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(LayoutError::Locked { path });
        }
        Ok(Self { path, _file: file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_what_was_put_last() {
        let root = tempfile::tempdir().unwrap();
        let of = |text: &str| Descriptor::of("application/vnd.oci.image.manifest.v1+json", text.as_bytes());
        assert_eq!(find(root.path(), "latest").unwrap(), None);
        put(root.path(), &of("a"), &[Name::Tag("latest".into())]).unwrap();
        put(root.path(), &of("b"), &[Name::Tag("latest".into()), Name::Tag("other".into())]).unwrap();
        put(root.path(), &of("c"), &[Name::Image("docker.io/library/x:v1".into())]).unwrap();
        let digest = |tag: &str| find(root.path(), tag).unwrap().map(|d| d.digest);
        assert_eq!(digest("latest"), Some(of("b").digest));
        assert_eq!(digest("docker.io/library/x:v1"), Some(of("c").digest));
        assert_eq!(digest("v1"), Some(of("c").digest));
        let index = read(&root.path().join("index.json")).unwrap().unwrap();
        assert_eq!(index.manifests.len(), 3);
        assert!(!root.path().join("index.json.lock").exists() && root.path().join("oci-layout").exists());
    }

    #[test]
    fn a_broken_index_is_not_overwritten() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("index.json"), "{").unwrap();
        assert!(put(root.path(), &Descriptor::of("x", b"a"), &[]).is_err());
        assert_eq!(fs::read_to_string(root.path().join("index.json")).unwrap(), "{");
    }
}
