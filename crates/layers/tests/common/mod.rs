//! A home for layers in a temporary directory, and images to pull into it. Needs root, as overlay trees do.
#![allow(clippy::unwrap_used)]
#![allow(dead_code)]
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fault::{Fault, Kind};
use layers::{BlobSource, ByteStream, ImageLayer, Layers, Properties};
use oci::{Descriptor, Digest, media};
use progress::Reporter;
use task::Cancel;

pub struct Home {
    pub dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn open(&self) -> Layers {
        self.open_in_boot("this boot")
    }

    /// A database has one opener at a time.
    pub fn open_again(&self, before: Layers) -> Layers {
        drop(before);
        self.open()
    }

    pub fn open_in_boot(&self, boot: &str) -> Layers {
        let root = self.dir.path();
        let db = kv::Db::open(&root.join("db"), kv::Options::default()).unwrap();
        let content = content::Store::open_as_of_boot(&root.join("content"), db.clone(), boot).unwrap();
        let trees = snapshot::Store::open(&root.join("trees"), snapshot::Options::default()).unwrap();
        Layers::open_as_of_boot(db, content, trees, boot).unwrap()
    }
}

/// Writes ustar archives entry by entry.
#[derive(Default, Clone)]
pub struct Archive(pub Vec<u8>);

impl Archive {
    pub fn header(name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> [u8; 512] {
        let mut block = [0u8; 512];
        block[..name.len()].copy_from_slice(name);
        let mut octal = |at: usize, width: usize, value: u64| {
            block[at..at + width - 1].copy_from_slice(format!("{value:0w$o}", w = width - 1).as_bytes());
        };
        octal(100, 8, mode.into());
        octal(108, 8, 0);
        octal(116, 8, 0);
        octal(124, 12, size);
        octal(136, 12, 1_600_000_000);
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        block
    }

    pub fn block(mut self, block: [u8; 512], data: &[u8]) -> Self {
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.block(Self::header(name.as_bytes(), b'5', mode, 0, b""), b"")
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        self.block(Self::header(name.as_bytes(), b'0', 0o644, data.len() as u64, b""), data.as_bytes())
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.block(Self::header(name.as_bytes(), b'2', 0o777, 0, target.as_bytes()), b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.block(Self::header(name.as_bytes(), b'1', 0o644, 0, target.as_bytes()), b"")
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|n: &usize| n.to_string().len() + rest == *n || (n.to_string().len() + rest) == *n).unwrap();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.block(Self::header(b"PaxHeader", b'x', 0, data.len() as u64, b""), &data)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A registry in memory that counts what it serves.
#[derive(Default)]
pub struct Source {
    pub blobs: Vec<Bytes>,
    pub fetches: AtomicUsize,
    pub served: AtomicUsize,
    /// Fetches to break off after half of the blob.
    pub failures: AtomicUsize,
    pub owner: Option<Reporter>,
}

#[async_trait::async_trait]
impl BlobSource for Source {
    async fn fetch(&self, blob: &Descriptor, offset: u64) -> fault::Result<ByteStream> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let data = self.blobs.iter().find(|data| Digest::of(data) == blob.digest);
        let data = data.cloned().ok_or_else(|| Fault::new(Kind::NotFound, "no such blob"))?;
        let rest = data.slice(offset as usize..);
        let fails = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        let end = if fails { rest.len() / 2 } else { rest.len() };
        self.served.fetch_add(end, Ordering::SeqCst);
        let mut chunks: Vec<fault::Result<Bytes>> = rest[..end].chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        if fails {
            chunks.push(Err(Fault::new(Kind::Unavailable, "connection reset")));
        }
        Ok(Box::pin(futures_util::stream::iter(chunks)))
    }

    fn reporter(&self) -> Option<Reporter> {
        self.owner.clone()
    }
}

/// Layers with gzip blobs of these archives.
pub fn image(archives: &[Vec<u8>]) -> (Vec<ImageLayer>, Source) {
    let mut source = Source::default();
    let mut list = Vec::new();
    for archive in archives {
        let blob = Bytes::from(gzip(archive));
        list.push(ImageLayer {
            descriptor: Descriptor::of(media::OCI_LAYER_GZIP, &blob),
            diff_id: Digest::of(archive),
            created: None,
            properties: Properties::new("pulled from example.com/image"),
        });
        source.blobs.push(blob);
    }
    (list, source)
}

pub async fn pull(layers: &Layers, archives: &[Vec<u8>]) -> layers::Layer {
    let (list, source) = image(archives);
    let layer = layers.from_image(list, Arc::new(source)).unwrap().unwrap();
    layer.realize(&Cancel::new(), &Reporter::silent()).await.unwrap();
    layer
}

/// Files of a layer as `path mode content`, for comparisons.
pub fn listing(view: &snapshot::View) -> Vec<String> {
    let mut lines = Vec::new();
    view.walk::<snapshot::PathError>("/", &mut |entry| {
        let metadata = entry.metadata();
        let content = match metadata.file_type() {
            snapshot::FileType::RegularFile => String::from_utf8_lossy(&std::fs::read(entry.real_path()).unwrap()).into_owned(),
            snapshot::FileType::Symlink => format!("-> {}", view.read_link(entry.path()).unwrap().display()),
            snapshot::FileType::Directory => "/".into(),
            other => format!("{other:?}"),
        };
        lines.push(format!("{} {:o} {content}", entry.path().display(), metadata.permissions()));
        Ok(true)
    })
    .unwrap();
    lines
}

pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
