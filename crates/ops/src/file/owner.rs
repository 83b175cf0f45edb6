//! Who owns what an action makes.
use std::io::Read as _;

use llb::{Owner, Who};
use snapshot::{Follow, View};

use super::error::ActionError;

/// User and group id.
pub(super) type Ids = (u32, u32);

/// Larger files of users are refused.
const MAX_FILE: u64 = 10 << 20;

/// Numbers for an owner. A name that is not found is root, silently; a user brings its own primary group unless a group is given. `views`
/// gives the tree for an input's index.
pub(super) fn lookup(owner: Option<&Owner>, views: &dyn Fn(u32) -> fault::Result<Option<View>>) -> Result<Option<Ids>, ActionError> {
    let Some(owner) = owner else { return Ok(None) };
    let (mut uid, mut gid) = (0, 0);
    match &owner.user {
        Some(Who::Id(id)) => (uid, gid) = (*id, *id),
        Some(Who::Name { name, input }) => {
            let line = find("/etc/passwd", name, "user", *input, views)?;
            let number = |field: usize| line.get(field).and_then(|text| text.parse().ok()).unwrap_or(0);
            (uid, gid) = (number(2), number(3));
        }
        None => {}
    }
    match &owner.group {
        Some(Who::Id(id)) => gid = *id,
        Some(Who::Name { name, input }) => {
            let line = find("/etc/group", name, "group", *input, views)?;
            if let Some(number) = line.get(2) {
                gid = number.parse().unwrap_or(0);
            }
        }
        None => {}
    }
    Ok(Some((uid, gid)))
}

/// The fields of the first line for `name`; none where there is no such line, or no such file.
fn find(
    path: &str,
    name: &str,
    what: &str,
    input: Option<u32>,
    views: &dyn Fn(u32) -> fault::Result<Option<View>>,
) -> Result<Vec<String>, ActionError> {
    let index = input.ok_or_else(|| ActionError::text(format!("invalid {what} index: -1")))?;
    let Some(view) = views(index)? else { return Ok(Vec::new()) };
    let Some(entry) = view.lookup(path, Follow::Yes)? else { return Ok(Vec::new()) };
    if !entry.metadata().is_file() {
        return Err(ActionError::text(format!("{path} is not a regular file")));
    }
    if entry.metadata().size > MAX_FILE {
        return Err(ActionError::text(format!("{path:?} exceeds {MAX_FILE} bytes")));
    }
    let mut bytes = Vec::new();
    let read = view.open(entry.path())?.take(MAX_FILE).read_to_end(&mut bytes);
    read.map_err(|source| ActionError::Read { message: format!("read {path}"), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(|line| line.trim().split(':').map(str::to_owned).collect::<Vec<_>>());
    Ok(lines.into_iter().find(|fields| fields.first().is_some_and(|first| first == name)).unwrap_or_default())
}
