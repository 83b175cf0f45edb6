//! Compresses a stream in blocks of a fixed size, several at a time. The output depends on the input and the level only.
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use flate2::{Compress, FlushCompress, Status};
use oci::media;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

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
    /// Not made by kiln; asking for it is an error.
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
}

/// Deflate's window: what a block may refer back to.
const WINDOW: usize = 32 << 10;
/// No extra fields, no time, unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// A compressing [`Write`] for a blocking thread within the runtime. [`Compressor::finish`] must be called.
pub(crate) struct Compressor<W> {
    out: W,
    kind: CompressionKind,
    level: Option<i32>,
    budget: Arc<Semaphore>,
    runtime: tokio::runtime::Handle,
    block: Vec<u8>,
    /// The end of the block before, for gzip.
    window: Vec<u8>,
    /// Blocks under way, in order.
    running: VecDeque<oneshot::Receiver<io::Result<Block>>>,
    most_running: usize,
    crc: flate2::Crc,
    started: bool,
}

struct Block {
    data: Vec<u8>,
    crc: flate2::Crc,
}

impl<W: Write> Compressor<W> {
    /// Must be called within a runtime.
    pub fn new(out: W, kind: CompressionKind, level: Option<i32>, budget: Arc<Semaphore>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            out,
            kind,
            level,
            budget,
            runtime: tokio::runtime::Handle::current(),
            block: Vec::new(),
            window: Vec::new(),
            running: VecDeque::new(),
            most_running: cores * 2,
            crc: flate2::Crc::new(),
            started: false,
        }
    }

    pub fn finish(mut self) -> io::Result<W> {
        match self.kind {
            CompressionKind::Uncompressed => {}
            CompressionKind::Gzip => self.start_block(true)?,
            // One empty frame at least: no frame at all is no zstd.
            _ if !self.block.is_empty() || !self.started => self.start_block(true)?,
            _ => {}
        }
        while !self.running.is_empty() {
            self.write_first()?;
        }
        if self.kind == CompressionKind::Gzip {
            self.out.write_all(&self.crc.sum().to_le_bytes())?;
            self.out.write_all(&self.crc.amount().to_le_bytes())?;
        }
        Ok(self.out)
    }

    fn start_block(&mut self, last: bool) -> io::Result<()> {
        if !self.started && self.kind == CompressionKind::Gzip {
            self.out.write_all(&GZIP_HEADER)?;
        }
        self.started = true;
        while self.running.len() >= self.most_running {
            self.write_first()?;
        }
        let permit = self.permit()?;
        let input = std::mem::take(&mut self.block);
        let window = std::mem::take(&mut self.window);
        if self.kind == CompressionKind::Gzip {
            self.window = input[input.len().saturating_sub(WINDOW)..].to_vec();
        }
        let (kind, level) = (self.kind, self.level);
        let (done, outcome) = oneshot::channel();
        let _in_runtime = self.runtime.enter();
        task::spawn("compress", async move {
            let work = move || {
                let block = compress(kind, level, &window, &input, last);
                drop(permit);
                Ok(block)
            };
            let block = task::blocking(work).await.unwrap_or_else(|fault| Err(io::Error::other(fault.to_string())));
            let _ = done.send(block);
        });
        self.running.push_back(outcome);
        Ok(())
    }

    /// Waits for room in the budget that all builds share.
    fn permit(&self) -> io::Result<OwnedSemaphorePermit> {
        self.runtime.block_on(self.budget.clone().acquire_owned()).map_err(io::Error::other)
    }

    fn write_first(&mut self) -> io::Result<()> {
        let Some(first) = self.running.pop_front() else { return Ok(()) };
        let block = first.blocking_recv().map_err(io::Error::other)??;
        self.crc.combine(&block.crc);
        self.out.write_all(&block.data)
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.kind == CompressionKind::Uncompressed {
            self.out.write_all(data)?;
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

fn compress(kind: CompressionKind, level: Option<i32>, window: &[u8], input: &[u8], last: bool) -> io::Result<Block> {
    match kind {
        CompressionKind::Gzip => deflate(level, window, input, last),
        CompressionKind::Zstd => {
            let level = level.unwrap_or(3).clamp(*zstd::compression_level_range().start(), *zstd::compression_level_range().end());
            Ok(Block { data: zstd::bulk::compress(input, level)?, crc: flate2::Crc::new() })
        }
        CompressionKind::Uncompressed | CompressionKind::Estargz => unreachable!("not compressed in blocks"),
    }
}

/// One block of a deflate stream. All but the last end on a byte with an empty stored block, so that they can be joined.
fn deflate(level: Option<i32>, window: &[u8], input: &[u8], last: bool) -> io::Result<Block> {
    let level = level.and_then(|level| u32::try_from(level).ok()).map_or(6, |level| level.min(9));
    let mut deflate = Compress::new(flate2::Compression::new(level), false);
    if !window.is_empty() {
        deflate.set_dictionary(window).map_err(io::Error::other)?;
    }
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut data = Vec::with_capacity(input.len() / 2 + 1024);
    loop {
        let consumed = deflate.total_in() as usize;
        let status = deflate.compress_vec(&input[consumed..], &mut data, flush).map_err(io::Error::other)?;
        // A flush is complete once it leaves room in the output.
        let flushed = !last && deflate.total_in() as usize == input.len() && data.len() < data.capacity();
        if status == Status::StreamEnd || flushed {
            break;
        }
        data.reserve(64 << 10);
    }
    let mut crc = flate2::Crc::new();
    crc.update(input);
    Ok(Block { data, crc })
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
                let mut compressor = Compressor::new(Vec::new(), kind, level, Arc::new(Semaphore::new(threads)));
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
