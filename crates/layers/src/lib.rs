//! Binds trees to blobs: lazy layers, diff, compress, unpack, exact usage, prune.
//!
//! Owns the records of layers: what each is made on or of, which tree and which blobs hold it, what users see of it, who uses it. A layer
//! is a tree in `snapshot`, or blobs in `content` or elsewhere, or both; what is missing of the two is made from the other when someone
//! asks. Does not know images, registries, ops or cache keys.
//!
//! Start at [`Layers`] and [`Layer`]; then [`Draft`] (how a step makes one), [`Layers::from_image`] and [`Layer::realize`] (how a pulled
//! one becomes files), [`Layers::merge`] and [`Layers::diff`] (which touch no file), [`Cell`] (mutable trees that stay).
//!
//! Invariants:
//! - While a handle of a layer lives, the layer and all below it stay.
//! - Committing waits for no disk. What [`Layers::flush`] has covered survives `kill -9`, what [`Layers::sync`] has covered a power cut;
//!   what is lost is lost whole, and never with something on top of it left behind.
//! - Work on a layer that several want is done once.
//! - Nothing in an archive reaches anything outside the layer's own tree.
mod account;
mod blobs;
mod budget;
mod ceiling;
mod cell;
mod changes;
mod combine;
mod compare;
mod compress;
mod decompress;
mod dedup;
mod download;
mod draft;
mod error;
mod explicit;
mod figures;
mod flatten;
mod flight;
mod id;
mod image;
mod inventory;
mod layer;
mod layer_tar;
mod maintain;
mod node;
mod opaque;
mod paths;
mod pins;
mod prune;
mod rank;
mod realize;
mod record;
mod redundant;
mod retimed;
mod same;
mod stargz;
mod store;
mod tar;
mod unpack;
mod usage;

pub use blobs::{Begun, LayerBlob, UNCOMPRESSED};
pub use ceiling::Room;
pub use cell::{Cell, Sharing};
pub use compress::{CompressError, Compressed, Compression, CompressionKind, CompressionRoom, compress};
pub use draft::{Draft, Properties};
pub use error::{Error, Result};
pub use figures::Figures;
pub use id::{LayerId, LayerIdError};
pub use image::{BlobSource, ByteStream, ImageLayer};
pub use maintain::Housekeeping;
pub use node::Layer;
pub use pins::{Pin, PinGroup, Pins};
pub use prune::Rule;
pub use retimed::{REWRITTEN, Retimed};
pub use store::Layers;
pub use tar::TarError;
pub use unpack::UnpackError;
pub use usage::{UsageQuery, UsageRecord};

/// What fuzz targets call; see `docs/fuzzing.md`.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use std::path::Path;

    /// Unpacks a layer's archive into the empty directory `root`.
    pub fn unpack(archive: &[u8], root: &Path) -> Result<(), crate::UnpackError> {
        crate::unpack::unpack(archive, root, false).map(drop)
    }
}
