//! What `kiln build -` and `-f -` read: a build context as an archive, or a Dockerfile.
use std::io::{Cursor, Read};

use client::session::Upload;

/// A standard input, or what stands in for it.
pub type Input = Box<dyn Read + Send>;

/// What stands in the place of the context.
pub enum Context {
    Archive(Upload),
    Dockerfile(Vec<u8>),
}

/// As much as tells an archive.
const HEAD: u64 = 1024;
/// Larger than any Dockerfile.
const MAX_DOCKERFILE: u64 = 16 << 20;
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// bzip2, gzip, xz.
const PACKED: [&[u8]; 3] = [b"BZh", &[0x1f, 0x8b, 8], &[0xfd, b'7', b'z', b'X', b'Z', 0]];

pub fn context(mut input: Input) -> Result<Context, String> {
    let mut head = Vec::new();
    input.by_ref().take(HEAD).read_to_end(&mut head).map_err(failed)?;
    if head.is_empty() {
        return Err("standard input is empty: a Dockerfile or an archive is wanted".into());
    }
    let is_zstd = head.starts_with(ZSTD);
    let is_archive = PACKED.iter().any(|magic| head.starts_with(magic)) || is_tar(&head);
    let whole = Cursor::new(head).chain(input);
    if is_zstd {
        // Frontends know no archives of this kind.
        let plain = zstd::stream::read::Decoder::new(whole).map_err(failed)?;
        return Ok(Context::Archive(Box::new(plain)));
    }
    if is_archive { Ok(Context::Archive(Box::new(whole))) } else { dockerfile(Box::new(whole)).map(Context::Dockerfile) }
}

pub fn dockerfile(input: Input) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    input.take(MAX_DOCKERFILE + 1).read_to_end(&mut text).map_err(failed)?;
    match text.len() as u64 > MAX_DOCKERFILE {
        true => Err(format!("the Dockerfile on standard input is larger than {MAX_DOCKERFILE} bytes")),
        false => Ok(text),
    }
}

fn failed(error: std::io::Error) -> String {
    format!("failed to read standard input: {error}")
}

/// A tar's first header holds the sum of its own bytes, itself taken as blanks.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512) else { return false };
    let sum: u64 = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
    let stored = std::str::from_utf8(&block[148..156]).ok().map(|text| text.trim_matches(['\0', ' ']));
    stored.and_then(|text| u64::from_str_radix(text, 8).ok()) == Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8]) -> Result<(bool, Vec<u8>), String> {
        Ok(match context(Box::new(Cursor::new(bytes.to_vec())))? {
            Context::Dockerfile(text) => (false, text),
            Context::Archive(mut upload) => {
                let mut all = Vec::new();
                upload.read_to_end(&mut all).unwrap();
                (true, all)
            }
        })
    }

    #[test]
    fn archives_are_told_by_their_first_bytes() {
        let tar = testkit::Tar::new().file("Dockerfile", 0o644, "FROM scratch\n").finish();
        let long = [b"FROM scratch\n".repeat(200), b"# end\n".to_vec()].concat();
        assert_eq!(told(&tar).unwrap(), (true, tar.clone()));
        assert_eq!(told(&long).unwrap(), (false, long.clone()));
        assert_eq!(told(b"BZh9 and so on").unwrap(), (true, b"BZh9 and so on".to_vec()));
        // What the frontend would not know is sent plain.
        assert_eq!(told(&zstd::encode_all(tar.as_slice(), 1).unwrap()).unwrap(), (true, tar));
        assert!(told(b"").unwrap_err().contains("empty"));
    }
}
