//! One block of a stream, compressed by itself.
use std::io;

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status, Strategy};

use super::CompressionKind;

/// Deflate's window: what a block may refer back to.
pub const WINDOW: usize = 32 << 10;
/// From this level on a smaller result is worth any time.
const PATIENT: u32 = 7;

/// No extra fields, no time, unknown system.
pub const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

pub struct Block {
    pub data: Vec<u8>,
    /// Of the input.
    pub crc: flate2::Crc,
}

/// `window` is what came before the block, for gzip; `last` ends its stream.
pub fn compress(kind: CompressionKind, level: Option<i32>, window: &[u8], input: &[u8], last: bool) -> io::Result<Block> {
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
    let noise = (1..PATIENT).contains(&level) && is_noise(input);
    let strategy = if noise { Strategy::HuffmanOnly } else { Strategy::Default };
    // A negative number: without zlib's header.
    let config = DeflateConfig { level: level as i32, window_bits: -15, strategy, ..DeflateConfig::default() };
    let mut deflate = Deflate::new_with_config(config);
    if !window.is_empty() && !noise {
        deflate.set_dictionary(window).map_err(failed)?;
    }
    let flush = if last { DeflateFlush::Finish } else { DeflateFlush::SyncFlush };
    let mut data = vec![0; input.len() / 2 + 1024];
    loop {
        let (consumed, written) = (deflate.total_in() as usize, deflate.total_out() as usize);
        let status = deflate.compress(&input[consumed..], &mut data[written..], flush).map_err(failed)?;
        let written = deflate.total_out() as usize;
        // A flush is complete once it leaves room in the output.
        let flushed = !last && deflate.total_in() as usize == input.len() && written < data.len();
        if status == Status::StreamEnd || flushed {
            data.truncate(written);
            break;
        }
        data.resize(data.len() + input.len() / 4 + 1024, 0);
    }
    let mut crc = flate2::Crc::new();
    crc.update(input);
    Ok(Block { data, crc })
}

/// `input` as one gzip member.
pub fn gzip(input: &[u8], level: Option<i32>) -> io::Result<Vec<u8>> {
    let Block { data, crc } = deflate(level, &[], input, true)?;
    Ok([&GZIP_HEADER[..], &data, &crc.sum().to_le_bytes(), &crc.amount().to_le_bytes()].concat())
}

fn failed(error: zlib_rs::DeflateError) -> io::Error {
    io::Error::other(format!("deflate: {}", error.as_str()))
}

/// Whether next to nothing in samples of the block repeats within them: what is compressed or encrypted already, pictures, random numbers. Then looking for
/// repetitions is most of the work, and saves less than one byte in [`RARE`].
fn is_noise(input: &[u8]) -> bool {
    /// One position in so many may be a repetition of four bytes.
    const RARE: usize = 64;
    /// So much of every [`PERIOD`] is looked at. Files of which blocks are made are mostly longer.
    const SAMPLE: usize = 16 << 10;
    const PERIOD: usize = 64 << 10;
    const SLOTS: u32 = 12;
    if input.len() < 4096 {
        return false;
    }
    let mut allowed = input.len().min(input.len().div_ceil(PERIOD) * SAMPLE) / RARE;
    // Where four bytes with a hash were seen last. What an earlier sample left shows as a repetition only if it is one.
    let mut last = vec![0u16; 1 << SLOTS];
    for sample in input.chunks(PERIOD).map(|period| &period[..period.len().min(SAMPLE)]) {
        for (at, four) in sample.windows(4).enumerate() {
            let word = u32::from_le_bytes(four.try_into().expect("windows of four"));
            let slot = &mut last[(word.wrapping_mul(0x9e37_79b1) >> (32 - SLOTS)) as usize];
            let before = usize::from(std::mem::replace(slot, at as u16));
            if before < at && sample[before..before + 4] == *four {
                if allowed == 0 {
                    return false;
                }
                allowed -= 1;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Random numbers of so many bits.
    fn random(bits: u32, length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as u8 & ((1u32 << bits) - 1) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    #[test]
    fn noise_is_told_from_what_repeats() {
        let text: Vec<u8> = (0..50_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let mut mixed = random(8, 1 << 20);
        mixed[500_000..540_000].fill(7);
        let cases = [
            ("bytes", random(8, 1 << 20), true),
            ("six bits", random(6, 1 << 20), true),
            ("hexadecimal digits", random(4, 1 << 20), false),
            ("text", text, false),
            ("a little of something else", mixed, false),
            ("zeros", vec![0; 1 << 20], false),
            ("a few bytes", random(8, 1000), false),
        ];
        for (name, input, noise) in cases {
            assert_eq!(is_noise(&input), noise, "{name}");
        }
    }

    #[test]
    fn noise_takes_no_more_space_for_it() {
        let input = random(6, 1 << 20);
        let (quick, thorough) = (deflate(None, &[], &input, true).unwrap().data, deflate(Some(9), &[], &input, true).unwrap().data);
        assert!(quick.len() <= thorough.len() + input.len() / 100, "{} against {}", quick.len(), thorough.len());
        let mut plain = Vec::new();
        flate2::read::DeflateDecoder::new(&quick[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, input);
    }
}
