//! Layers of an image whose files are no younger than a given time. They are other blobs, with other digests, than those the layers have.
use std::io::{BufReader, Write};
use std::sync::{Arc, Mutex};

use content::Hold;
use fault::Fault;
use oci::{Descriptor, Digest};
use progress::Reporter;
use task::Cancel;

use crate::blobs::{Begun, UNCOMPRESSED, archive, forget_lost, is_derived, pack, pack_with_toc, with_below};
use crate::compress::{Compression, CompressionKind};
use crate::decompress::decompress;
use crate::error::{Error, Result};
use crate::node::Layer;

/// What BuildKit calls the annotation that says to which second times were clamped.
pub const REWRITTEN: &str = "buildkit/rewritten-timestamp";

/// The layer's record of the last such blob.
const LAST: &str = "retimed";

/// Writes an archive.
type Produce = Box<dyn FnOnce(&mut dyn Write) -> fault::Result<()> + Send>;

/// A blob that no layer keeps.
#[derive(Debug, Clone)]
pub struct Retimed {
    pub descriptor: Descriptor,
    pub diff_id: Digest,
    /// Keeps the blob.
    pub hold: Hold,
}

impl Layer {
    /// A blob of this layer's archive with times clamped to `latest`, in seconds since 1970, and compressed as asked, whatever the layer's own
    /// blob is; it needs none. Made once for each combination, as long as the result is kept; `begun` is told if it is made now.
    pub async fn retimed(
        &self,
        latest: i64,
        compression: Compression,
        begun: Option<Begun>,
        cancel: &Cancel,
        reporter: &Reporter,
    ) -> Result<Retimed, Fault> {
        let level = compression.level.map_or_else(String::new, |level| level.to_string());
        let key = format!("retimed:{latest}:{}:{level}", compression.kind.name());
        // Keeps what is made here until it is found; who joined us finds it too, or makes it again.
        let made: Arc<Mutex<Option<Hold>>> = Arc::default();
        loop {
            if let Some(known) = self.known(&key)? {
                return Ok(known);
            }
            let (layer, name, begun) = (self.clone(), key.clone(), begun.clone());
            let place = made.clone();
            let work = move |cancel: Cancel, reporter: Reporter| async move {
                let (descriptor, hold) = layer.retime(latest, compression, begun, &cancel, &reporter).await?;
                *place.lock().expect("no holder of the lock panics") = Some(hold);
                let descriptor = oci::gojson::to_vec(&descriptor);
                layer.meta_put(&name, &descriptor);
                layer.meta_put(LAST, &descriptor);
                Ok(())
            };
            self.0.home.0.flights.run(&format!("{key}:{}", self.id()), cancel, reporter, work).await?;
        }
    }

    async fn retime(
        &self,
        latest: i64,
        compression: Compression,
        begun: Option<Begun>,
        cancel: &Cancel,
        reporter: &Reporter,
    ) -> Result<(Descriptor, Hold), Fault> {
        let home = &self.0.home;
        forget_lost(&self.0)?;
        let (own, stop) = (self.own_blob(), cancel.clone());
        let archive: Produce = match own {
            Some(own) => {
                let (source, home) = (self.fetch_blob(&own, cancel, reporter).await?, home.clone());
                Box::new(move |out| {
                    let failed = |error| Error::Unpack { digest: source.digest().clone(), source: error };
                    let blob = BufReader::with_capacity(256 << 10, home.content().open_blob(source.digest())?);
                    let plain = decompress(blob).map_err(|e| failed(crate::tar::TarError::Io(e).into()))?;
                    Ok(crate::tar::retime(plain, &mut Cancelled { out, cancel: &stop }, latest).map_err(|e| failed(e.into()))?)
                })
            }
            None => {
                let (below, node) = (with_below(self, cancel, reporter).await?, self.0.clone());
                Box::new(move |out| Ok(archive(&node, below.as_ref(), Some(latest), &stop, out)?))
            }
        };
        let _turn = home.turn_to_pack(cancel).await?;
        let (mut descriptor, hold) = if compression.kind == CompressionKind::Estargz {
            let (hold, descriptor, _) = pack_with_toc(home, compression.level, begun, cancel, archive).await?;
            (descriptor, hold)
        } else {
            let (hold, diff_id) = pack(home, compression, begun, archive).await?;
            let mut descriptor = Descriptor::new(compression.kind.media_type(), hold.digest().clone(), hold.size());
            descriptor.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
            (descriptor, hold)
        };
        descriptor.annotations.insert(REWRITTEN.to_owned(), latest.to_string());
        Ok((descriptor, hold))
    }

    /// A blob with the layer's own archive, if there is one.
    fn own_blob(&self) -> Option<Digest> {
        let state = self.0.state();
        state.blobs.iter().find(|blob| !is_derived(blob, &state)).map(|blob| blob.digest.clone())
    }

    /// What was made last, whether it is still here or not.
    pub(crate) fn last_retimed(&self) -> Option<Descriptor> {
        self.recorded(LAST).ok().flatten()
    }

    fn recorded(&self, key: &str) -> Result<Option<Descriptor>> {
        Ok(self.meta_get(key)?.and_then(|record| serde_json::from_slice(&record).ok()))
    }

    /// Made before, and still here.
    fn known(&self, key: &str) -> Result<Option<Retimed>> {
        let Some(descriptor) = self.recorded(key)? else { return Ok(None) };
        let Some(hold) = self.0.home.content().hold(&descriptor.digest)? else { return Ok(None) };
        let diff_id = descriptor.annotations.get(UNCOMPRESSED).and_then(|text| text.parse().ok());
        let diff_id = diff_id.ok_or(Error::Lost { id: self.id() })?;
        Ok(Some(Retimed { descriptor, diff_id, hold }))
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
