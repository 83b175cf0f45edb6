//! Compresses a stream in blocks of a fixed size, several at a time. The output depends on the input and the level only.
mod block;
mod queue;
mod room;

use std::io::{self, Write};

use oci::media;

pub(crate) use block::gzip;
use block::{Block, GZIP_HEADER, WINDOW, compress};
pub(crate) use queue::Queue;
pub use room::CompressionRoom;

/// How a layer's blob is to be stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compression {
    pub kind: CompressionKind,
    /// As the format counts levels; its usual one if not given.
    pub level: Option<i32>,
    /// Also for layers that have a blob of another kind.
    pub force: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum CompressionKind {
    Uncompressed,
    #[default]
    Gzip,
    Zstd,
    /// Gzip with a table of contents, from which single files can be read. Such a blob's archive is not the layer's own: it has one more member.
    Estargz,
}

impl CompressionKind {
    pub fn name(self) -> &'static str {
        match self {
            CompressionKind::Uncompressed => "uncompressed",
            CompressionKind::Gzip => "gzip",
            CompressionKind::Zstd => "zstd",
            CompressionKind::Estargz => "estargz",
        }
    }

    /// OCI's media type for such layers.
    pub fn media_type(self) -> &'static str {
        match self {
            CompressionKind::Uncompressed => media::OCI_LAYER,
            CompressionKind::Gzip | CompressionKind::Estargz => media::OCI_LAYER_GZIP,
            CompressionKind::Zstd => media::OCI_LAYER_ZSTD,
        }
    }

    /// Input bytes of one block. Part of what makes the output the same everywhere: never to be changed lightly.
    fn block_size(self) -> usize {
        match self {
            CompressionKind::Zstd => 4 << 20,
            _ => 1 << 20,
        }
    }

    /// About how many MiB one block takes: its input, its output and what the compressor looks things up in.
    fn block_memory(self, level: Option<i32>) -> u32 {
        match (self, level.unwrap_or_default()) {
            (CompressionKind::Zstd, 13..) => 64,
            (CompressionKind::Zstd, 6..) => 32,
            (CompressionKind::Zstd, _) => 12,
            _ => 3,
        }
    }
}

/// A compressing [`Write`] for a blocking thread within the runtime. [`Compressor::finish`] must be called.
pub struct Compressor<W> {
    stream: Stream<W>,
    kind: CompressionKind,
    level: Option<i32>,
    block: Vec<u8>,
    /// The end of the block before, for gzip.
    window: Vec<u8>,
    running: Queue<io::Result<Block>>,
    started: bool,
}

/// What has been written.
struct Stream<W> {
    out: W,
    crc: flate2::Crc,
}

impl<W: Write> Stream<W> {
    fn append(&mut self, block: io::Result<Block>) -> io::Result<()> {
        let block = block?;
        self.crc.combine(&block.crc);
        self.out.write_all(&block.data)
    }
}

impl<W: Write> Compressor<W> {
    /// Must be called within a runtime. Estargz has a writer of its own.
    pub fn new(out: W, kind: CompressionKind, level: Option<i32>, room: CompressionRoom) -> Self {
        Self {
            stream: Stream { out, crc: flate2::Crc::new() },
            kind,
            level,
            block: Vec::new(),
            window: Vec::new(),
            running: Queue::new(room),
            started: false,
        }
    }

    /// Writes what is left, and the format's end. Gives back what was written to.
    pub fn finish(mut self) -> io::Result<W> {
        match self.kind {
            CompressionKind::Uncompressed => {}
            CompressionKind::Gzip => self.start_block(true)?,
            // One empty frame at least: no frame at all is no zstd.
            _ if !self.block.is_empty() || !self.started => self.start_block(true)?,
            _ => {}
        }
        let Stream { mut out, crc } = {
            let Self { mut stream, running, .. } = self;
            running.finish(&mut |block| stream.append(block))?;
            stream
        };
        if self.kind == CompressionKind::Gzip {
            out.write_all(&crc.sum().to_le_bytes())?;
            out.write_all(&crc.amount().to_le_bytes())?;
        }
        Ok(out)
    }

    fn start_block(&mut self, last: bool) -> io::Result<()> {
        if !self.started && self.kind == CompressionKind::Gzip {
            self.stream.out.write_all(&GZIP_HEADER)?;
        }
        self.started = true;
        let input = std::mem::take(&mut self.block);
        let window = std::mem::take(&mut self.window);
        if self.kind == CompressionKind::Gzip {
            self.window = input[input.len().saturating_sub(WINDOW)..].to_vec();
        }
        let (kind, level) = (self.kind, self.level);
        let work = move || compress(kind, level, &window, &input, last);
        self.running.start(kind.block_memory(level), work, &mut |block| self.stream.append(block))
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.kind == CompressionKind::Uncompressed {
            self.stream.out.write_all(data)?;
            return Ok(data.len());
        }
        let size = self.kind.block_size();
        // A full block only goes when more comes: whether it is the last must be known.
        if self.block.len() == size {
            self.start_block(false)?;
        }
        if self.block.capacity() == 0 {
            self.block.reserve_exact(size);
        }
        let taken = data.len().min(size - self.block.len());
        self.block.extend_from_slice(&data[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Compresses on a runtime with so many threads and permits.
    fn compressed(kind: CompressionKind, level: Option<i32>, threads: usize, input: Vec<u8>, chunk: usize) -> Vec<u8> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).max_blocking_threads(threads + 1).build().unwrap();
        runtime.block_on(async move {
            let work = move || {
                let mut compressor = Compressor::new(Vec::new(), kind, level, CompressionRoom::new(threads));
                for part in input.chunks(chunk) {
                    compressor.write_all(part)?;
                }
                Ok(compressor.finish()?)
            };
            task::blocking(work).await.unwrap()
        })
    }

    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        // Half noise, half repetition, so that blocks refer to the one before.
        (0..length).map(|n| if n % 2 == 0 { (n / 700 % 251) as u8 } else { next() as u8 & 0x1f }).collect()
    }

    fn gunzip(data: &[u8]) -> Vec<u8> {
        // Not the decoder for several members: there must be one only.
        let mut plain = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(data);
        decoder.read_to_end(&mut plain).unwrap();
        assert!(decoder.into_inner().is_empty(), "one member");
        plain
    }

    #[test]
    fn gzip_is_the_same_however_many_threads_and_writes() {
        for length in [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000] {
            let input = sample(length);
            let one = compressed(CompressionKind::Gzip, None, 1, input.clone(), 1 << 20);
            assert_eq!(one, compressed(CompressionKind::Gzip, None, 4, input.clone(), 777), "{length}");
            assert_eq!(gunzip(&one), input, "{length}");
        }
        let input = sample(3_000_000);
        let fast = compressed(CompressionKind::Gzip, Some(1), 2, input.clone(), 4096);
        let best = compressed(CompressionKind::Gzip, Some(9), 2, input.clone(), 4096);
        assert!(best.len() < fast.len(), "levels count");
        assert_eq!(gunzip(&best), input);
    }

    #[test]
    fn blocks_know_what_came_before_them() {
        // Noise that repeats within the window only across the border of two blocks.
        let mut input = vec![0; (1 << 20) - 20_000];
        let noise: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        input.extend_from_slice(&noise);
        input.extend_from_slice(&noise);
        let out = compressed(CompressionKind::Gzip, None, 2, input.clone(), 1 << 16);
        assert_eq!(gunzip(&out), input);
        assert!(out.len() < 30_000, "{} bytes", out.len());
    }

    #[test]
    fn zstd_is_the_same_however_many_threads_and_writes() {
        for length in [0, 1, 4 << 20, (4 << 20) + 1, 9_000_000] {
            let input = sample(length);
            let one = compressed(CompressionKind::Zstd, None, 1, input.clone(), 1 << 20);
            assert_eq!(one, compressed(CompressionKind::Zstd, None, 4, input.clone(), 999), "{length}");
            assert_eq!(zstd::decode_all(&one[..]).unwrap(), input, "{length}");
        }
    }

    #[test]
    fn plain_stays_plain() {
        assert_eq!(compressed(CompressionKind::Uncompressed, None, 1, b"abc".to_vec(), 1), b"abc");
    }

    /// A new version of the compressor may change it: then blobs made before and after do not deduplicate in registries. Worth knowing.
    #[test]
    fn the_format_of_gzip_blobs_does_not_drift() {
        let out = compressed(CompressionKind::Gzip, None, 2, sample(2_500_000), 1 << 16);
        assert_eq!(oci::Digest::of(&out).as_str(), "sha256:d18dc6cc4476c46e3769d746bc45f66eb1222aae18c45bcd03c30acc2d0cbdfa");
    }
}
