//! What progress calls a vertex.
use crate::types::*;

/// Names made of other names are cut here: a ladder of merges would otherwise double at each rung.
const MAX_DERIVED: usize = 4096;

pub(crate) fn name<'a>(op: &Op, metadata: &Metadata, inputs: usize, input: impl Fn(usize) -> &'a str) -> String {
    if let Some(custom) = metadata.description.get("llb.customname") {
        return custom.clone();
    }
    let side = |index: &Option<u32>| match index {
        Some(i) => format!("({})", input(*i as usize)),
        None => "scratch".to_owned(),
    };
    match op {
        Op::Source(source) => source.identifier.clone(),
        Op::Exec(exec) => exec.meta.args.join(" "),
        Op::File(file) => file.actions.iter().map(|a| action(&a.kind)).collect::<Vec<_>>().join(", "),
        Op::Build(_) => "build".to_owned(),
        Op::Merge(_) => {
            let mut names = String::new();
            for i in 0..inputs {
                names.push_str(if i == 0 { "" } else { ", " });
                names.push_str(input(i));
                if names.len() > MAX_DERIVED {
                    break;
                }
            }
            cut(format!("merge ({names})"))
        }
        Op::Diff { lower, upper } => cut(format!("diff {} -> {}", side(lower), side(upper))),
        Op::Passthrough { id, .. } => format!("passthrough {id}"),
    }
}

fn cut(mut name: String) -> String {
    if name.len() > MAX_DERIVED {
        let end = (0..=MAX_DERIVED).rev().find(|i| name.is_char_boundary(*i)).unwrap_or(0);
        name.truncate(end);
        name.push('…');
    }
    name
}

fn action(kind: &FileActionKind) -> String {
    match kind {
        FileActionKind::Mkdir { path, .. } => format!("mkdir {path}"),
        FileActionKind::Mkfile { path, .. } => format!("mkfile {path}"),
        FileActionKind::Symlink { oldpath, newpath, .. } => format!("symlink {newpath} -> {oldpath}"),
        FileActionKind::Rm { path, .. } => format!("rm {path}"),
        FileActionKind::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
    }
}
