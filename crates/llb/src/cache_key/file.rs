use std::collections::{BTreeMap, BTreeSet};

use oci::Digest;

use super::json::{self, Object, array};
use super::{CacheKey, ContentSelector, Dep, KeyError, joined, paths};
use crate::encode::index;
use crate::types::*;

/// The key of a file op. A copy counts its source by name and content, not by where it was found.
pub fn file(op: &FileOp, inputs: usize) -> Result<CacheKey, KeyError> {
    let mut selectors: BTreeMap<u32, Vec<ContentSelector>> = BTreeMap::new();
    let mut by_definition = BTreeSet::new();
    let mut actions = Vec::with_capacity(op.actions.len());
    for action in &op.actions {
        by_definition.extend(action.input);
        actions.push(action_json(action, inputs, &mut selectors));
    }
    let indexes: Vec<[i64; 3]> = op.actions.iter().map(|a| [index(a.input), index(a.secondary_input), index(a.output)]).collect();
    let document = Object::new()
        .always("Type", "buildkit.file.v0")
        .raw("Actions", &array(&actions, |a| json::base64(a.as_bytes())))
        .optional("indexes", (!is_chain(&indexes)).then(|| array(&indexes, |i| array(i, i64::to_string))))
        .finish();

    let mut deps = vec![Dep::default(); inputs];
    for (input, selectors) in selectors {
        let Some(dep) = deps.get_mut(input as usize) else {
            return Err(KeyError::FileInput { index: input, inputs });
        };
        if by_definition.contains(&input) {
            continue;
        }
        let mut names: Vec<&str> = selectors.iter().map(|s| s.path.as_str()).collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        dep.selector = Some(joined(names.into_iter()));
        dep.content = Some(dedupe(selectors));
    }
    Ok(CacheKey { digest: Digest::of(document), deps })
}

/// The usual shape, whose indexes are not part of the key: each action works on the one before, the last is the output.
fn is_chain(indexes: &[[i64; 3]]) -> bool {
    let Some(last) = indexes.len().checked_sub(1) else { return false };
    indexes.iter().enumerate().all(|(i, [input, secondary, output])| {
        *input == if i == 0 { 0 } else { (indexes.len() + i - 1) as i64 }
            && matches!(secondary, -1 | 1)
            && *output == if i == last { 0 } else { -1 }
    })
}

fn action_json(action: &FileAction, inputs: usize, selectors: &mut BTreeMap<u32, Vec<ContentSelector>>) -> String {
    match &action.kind {
        FileActionKind::Mkdir { path, mode, make_parents, owner, timestamp } => {
            owner_selectors(owner.as_ref(), selectors);
            let json = Object::new().string("path", path).int("mode", *mode).bool("makeParents", *make_parents);
            json.optional("owner", owner.as_ref().map(owner_json)).int("timestamp", *timestamp).finish()
        }
        FileActionKind::Mkfile { path, mode, data, owner, timestamp } => {
            owner_selectors(owner.as_ref(), selectors);
            let json = Object::new().string("path", path).int("mode", *mode).bytes("data", data);
            json.optional("owner", owner.as_ref().map(owner_json)).int("timestamp", *timestamp).finish()
        }
        FileActionKind::Symlink { oldpath, newpath, owner, timestamp } => {
            let json = Object::new().string("oldpath", oldpath).string("newpath", newpath);
            json.optional("owner", owner.as_ref().map(owner_json)).int("timestamp", *timestamp).finish()
        }
        FileActionKind::Rm { path, allow_not_found, allow_wildcard } => {
            Object::new().string("path", path).bool("allowNotFound", *allow_not_found).bool("allowWildcard", *allow_wildcard).finish()
        }
        FileActionKind::Copy(copy) => {
            owner_selectors(copy.owner.as_ref(), selectors);
            let from_input = action.secondary_input.filter(|i| (*i as usize) < inputs);
            if let Some(input) = from_input {
                selectors.entry(input).or_default().push(ContentSelector {
                    path: copy.src.clone(),
                    wildcard: copy.allow_wildcard && has_wildcards(&copy.src),
                    follow_links: copy.follow_symlink,
                    include_patterns: copy.include_patterns.clone(),
                    exclude_patterns: copy.exclude_patterns.clone(),
                    required_paths: copy.required_paths.clone(),
                });
            }
            copy_json(copy, if from_input.is_some() { paths::base(&copy.src) } else { &copy.src })
        }
    }
}

fn copy_json(copy: &Copy, src: &str) -> String {
    Object::new()
        .string("src", src)
        .string("dest", &copy.dest)
        .optional("owner", copy.owner.as_ref().map(owner_json))
        .int("mode", copy.mode)
        .bool("followSymlink", copy.follow_symlink)
        .bool("dirCopyContents", copy.dir_copy_contents)
        .bool("attemptUnpackDockerCompatibility", copy.attempt_unpack)
        .bool("createDestPath", copy.create_dest_path)
        .bool("allowWildcard", copy.allow_wildcard)
        .bool("allowEmptyWildcard", copy.allow_empty_wildcard)
        .int("timestamp", copy.timestamp)
        .strings("include_patterns", &copy.include_patterns)
        .strings("exclude_patterns", &copy.exclude_patterns)
        .bool("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
        .string("modeStr", &copy.mode_str)
        .strings("required_paths", &copy.required_paths)
        .finish()
}

fn owner_json(owner: &Owner) -> String {
    let who = |who: &Who| {
        let user = match who {
            Who::Id(id) => Object::new().int("byId", *id),
            Who::Name { name, input } => {
                let named = Object::new().string("name", name).int("input", index(*input)).finish();
                Object::new().raw("byName", &named)
            }
        };
        Object::new().raw("User", &user.finish()).finish()
    };
    Object::new().optional("user", owner.user.as_ref().map(who)).optional("group", owner.group.as_ref().map(who)).finish()
}

/// Names are looked up in files of an input, so their content counts.
fn owner_selectors(owner: Option<&Owner>, selectors: &mut BTreeMap<u32, Vec<ContentSelector>>) {
    let Some(Owner { user, group }) = owner else { return };
    for (who, path) in [(user, "/etc/passwd"), (group, "/etc/group")] {
        if let Some(Who::Name { input: Some(input), .. }) = who {
            let selector = ContentSelector { path: path.to_owned(), follow_links: true, ..Default::default() };
            selectors.entry(*input).or_default().push(selector);
        }
    }
}

fn has_wildcards(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'\\' => _ = bytes.next(),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Plain paths that another covers are dropped, with their required paths; the order is by path.
fn dedupe(selectors: Vec<ContentSelector>) -> Vec<ContentSelector> {
    let plain = |s: &ContentSelector| !s.wildcard && s.include_patterns.is_empty() && s.exclude_patterns.is_empty();
    let mut kept = Vec::with_capacity(selectors.len());
    for follow_links in [false, true] {
        let paths = selectors.iter().filter(|s| plain(s) && s.follow_links == follow_links).map(|s| s.path.clone());
        let paths = paths::dedupe(paths.collect());
        kept.extend(paths.into_iter().map(|path| ContentSelector { path, follow_links, ..Default::default() }));
    }
    kept.extend(selectors.into_iter().filter(|s| !plain(s)));
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    kept
}
