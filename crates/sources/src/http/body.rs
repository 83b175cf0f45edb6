//! The body of an answer, without the compression that is only of the way here.
use std::io::Write as _;

use bytes::Bytes;
use fault::Result;
use flate2::write::MultiGzDecoder;
use registry::WebAnswer;

use crate::error::SourceError;

pub(super) struct Body<'a> {
    answer: &'a mut WebAnswer,
    /// `None`: nothing to undo.
    gzip: Option<MultiGzDecoder<Vec<u8>>>,
    ended: bool,
}

impl<'a> Body<'a> {
    pub fn new(answer: &'a mut WebAnswer) -> Self {
        let is_gzip = answer.header("content-encoding").is_some_and(|encoding| encoding.trim().eq_ignore_ascii_case("gzip"));
        Self { answer, gzip: is_gzip.then(|| MultiGzDecoder::new(Vec::new())), ended: false }
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(gzip) = &mut self.gzip else { return Ok(self.answer.next().await?) };
        while !self.ended {
            match self.answer.next().await? {
                Some(chunk) => gzip.write_all(&chunk),
                None => {
                    self.ended = true;
                    gzip.try_finish()
                }
            }
            .map_err(|source| SourceError::Gzip { source })?;
            if !gzip.get_ref().is_empty() {
                return Ok(Some(std::mem::take(gzip.get_mut()).into()));
            }
        }
        Ok(None)
    }
}
