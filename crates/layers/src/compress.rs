//! Compresses a stream in blocks of a fixed size, several at a time. The output depends on the input and the level only.
mod block;
mod pipe;
mod queue;
mod room;

use std::io::{self, Write};

use fault::Fault;
use oci::{Digest, media};

pub(crate) use block::gzip;
use block::{Block, GZIP_HEADER, WINDOW};
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

/// What compressing leaves.
#[derive(Debug)]
pub struct Compressed<W> {
    /// What was written to.
    pub out: W,
    /// Of the input.
    pub plain: Digest,
}

#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    #[error("{0}")]
    Produce(Fault),
    #[error("failed to write what was compressed")]
    Write(#[source] io::Error),
}

/// Writes what `produce` writes, compressed, to `out`. Each has a thread of its own, so that reading does not wait for writing, nor that for
/// reading. Estargz has a writer of its own.
pub async fn compress<W: Write + Send + 'static>(
    compression: Compression,
    room: CompressionRoom,
    out: W,
    produce: impl FnOnce(&mut dyn Write) -> fault::Result<()> + Send + 'static,
) -> Result<Compressed<W>, CompressError> {
    let (mut filling, filled) = pipe::pipe(compression.kind.block_size());
    let producing = task::blocking(move || {
        produce(&mut filling)?;
        Ok(filling.finish()?)
    });
    let compressing = task::blocking(move || Ok(compress_all(compression, room, out, &filled)));
    let (produced, compressed) = tokio::join!(producing, compressing);
    // Whoever failed first is the cause. A writer that fails is seen by the producer, too, as a pipe that nobody reads.
    match (compressed.map_err(CompressError::Produce)?.map_err(CompressError::Write)?, produced.map_err(CompressError::Produce)?) {
        (Some(out), plain) => Ok(Compressed { out, plain }),
        (None, _) => Err(CompressError::Produce(Fault::internal("an archive ended before its last block"))),
    }
}

/// `None`: the last block did not come.
fn compress_all<W: Write>(compression: Compression, room: CompressionRoom, out: W, input: &pipe::Filled) -> io::Result<Option<W>> {
    let mut compressor = Compressor::new(out, compression, room)?;
    while let Some(pipe::Part { block, last }) = input.take() {
        compressor.block(block, last)?;
        if last {
            return compressor.finish().map(Some);
        }
    }
    Ok(None)
}

/// For a blocking thread within the runtime.
struct Compressor<W> {
    stream: Stream<W>,
    compression: Compression,
    /// The end of the block before, for gzip.
    window: Vec<u8>,
    running: Queue<io::Result<Block>>,
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
    fn new(mut out: W, compression: Compression, room: CompressionRoom) -> io::Result<Self> {
        if compression.kind == CompressionKind::Gzip {
            out.write_all(&GZIP_HEADER)?;
        }
        let stream = Stream { out, crc: flate2::Crc::new() };
        Ok(Self { stream, compression, window: Vec::new(), running: Queue::new(room) })
    }

    /// Takes the next block of the input. The last one may be empty: no block at all is neither gzip nor zstd.
    fn block(&mut self, input: Vec<u8>, last: bool) -> io::Result<()> {
        let Compression { kind, level, .. } = self.compression;
        if kind == CompressionKind::Uncompressed {
            return self.stream.out.write_all(&input);
        }
        let window = std::mem::take(&mut self.window);
        if kind == CompressionKind::Gzip {
            self.window = input[input.len().saturating_sub(WINDOW)..].to_vec();
        }
        let work = move || block::compress(kind, level, &window, &input, last);
        self.running.start(kind.block_memory(level), work, &mut |block| self.stream.append(block))
    }

    /// Writes what is left, and the format's end. Gives back what was written to.
    fn finish(self) -> io::Result<W> {
        let Self { mut stream, running, compression, .. } = self;
        running.finish(&mut |block| stream.append(block))?;
        let Stream { mut out, crc } = stream;
        if compression.kind == CompressionKind::Gzip {
            out.write_all(&crc.sum().to_le_bytes())?;
            out.write_all(&crc.amount().to_le_bytes())?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Compresses on a runtime with so many threads and permits.
    fn compressed(kind: CompressionKind, level: Option<i32>, threads: usize, input: Vec<u8>, chunk: usize) -> Vec<u8> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).max_blocking_threads(threads + 2).build().unwrap();
        let produce = move |out: &mut dyn Write| Ok(input.chunks(chunk).try_for_each(|part| out.write_all(part))?);
        let compression = Compression { kind, level, force: false };
        let done = runtime.block_on(compress(compression, CompressionRoom::new(threads), Vec::new(), produce)).unwrap();
        done.out
    }

    /// Takes so many bytes and no more.
    #[derive(Debug)]
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(data.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_fails_first_is_the_error() {
        let compression = Compression { kind: CompressionKind::Uncompressed, ..Compression::default() };
        let room = || CompressionRoom::new(2);
        let gives_up = |_: &mut dyn Write| Err(Fault::invalid("the tree is gone"));
        let error = compress(compression, room(), Vec::new(), gives_up).await.unwrap_err();
        assert!(matches!(&error, CompressError::Produce(fault) if fault.to_string() == "the tree is gone"), "{error}");
        let writes = |out: &mut dyn Write| Ok(out.write_all(&vec![1; 20 << 20])?);
        let error = compress(compression, room(), Full(5 << 20), writes).await.unwrap_err();
        assert!(matches!(&error, CompressError::Write(error) if error.kind() == io::ErrorKind::StorageFull), "{error}");
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
