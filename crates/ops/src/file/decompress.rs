//! Compressed files, recognized by how they begin.
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};

/// The content of `file`, decompressed if it is gzip, bzip2, xz or zstd.
pub(super) fn open(file: File) -> io::Result<Box<dyn Read>> {
    let mut reader = BufReader::with_capacity(128 * 1024, file);
    let start = reader.fill_buf()?;
    Ok(match Format::of(start) {
        Format::None => Box::new(reader),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        Format::Xz => Box::new(lzma_rust2::XzReader::new(reader, true)),
        Format::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(reader)?;
            decoder.window_log_max(31)?;
            Box::new(decoder)
        }
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Format {
    None,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

impl Format {
    fn of(start: &[u8]) -> Self {
        match start {
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A frame to be skipped, in front of the data.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, _, _, _, _, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}
