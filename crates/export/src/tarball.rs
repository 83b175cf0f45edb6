//! `tar`: the files of the result go to the client as a tar.
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use fault::Result;

use crate::api::{Context, Exported, Exporter, Source};
use crate::attrs::Attrs;
use crate::files::{FilesOptions, Output, outputs};
use crate::tar::{Kind, TRAILER, padding};
use crate::tree::{Shared, Split, Tree};
use crate::upload::{Chunks, upload};

pub struct TarExporter {
    options: FilesOptions,
}

impl TarExporter {
    pub fn resolve(attrs: Attrs) -> Result<Self> {
        Ok(Self { options: FilesOptions::take(attrs)? })
    }
}

#[async_trait]
impl Exporter for TarExporter {
    fn name(&self) -> &'static str {
        "exporting to client tarball"
    }

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported> {
        let mut outputs = outputs(source, &self.options, context).await?;
        let tree: Shared = if source.is_map {
            Arc::new(Split::new(outputs.into_iter().map(Output::into_directory).collect())?)
        } else {
            outputs.remove(0).tree
        };
        let target = context.receiver()?.upload(context.index, &BTreeMap::new()).await?;
        let _row = context.reporter.row("sending tarball", "", 0);
        context.cancel.run(upload(target, move |out| write(&*tree, out))).await?;
        Ok(Exported::default())
    }
}

/// Blocking.
fn write(tree: &dyn Tree, out: &mut Chunks) -> Result<()> {
    tree.walk(&mut |entry| {
        let path = entry.path.clone();
        let header = entry.into_header();
        out.write_all(&header.encode())?;
        if header.kind == Kind::File && header.size > 0 {
            let mut file = tree.open(&path)?;
            out.copy(&mut file, header.size, &path.display())?;
            out.write_all(&[0; 512][..padding(header.size)])?;
        }
        Ok(())
    })?;
    Ok(out.write_all(&TRAILER)?)
}
