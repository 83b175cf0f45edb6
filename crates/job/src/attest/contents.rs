//! The built-in scanner's part in a build.
use bytes::Bytes;
use export::Statement;
use fault::Result;
use frontend::Outcome;
use frontend::bridge::Attestation;
use oci::Timestamp;
use sbom::Document;
use snapshot::View;

use crate::build::Build;

const STDERR: u8 = 2;

/// Reads the files of the statement's ref, as a step of the build of its own. `why` is told to whoever watches.
pub async fn statement(build: &Build, outcome: &Outcome, platform: &str, wanted: &Attestation, why: &[u8]) -> Result<Statement> {
    let name = format!("[{platform}] generating {} using kiln", wanted.path.split('.').next().unwrap_or_default());
    let created = time(build, outcome, platform);
    let digest = build.vertex_digest(&name);
    build
        .in_vertex(digest, &name, async |reporter| {
            reporter.log(STDERR, format!("{}\n", String::from_utf8_lossy(why)));
            let layer = match &wanted.reference {
                Some(reference) => build.layer_of(reference).await?,
                None => None,
            };
            if let Some(layer) = &layer {
                layer.realize_with_room(&build.cancel, &reporter).await?;
            }
            let name = platform.to_owned();
            let (document, notes) = task::blocking(move || {
                let files = layer.as_ref().map_or_else(|| Ok(View::empty()), |layer| layer.view())?;
                let found = sbom::scan(&files)?;
                Ok((Document { name: &name, created, found: &found }.to_json(), found.notes))
            })
            .await?;
            for note in notes {
                reporter.log(STDERR, format!("{note}\n"));
            }
            let predicate = Bytes::from(document);
            Ok(super::statement(wanted, wanted.predicate_type.clone(), wanted.path.clone(), predicate, Vec::new()))
        })
        .await
}

/// When the document is to say that it was made: with a time for the sources, then; a build made again gives the same.
fn time(build: &Build, outcome: &Outcome, platform: &str) -> Timestamp {
    let argument = build.attrs().get("build-arg:SOURCE_DATE_EPOCH").cloned();
    let of_result = || {
        let found = outcome.metadata.get("source.date.epoch").or_else(|| outcome.metadata.get(&format!("source.date.epoch/{platform}")));
        found.map(|text| String::from_utf8_lossy(text).into_owned())
    };
    let epoch = argument.or_else(of_result).and_then(|text| text.parse().ok());
    // SPDX has whole seconds.
    let now = || Timestamp::from(std::time::SystemTime::now()).unix_seconds();
    Timestamp::from_unix(epoch.unwrap_or_else(now), 0)
}
