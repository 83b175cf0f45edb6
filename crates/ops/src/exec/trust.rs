//! The proxy's certificate in the bundle of roots that programs of a step trust: there while the step runs, and no part of its result.
//!
//! It is written into the file and not mounted over it, since steps install and update bundles.
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use fault::{Context as _, Fault, Kind, Result};
use layers::Draft;
use registry::ROOT_BUNDLES;
use snapshot::{Follow, PathError, Time};

const BEGIN: &[u8] = b"\n# buildkit proxy CA begin\n";
const END: &[u8] = b"# buildkit proxy CA end\n";
/// Larger bundles are none.
const LARGEST: u64 = 10 << 20;

/// A bundle with the certificate in it.
pub struct Trusted {
    path: PathBuf,
    /// As the step found it.
    before: Vec<u8>,
    time: Time,
    certificate: Vec<u8>,
}

impl Trusted {
    /// Adds the certificate to the first bundle that is there, if any.
    pub fn add(draft: &mut Draft, certificate: &str) -> Result<Option<Self>> {
        let view = draft.view()?;
        for place in ROOT_BUNDLES {
            let Some(entry) = view.lookup(place, Follow::Yes).map_err(failed)? else { continue };
            let metadata = entry.metadata();
            if !metadata.is_file() || metadata.size > LARGEST {
                continue;
            }
            let path = entry.path().to_owned();
            let before = read(draft, &path)?;
            let mut text = before.clone();
            if text.last().is_some_and(|byte| *byte != b'\n') {
                text.push(b'\n');
            }
            for part in [BEGIN, certificate.as_bytes(), END] {
                text.extend_from_slice(part);
            }
            let trusted = Self { path, before, time: metadata.mtime, certificate: certificate.into() };
            trusted.write(draft, &text)?;
            return Ok(Some(trusted));
        }
        Ok(None)
    }

    /// Takes it out again, whatever the step made of the file.
    pub fn remove(self, draft: &mut Draft) -> Result<()> {
        let found = draft.view()?.lookup(&self.path, Follow::No).map_err(failed)?;
        if !found.is_some_and(|entry| entry.metadata().is_file()) {
            return Ok(());
        }
        let text = read(draft, &self.path)?;
        let block = [BEGIN, &self.certificate, END].concat();
        let mut clean = without(&without(&text, &block), &self.certificate);
        if clean == text {
            return Ok(());
        }
        // Where only the end of the last line was added.
        if clean.strip_suffix(b"\n") == Some(&self.before) {
            clean.pop();
        }
        self.write(draft, &clean)
    }

    /// A bundle that says what it said before is as old as it was.
    fn write(&self, draft: &mut Draft, text: &[u8]) -> Result<()> {
        let parent = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        let above = *draft.view()?.require(&parent, Follow::Yes).map_err(failed)?.metadata();
        let mut editor = draft.editor()?;
        let mut file = editor.write_file(&self.path, 0o644).map_err(failed)?;
        file.write_all(text).with_context(|| format!("failed to write certificate bundle {}", self.path.display()))?;
        drop(file);
        if text == self.before {
            editor.set_times(&self.path, self.time, self.time).map_err(failed)?;
        }
        editor.set_times(&parent, above.atime, above.mtime).map_err(failed)?;
        Ok(())
    }
}

fn failed(error: PathError) -> Fault {
    Fault::of(Kind::of_io(&io::Error::from(error.kind())), error)
}

fn read(draft: &Draft, path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = draft.view()?.open(path).map_err(failed)?;
    file.take(LARGEST + 1).read_to_end(&mut text).with_context(|| format!("failed to read certificate bundle {}", path.display()))?;
    if text.len() as u64 > LARGEST {
        return Err(Fault::invalid(format!("{} exceeds {LARGEST} bytes", path.display())));
    }
    Ok(text)
}

fn without(text: &[u8], part: &[u8]) -> Vec<u8> {
    let Some(at) = text.windows(part.len()).position(|window| window == part) else { return text.to_vec() };
    [&text[..at], &text[at + part.len()..]].concat()
}

#[cfg(test)]
mod tests {
    use layers::{Layer, Layers, Properties};

    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

    fn base(layers: &Layers) -> Layer {
        let mut draft = layers.draft(None, Properties::new("base")).unwrap();
        let mut editor = draft.editor().unwrap();
        editor.mkdir_all("/etc/ssl/certs", 0o755).unwrap();
        editor.write_file(BUNDLE, 0o640).unwrap().write_all(b"roots").unwrap();
        let time = Time::from_unix_nanos(1_000_000_000);
        editor.set_times(BUNDLE, time, time).unwrap();
        editor.set_times("/etc/ssl/certs", time, time).unwrap();
        draft.commit().unwrap()
    }

    fn text(draft: &Draft) -> String {
        String::from_utf8(read(draft, Path::new(BUNDLE)).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_bundle_is_as_it_was_after_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let db = kv::Db::open(&dir.path().join("db"), kv::Options::default()).unwrap();
        let content = content::Store::open(&dir.path().join("content"), db.clone()).unwrap();
        let trees = snapshot::Store::open(&dir.path().join("trees"), snapshot::Options::default()).unwrap();
        let layers = Layers::open(db, content, trees).unwrap();
        let base = base(&layers);

        let mut draft = layers.draft(Some(&base), Properties::new("step")).unwrap();
        draft.mount_spec().unwrap();
        let trusted = Trusted::add(&mut draft, PEM).unwrap().unwrap();
        assert_eq!(text(&draft), format!("roots\n\n# buildkit proxy CA begin\n{PEM}# buildkit proxy CA end\n"));
        trusted.remove(&mut draft).unwrap();
        assert_eq!(text(&draft), "roots");
        let own = draft.own_files();
        draft.commit().unwrap();
        assert!(!own.join("etc").exists(), "nothing of it is in the layer");

        // A step that adds a root of its own keeps it.
        let mut draft = layers.draft(Some(&base), Properties::new("step")).unwrap();
        let trusted = Trusted::add(&mut draft, PEM).unwrap().unwrap();
        let more = format!("{}mine\n", text(&draft));
        draft.editor().unwrap().write_file(BUNDLE, 0o644).unwrap().write_all(more.as_bytes()).unwrap();
        trusted.remove(&mut draft).unwrap();
        assert_eq!(text(&draft), "roots\nmine\n");

        // One that removes the bundle has none.
        let trusted = Trusted::add(&mut draft, PEM).unwrap().unwrap();
        draft.editor().unwrap().remove(BUNDLE).unwrap();
        trusted.remove(&mut draft).unwrap();
        assert!(Trusted::add(&mut draft, PEM).unwrap().is_none());
    }

    #[test]
    fn a_part_is_cut_out_where_it_is() {
        assert_eq!(without(b"abcabc", b"bc"), b"aabc");
        assert_eq!(without(b"abc", b"x"), b"abc");
        assert_eq!(without(b"a", b"abc"), b"a");
    }
}
