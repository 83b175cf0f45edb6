//! One tree in place of a deep stack. The kernel stacks 500 at most, and every lookup asks each.
use std::path::Path;
use std::sync::Arc;

use snapshot::{Attributes, Editor, TreeId, View};

use crate::error::Result;
use crate::node::{Kind, Node};

/// Stacks deeper than this are flattened before something is put on top of them or they are mounted.
const DEEPEST: usize = 100;

/// The trees to stack for a layer: few enough, and without deletions at the bottom, which the kernel would show as devices. The files of a
/// flattened stack are hard links.
pub(crate) fn shallow(node: &Arc<Node>) -> Result<Vec<TreeId>> {
    let stack = node.stack()?;
    if stack.len() <= DEEPEST && !rests_on_a_diff(node) {
        return Ok(stack);
    }
    let home = &node.home;
    let view = home.trees().view(&stack)?;
    let mut draft = home.trees().create()?;
    let mut editor = home.trees().edit(&[], &mut draft)?;
    fill(&view, &mut editor, Path::new("/"))?;
    drop(editor);
    let flat = home.trees().commit(draft)?;
    let kept = home.change(node, |state| *state.flat.get_or_insert(flat));
    if kept != flat {
        // Somebody else was faster.
        home.remove_tree(&flat);
    }
    Ok(vec![kept])
}

/// Whether the lowest tree was made on others that are not in the stack.
fn rests_on_a_diff(node: &Arc<Node>) -> bool {
    let mut node = node;
    loop {
        if node.state().flat.is_some() {
            return false;
        }
        node = match &node.kind {
            Kind::Diff { .. } => return true,
            Kind::Layer { parent: Some(parent) } => parent,
            Kind::Merge { inputs } if !inputs.is_empty() => &inputs[0],
            Kind::Layer { parent: None } | Kind::Merge { .. } | Kind::Cell { .. } => return false,
        }
    }
}

fn fill(view: &View, editor: &mut Editor<'_>, path: &Path) -> Result<()> {
    for entry in view.read_dir(path)? {
        if entry.metadata().is_dir() {
            editor.mkdir(entry.path(), entry.metadata().permissions())?;
            fill(view, editor, entry.path())?;
            dress(view, editor, entry.path())?;
        } else {
            editor.link_file(&entry, entry.path())?;
        }
    }
    Ok(())
}

/// The directory looks as in the stack.
fn dress(view: &View, editor: &mut Editor<'_>, path: &Path) -> Result<()> {
    let entry = view.require(path, snapshot::Follow::No)?;
    for (name, value) in view.xattrs(path)? {
        editor.set_xattr(path, name, &value)?;
    }
    let metadata = entry.metadata();
    let attributes = Attributes {
        owner: Some((metadata.uid, metadata.gid)),
        permissions: Some(metadata.permissions()),
        times: Some((metadata.atime, metadata.mtime)),
    };
    Ok(editor.set(path, &attributes)?)
}
