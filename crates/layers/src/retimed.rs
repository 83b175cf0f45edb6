//! Layers of an image whose files are no younger than a given time. They are other blobs, with other digests, than those the layers have.
use std::io::{BufReader, Write};

use content::Hold;
use fault::Fault;
use oci::{Descriptor, Digest};
use progress::Reporter;
use task::Cancel;

use crate::blobs::{Begun, LayerBlob, UNCOMPRESSED, is_derived, pack};
use crate::compress::{Compression, CompressionKind};
use crate::decompress::decompress;
use crate::error::{Error, Result};

/// What BuildKit calls the annotation that says to which second times were clamped.
pub const REWRITTEN: &str = "buildkit/rewritten-timestamp";

/// A blob that no layer keeps.
#[derive(Debug, Clone)]
pub struct Retimed {
    pub descriptor: Descriptor,
    pub diff_id: Digest,
    /// Keeps the blob.
    pub hold: Hold,
}

impl LayerBlob {
    /// The same archive with times clamped to `latest`, in seconds since 1970, and compressed as asked, whatever the blob is. Made once for each
    /// combination, as long as the result is kept; `begun` is told if it is made now.
    pub async fn retimed(
        &self,
        latest: i64,
        compression: Compression,
        begun: Option<Begun>,
        cancel: &Cancel,
        reporter: &Reporter,
    ) -> Result<Retimed, Fault> {
        let node = &self.layer.0;
        let level = compression.level.map_or_else(String::new, |level| level.to_string());
        let key = format!("retimed:{}:{latest}:{}:{level}", self.descriptor.digest, compression.kind.name());
        if let Some(known) = self.known(&key)? {
            return Ok(known);
        }
        if self.own_blob().is_none() {
            // What is clamped is the layer's own archive, without the table of contents.
            let plain = Compression { kind: CompressionKind::Gzip, level: compression.level, force: true };
            self.layer.blobs(plain, cancel, reporter).await?;
        }
        let own = self.own_blob().ok_or(Error::Lost { id: self.layer.id() })?;
        let source = self.layer.fetch_blob(&own, cancel, reporter).await?;
        let _turn = node.home.turn_to_pack(cancel).await?;
        let with_toc = compression.kind == CompressionKind::Estargz;
        let kind = if with_toc { CompressionKind::Uncompressed } else { compression.kind };
        let (first, second) = if with_toc { (None, begun) } else { (begun, None) };
        let (home, stop) = (node.home.clone(), cancel.clone());
        let retime = move |out: &mut dyn Write| {
            let failed = |error| Error::Unpack { digest: source.digest().clone(), source: error };
            let blob = BufReader::with_capacity(256 << 10, home.content().open_blob(source.digest())?);
            let plain = decompress(blob).map_err(|e| failed(crate::tar::TarError::Io(e).into()))?;
            Ok(crate::tar::retime(plain, &mut Cancelled { out, cancel: &stop }, latest).map_err(|e| failed(e.into()))?)
        };
        let (hold, diff_id) = pack(&node.home, Compression { kind, ..compression }, first, retime).await?;
        let (hold, mut descriptor) = if with_toc {
            let (home, cancel) = (node.home.clone(), cancel.clone());
            task::blocking(move || Ok(crate::stargz::store(&home, &hold, compression.level, second, &cancel)?)).await?
        } else {
            let mut descriptor = Descriptor::new(kind.media_type(), hold.digest().clone(), hold.size());
            descriptor.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
            (hold, descriptor)
        };
        descriptor.annotations.insert(REWRITTEN.to_owned(), latest.to_string());
        self.layer.meta_put(&key, &oci::gojson::to_vec(&descriptor));
        Ok(self.described(hold, descriptor)?)
    }

    /// This blob, or the one of whose archive it is made, if there is one.
    fn own_blob(&self) -> Option<Digest> {
        let state = self.layer.0.state();
        if !is_derived(&self.descriptor, &state) {
            return Some(self.descriptor.digest.clone());
        }
        state.blobs.iter().find(|blob| !is_derived(blob, &state)).map(|blob| blob.digest.clone())
    }

    /// Made before, and still here.
    fn known(&self, key: &str) -> Result<Option<Retimed>> {
        let Some(record) = self.layer.meta_get(key)? else { return Ok(None) };
        let Ok(descriptor) = serde_json::from_slice::<Descriptor>(&record) else { return Ok(None) };
        self.layer.0.home.content().hold(&descriptor.digest)?.map(|hold| self.described(hold, descriptor)).transpose()
    }

    fn described(&self, hold: Hold, descriptor: Descriptor) -> Result<Retimed> {
        let diff_id = descriptor.annotations.get(UNCOMPRESSED).and_then(|text| text.parse().ok());
        let diff_id = diff_id.ok_or(Error::Lost { id: self.layer.id() })?;
        Ok(Retimed { descriptor, diff_id, hold })
    }
}

/// Stops when cancelled.
struct Cancelled<'a> {
    out: &'a mut dyn Write,
    cancel: &'a Cancel,
}

impl Write for Cancelled<'_> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other(self.cancel.reason().to_owned()));
        }
        self.out.write(data)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
