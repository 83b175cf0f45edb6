//! Exports that are images: in a registry, or in a tar or content store at the client.
mod archive;
mod assemble;
mod blobs;
mod early;
mod exporter;
#[cfg(test)]
mod golden;
mod layout;
mod options;
mod packing;
mod push;
mod sbom;

pub use archive::ArchiveExporter;
pub use assemble::without_internals;
pub use exporter::ImageExporter;
