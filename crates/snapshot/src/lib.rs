//! File trees on disk: prepare, commit, mount; overlay and native.
//!
//! **Owns** the directory of trees under one root. A *tree* is one immutable directory that holds a diff, exactly what an overlay upper
//! directory holds: a whiteout is a character device 0/0, an opaque directory carries the overlay opaque attribute. A *stack* is a list of
//! trees, lowest first; that is all a chain of layers or a merge is. A [`Draft`] is a tree that can still be written.
//!
//! **Does not know** layers, blobs, images, databases, builds. Everything here is plain blocking code.
//!
//! **Start** at [`Store`], then [`MountSpec`] (how a stack becomes a mount), then [`View`] and [`Editor`] (how a stack is read and
//! written without any mount).
//!
//! **Invariants**
//! - What can be read of a committed tree never changes, not even through a hard link: an [`Editor`] copies a linked file up before it
//!   touches it. Only which inode holds a file may change ([`Store::deduplicate`], merges).
//! - Overlay's own attributes (`trusted.overlay.*`, `user.overlay.*`) are not content: they are neither shown nor accepted.
//! - No path given by a caller, and no symbolic link in a tree, leads out of the tree.
//! - Nothing here calls fsync; [`Store::sync`] is the only durability point.
mod dedup;
mod draft;
mod editor;
mod error;
mod hash;
mod id;
mod layer;
mod links;
mod loans;
mod merged;
mod metadata;
mod native;
mod rel;
mod spec;
mod squash;
mod store;
mod sys;
mod trash;
mod usage;
mod view;
mod xattr;

pub use dedup::Deduplicated;
pub use draft::Draft;
pub use editor::{Attributes, Editor, Placed};
pub use error::{Error, OpenError, Result};
pub use id::{TreeId, TreeIdError};
pub use metadata::{Entry, Follow, Metadata, Time};
pub use rustix::fs::FileType;
pub use spec::{MountError, MountSpec, Mounted};
pub use store::{Backend, Options, Store, Top};
pub use usage::Usage;
pub use view::{PathError, View};
pub use xattr::Xattrs;
