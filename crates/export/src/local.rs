//! `local`: the files of the result go into a directory of the client.
use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use fault::Result;
use futures_util::future::try_join_all;

use crate::api::{Context, Exported, Exporter, Source};
use crate::attrs::Attrs;
use crate::files::{FilesOptions, Mode, Output, outputs};
use crate::send::send;
use crate::tree::{Merged, Shared, Split};

pub struct LocalExporter {
    options: FilesOptions,
}

impl LocalExporter {
    pub fn resolve(attrs: Attrs) -> Result<Self> {
        Ok(Self { options: FilesOptions::take(attrs)? })
    }
}

#[async_trait]
impl Exporter for LocalExporter {
    fn name(&self) -> &'static str {
        "exporting to client directory"
    }

    async fn export(&self, source: &Source, context: &Context) -> Result<Exported> {
        context.receiver()?;
        let outputs = outputs(source, &self.options, context).await?;
        let split = self.options.split(source);
        if self.options.mode == Mode::Delete {
            // In one stream, for the client removes what it did not get.
            let tree = if split { in_directories(outputs)? } else { side_by_side(outputs).await? };
            transfer(tree, "copying files".into(), true, context).await?;
            return Ok(Exported::default());
        }
        if !split && outputs.len() > 1 {
            // Only to see whether any two have a file of the same name.
            let trees =
                outputs.iter().map(|output| Output { tree: output.tree.clone(), id: output.id.clone(), epoch: output.epoch }).collect();
            side_by_side(trees).await?;
        }
        let transfers = outputs.into_iter().map(|output| async move {
            let (tree, label) = match split {
                true => {
                    let label = format!("copying files {}", output.id);
                    (in_directories(vec![output])?, label)
                }
                false => (output.tree, "copying files".to_owned()),
            };
            transfer(tree, label, false, context).await
        });
        try_join_all(transfers).await?;
        Ok(Exported::default())
    }
}

fn in_directories(outputs: Vec<Output>) -> Result<Shared> {
    Ok(Arc::new(Split::new(outputs.into_iter().map(Output::into_directory).collect())?))
}

async fn side_by_side(mut outputs: Vec<Output>) -> Result<Shared> {
    if outputs.len() == 1 {
        return Ok(outputs.remove(0).tree);
    }
    let named = outputs.into_iter().map(|output| (output.id, output.tree)).collect();
    task::blocking(move || Ok(Arc::new(Merged::new(named)?) as Shared)).await
}

async fn transfer(tree: Shared, label: String, multi_platform: bool, context: &Context) -> Result<()> {
    let stream = context.receiver()?.upload_tree(context.index, &BTreeMap::new(), multi_platform).await?;
    let row = context.reporter.row(label, "transferring", 0);
    send(tree, stream, &context.cancel, row).await
}
