//! `--output`: exporters, and where at our side they write.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use client::build::Typed;
use client::files::Mode;
use client::session::{BlobDir, Output};

use crate::cli::args::{boolean, csv_pairs};

#[derive(Default)]
pub struct Outputs {
    pub exporters: Vec<Typed>,
    pub targets: BTreeMap<usize, Output>,
    pub stores: BTreeMap<String, BlobDir>,
    /// Directories that become image layouts.
    pub layouts: Vec<PathBuf>,
}

pub fn parse(flags: &[String]) -> Result<Outputs, String> {
    let mut outputs = Outputs::default();
    for flag in flags {
        let mut attrs: BTreeMap<String, String> = csv_pairs(flag)?.into_iter().collect();
        let kind = attrs.remove("type").filter(|kind| !kind.is_empty()).ok_or("--output requires type=<type>")?;
        if let Some(value) = attrs.get("output") {
            return Err(format!("output={value} not supported for --output, you meant dest={value}?"));
        }
        outputs.place(&kind, &mut attrs).map_err(|problem| format!("invalid output option: output: {problem}"))?;
        outputs.exporters.push(Typed { kind, attrs });
    }
    Ok(outputs)
}

impl Outputs {
    fn place(&mut self, kind: &str, attrs: &mut BTreeMap<String, String>) -> Result<(), String> {
        let index = self.exporters.len();
        let as_tar = attrs.get("tar").and_then(|value| boolean(value)).unwrap_or(true);
        let dest = attrs.get("dest").cloned().unwrap_or_default();
        match kind {
            "local" => {
                let path = needed_directory(kind, &dest)?;
                let mode = match attrs.get("mode").map(String::as_str) {
                    None | Some("" | "copy") => Mode::Keep,
                    Some("delete") => Mode::Delete,
                    Some(other) => return Err(format!("invalid local exporter mode {other:?}")),
                };
                self.targets.insert(index, Output::Directory { path, mode });
            }
            "oci" | "docker" if !as_tar => {
                let path = needed_directory(kind, &dest)?;
                std::fs::create_dir_all(&path).map_err(|e| format!("failed to create {}: {e}", path.display()))?;
                if self.stores.insert("export".into(), BlobDir::new(&path)).is_some() {
                    return Err("oci store key \"export\" already exists".into());
                }
                self.layouts.push(path);
            }
            "tar" | "oci" | "docker" => {
                self.targets.insert(index, file(kind, &dest)?);
            }
            _ if !dest.is_empty() => return Err(format!("output {dest} is not supported by {kind} exporter")),
            _ => return Ok(()),
        }
        attrs.remove("dest");
        Ok(())
    }
}

fn needed_directory(kind: &str, dest: &str) -> Result<PathBuf, String> {
    if dest.is_empty() { Err(format!("output directory is required for {kind} exporter")) } else { Ok(dest.into()) }
}

fn file(kind: &str, dest: &str) -> Result<Output, String> {
    if dest.is_empty() || dest == "-" {
        if io::stdout().is_terminal() {
            return Err(format!("output file is required for {kind} exporter. refusing to write to console"));
        }
        return Ok(Output::File(Arc::new(|_| Ok(Some(Box::new(io::stdout()) as Box<dyn Write + Send>)))));
    }
    let path = PathBuf::from(dest);
    if path.is_dir() {
        return Err("destination file is a directory".into());
    }
    // Opened now, so that a wrong path is known before the build.
    let opened = File::create(&path).map_err(|e| format!("invalid destination file: {dest}: {e}"))?;
    let opened = Mutex::new(Some(opened));
    Ok(Output::File(Arc::new(move |_| {
        let first = opened.lock().expect("no holder of this lock panics").take();
        let file = first.map_or_else(|| File::create(&path), Ok)?;
        Ok(Some(Box::new(io::BufWriter::with_capacity(1 << 20, file)) as Box<dyn Write + Send>))
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_one(flag: &str) -> Result<Outputs, String> {
        parse(&[flag.to_owned()])
    }

    #[test]
    fn where_outputs_go() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let image = parse_one("type=image,\"name=a,b\",push=true").unwrap();
        assert_eq!(image.exporters[0].attrs.get("name").unwrap(), "a,b");
        assert!(image.targets.is_empty());
        let tar = parse_one(&format!("type=oci,dest={}", at("x.tar"))).unwrap();
        assert!(matches!(tar.targets[&0], Output::File(_)) && tar.exporters[0].attrs.is_empty());
        let layout = parse_one(&format!("type=oci,tar=false,dest={}", at("layout"))).unwrap();
        assert!(layout.stores.contains_key("export") && layout.layouts.len() == 1);
        let local = parse_one(&format!("type=local,mode=delete,dest={}", at("out"))).unwrap();
        assert!(matches!(local.targets[&0], Output::Directory { mode: Mode::Delete, .. }));
    }

    #[test]
    fn what_is_refused() {
        let refused = |flag: &str| parse_one(flag).map(|_| ()).unwrap_err();
        assert_eq!(refused("name=x"), "--output requires type=<type>");
        assert_eq!(refused("type=local,output=x"), "output=x not supported for --output, you meant dest=x?");
        assert_eq!(refused("type=local"), "invalid output option: output: output directory is required for local exporter");
        assert_eq!(refused("type=image,dest=x"), "invalid output option: output: output x is not supported by image exporter");
        assert_eq!(refused("type=tar,dest=/"), "invalid output option: output: destination file is a directory");
        assert_eq!(refused("image"), "invalid value image");
    }
}
