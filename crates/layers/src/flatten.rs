//! One tree in place of many in deep stacks. The kernel stacks 500 at most, and every lookup asks each.
//!
//! The layers themselves stay what they are: only what is mounted, read and written on changes. A chain that grows is squashed a few layers
//! at a time, and what came of that is squashed again once there is much of it, so that each file is linked a few times at most, however
//! long the chain gets.
use std::sync::Arc;

use snapshot::TreeId;

use crate::error::Result;
use crate::node::{Flat, Kind, Node};

/// Stacks deeper than this are flattened before something is put on top of them or they are mounted.
const DEEPEST: usize = 100;
/// How many trees are squashed at least, and how many times more layers one of the next level stands for.
const FEW: usize = 32;
/// How many layers are squashed at a time where none of them was before.
const MANY: usize = 64;

/// The trees to stack for a layer: few enough, and without deletions at the bottom, which the kernel would show as devices. The files of a
/// flattened stack are hard links.
pub(crate) fn shallow(node: &Arc<Node>) -> Result<Vec<TreeId>> {
    let (base, runs) = node.runs()?;
    let trees = base.as_ref().map_or(Ok(Vec::new()), Node::own_stack)?;
    match base {
        // Once, for all layers that are made on it.
        Some(base) if trees.len() > DEEPEST || rests_on_a_diff(&base) => {
            flatten(&base, &trees)?;
            return shallow(node);
        }
        _ if trees.len() + runs.len() > DEEPEST => squash(node, &trees, &runs)?,
        _ => {}
    }
    node.stack()
}

/// Makes one tree of what is stacked for `node`.
fn flatten(node: &Arc<Node>, stack: &[TreeId]) -> Result<()> {
    let tree = node.home.trees().squash(stack, &[])?;
    keep(node, Flat { tree, over: None, count: stack.len() });
    Ok(())
}

/// Makes one tree of the topmost of `runs`, which are those of `node` and lie on `base`.
fn squash(node: &Arc<Node>, base: &[TreeId], runs: &[Flat]) -> Result<()> {
    let (few, rest) = runs.split_at(worth_it(runs));
    let Some(lowest) = few.last() else { return Ok(()) };
    let lowest_first = |runs: &[Flat]| runs.iter().rev().map(|run| run.tree).collect::<Vec<_>>();
    let below = [base, &lowest_first(rest)].concat();
    let tree = node.home.trees().squash(&lowest_first(few), &below)?;
    keep(node, Flat { tree, over: lowest.over.clone(), count: few.iter().map(|run| run.count).sum() });
    Ok(())
}

/// How many of the topmost to squash: those of the lowest level of which there are enough.
fn worth_it(runs: &[Flat]) -> usize {
    let level = |run: &Flat| run.count.max(1).ilog(FEW);
    let highest = runs.iter().map(level).max().unwrap_or_default();
    let enough = |up_to: u32| Some(runs.iter().take_while(|run| level(run) <= up_to).count()).filter(|count| *count >= FEW);
    match enough(0) {
        Some(singles) => singles.min(MANY),
        None => (1..=highest).find_map(enough).unwrap_or(runs.len()),
    }
}

fn keep(node: &Arc<Node>, flat: Flat) {
    let tree = flat.tree;
    let kept = node.home.change(node, |state| state.flat.get_or_insert(flat).tree);
    if kept != tree {
        // Somebody else was faster.
        node.home.remove_tree(&tree);
    }
}

/// Whether the lowest tree was made on others that are not in the stack.
fn rests_on_a_diff(node: &Arc<Node>) -> bool {
    let mut node = node;
    loop {
        if node.state().flat.as_ref().is_some_and(|flat| flat.over.is_none()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a chain of layers is stacked as, by how many layers each tree stands for, and how many times a layer was squashed.
    fn grown(layers: usize) -> (Vec<usize>, usize) {
        let (mut runs, mut linked): (Vec<Flat>, usize) = (Vec::new(), 0);
        for _ in 0..layers {
            runs.insert(0, Flat { tree: "0000000000001".parse().unwrap(), over: None, count: 1 });
            if runs.len() > DEEPEST {
                let few: usize = runs.drain(..worth_it(&runs)).map(|run| run.count).sum();
                linked += few;
                runs.insert(0, Flat { tree: "0000000000001".parse().unwrap(), over: None, count: few });
            }
        }
        (runs.iter().map(|run| run.count).collect(), linked)
    }

    #[test]
    fn a_chain_stays_shallow_and_each_layer_is_squashed_a_few_times_only() {
        for layers in [50, 100, 101, 1000, 5000, 20_000, 100_000] {
            let (runs, linked) = grown(layers);
            assert_eq!(runs.iter().sum::<usize>(), layers);
            assert!(runs.len() <= DEEPEST, "{layers}: {}", runs.len());
            assert!(linked <= layers * 4, "{layers}: {linked}");
        }
    }
}
