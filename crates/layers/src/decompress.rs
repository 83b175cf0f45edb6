use std::io::{self, BufRead, Read};

use oci::{Digest, Hasher};
use task::Cancel;

/// The plain bytes of what may be gzip, zstd or plain; told apart by the first bytes, whatever the media type says.
pub(crate) fn decompress<'a>(mut blob: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    // A short first read would hide the magic number only if it were shorter than that, which no source that matters does.
    let start = blob.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(blob)?),
        // Frames that decoders skip, which some tools put first.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(blob)?),
        _ => Box::new(blob),
    })
}

/// Hashes what passes, and stops when cancelled.
pub(crate) struct Hashed<R> {
    inner: R,
    hasher: Hasher,
    cancel: Cancel,
}

impl<R: Read> Hashed<R> {
    pub fn new(inner: R, cancel: Cancel) -> Self {
        Self { inner, hasher: Hasher::new(), cancel }
    }

    pub fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other(self.cancel.reason().to_owned()));
        }
        let read = self.inner.read(out)?;
        self.hasher.update(&out[..read]);
        Ok(read)
    }
}
