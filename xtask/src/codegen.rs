//! Generates `crates/proto/src/generated` from `proto/` with a compiler written in Rust, so that nobody needs protoc.
use std::path::{Path, PathBuf};

use crate::Outcome;

/// What server reflection answers from.
const DESCRIPTORS: &str = "descriptors.bin";

/// Generates the sources; with `check`, compares them with those checked in instead of writing.
pub fn run(check: bool) -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    let proto = root.join("proto");
    let out = root.join("crates/proto/src/generated");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&proto)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|p| p.extension().is_some_and(|e| e == "proto"));
    files.sort();
    let set = protox::compile(&files, [&proto])?;

    let fresh = std::env::temp_dir().join(format!("kiln-codegen-{}", std::process::id()));
    std::fs::create_dir_all(&fresh)?;
    let outcome = generate(set, &fresh).and_then(|()| if check { compare(&fresh, &out) } else { install(&fresh, &out) });
    std::fs::remove_dir_all(&fresh)?;
    outcome
}

fn generate(set: protox::prost_reflect::prost_types::FileDescriptorSet, dir: &Path) -> Outcome {
    let mut described = set.clone();
    // Comments, and where in our files everything is: nobody asks a daemon for that.
    described.file.iter_mut().for_each(|file| file.source_code_info = None);
    std::fs::write(dir.join(DESCRIPTORS), protox::prost_reflect::prost::Message::encode_to_vec(&described))?;
    tonic_prost_build::configure()
        .out_dir(dir)
        .bytes(".moby.buildkit.v1.BytesMessage")
        .bytes(".fsutil.types.Packet")
        .bytes(".moby.filesync.v1.BytesMessage")
        .bytes(".moby.sshforward.v1.BytesMessage")
        .bytes(".moby.upload.v1.BytesMessage")
        .bytes(".pb.Definition.def")
        .bytes(".moby.buildkit.v1.VertexLog.msg")
        .bytes(".containerd.services.content.v1.WriteContentRequest.data")
        .bytes(".containerd.services.content.v1.ReadContentResponse.data")
        .btree_map(".")
        .compile_fds(set)?;
    Ok(())
}

fn names(dir: &Path) -> std::io::Result<Vec<std::ffi::OsString>> {
    let mut names: Vec<_> = std::fs::read_dir(dir)?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

fn install(fresh: &Path, out: &Path) -> Outcome {
    if out.exists() {
        std::fs::remove_dir_all(out)?;
    }
    std::fs::create_dir_all(out)?;
    for name in names(fresh)? {
        std::fs::copy(fresh.join(&name), out.join(&name))?;
    }
    Ok(())
}

fn compare(fresh: &Path, out: &Path) -> Outcome {
    if names(fresh)? != names(out)? {
        return Err("generated file list differs: run `cargo xtask codegen`".into());
    }
    for name in names(fresh)? {
        if std::fs::read(fresh.join(&name))? != std::fs::read(out.join(&name))? {
            return Err(format!("{} is not current: run `cargo xtask codegen`", name.to_string_lossy()).into());
        }
    }
    Ok(())
}
