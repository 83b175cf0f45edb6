//! Who a process runs as, looked up in the container's own /etc/passwd and /etc/group.
use std::os::fd::BorrowedFd;

use super::path::read_in;
use super::{Failed, Outcome};

const MAX_FILE: u64 = 10 << 20;
/// Kernel ids are unsigned, but the C library's tools take 31 bits.
const MAX_ID: i64 = i32::MAX as i64;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one first.
    pub groups: Vec<u32>,
    /// For processes that are told nothing else; `/` for users without one.
    pub home: String,
}

impl User {
    /// With more supplementary groups.
    pub fn in_groups(mut self, more: &[u32]) -> Self {
        self.groups.extend_from_slice(more);
        self
    }
}

pub(crate) fn find(root: BorrowedFd<'_>, name: &str) -> Outcome<User> {
    let (name, unnamed) = if name.is_empty() { ("0", true) } else { (name, false) };
    let passwd = read_in(root, "/etc/passwd", MAX_FILE).unwrap_or_default();
    let user = match both_numeric(name) {
        Some(user) => user,
        None => {
            let group = read_in(root, "/etc/group", MAX_FILE).unwrap_or_default();
            match lookup(name, &passwd, &group) {
                Err(_) if unnamed => with_primary(0, 0, Vec::new()),
                outcome => outcome?,
            }
        }
    };
    Ok(User { home: home(user.uid, &passwd), ..user })
}

/// Of the first account with that number.
fn home(uid: u32, passwd: &[u8]) -> String {
    let account = records(passwd).find(|fields| field_number(fields, 2) == i64::from(uid));
    let home = account.and_then(|fields| fields.get(5).cloned()).unwrap_or_default();
    if home.is_empty() { "/".to_owned() } else { home }
}

/// `uid:gid` is not looked up and has no further groups. `root` counts as a number.
fn both_numeric(name: &str) -> Option<User> {
    let (uid, gid) = name.split_once(':')?;
    let id = |text: &str| if text == "root" { Some(0) } else { text.parse::<u32>().ok().filter(|_| !text.starts_with('+')) };
    Some(with_primary(id(uid)?, id(gid)?, Vec::new()))
}

fn with_primary(uid: u32, gid: u32, groups: Vec<u32>) -> User {
    let mut all = vec![gid];
    all.extend(groups.into_iter().filter(|group| *group != gid));
    User { uid, gid, groups: all, home: String::new() }
}

fn lookup(name: &str, passwd: &[u8], group: &[u8]) -> Outcome<User> {
    let (user, wanted_group) = name.split_once(':').unwrap_or((name, ""));
    let number = |text: &str| text.parse::<i64>().ok();
    let account = records(passwd).find_map(|fields| {
        let (uid, gid) = (field_number(&fields, 2), field_number(&fields, 3));
        let matches = if user.is_empty() { uid == 0 } else { fields[0] == user || number(user) == Some(uid) };
        matches.then(|| (fields[0].to_owned(), uid, gid))
    });
    let (login, uid, mut gid) = match account {
        Some(account) => account,
        None if user.is_empty() => (String::new(), 0, 0),
        None => {
            let uid =
                number(user).ok_or_else(|| Failed::plain(format!("unable to find user {user}: no matching entries in passwd file")))?;
            if !(0..=MAX_ID).contains(&uid) {
                return Err(Failed::plain("uids and gids must be in range 0-2147483647"));
            }
            (String::new(), uid, 0)
        }
    };
    let mut groups = Vec::new();
    if wanted_group.is_empty() {
        if !login.is_empty() {
            groups = records(group)
                .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == login)))
                .map(|fields| field_number(&fields, 2))
                .collect();
        }
    } else {
        let found = records(group).find_map(|fields| {
            let id = field_number(&fields, 2);
            (fields[0] == wanted_group || number(wanted_group) == Some(id)).then_some(id)
        });
        gid = match (found, number(wanted_group)) {
            (Some(id), _) => id,
            (None, Some(id)) if (0..=MAX_ID).contains(&id) => id,
            (None, Some(_)) => return Err(Failed::plain("uids and gids must be in range 0-2147483647")),
            (None, None) => {
                return Err(Failed::plain(format!("unable to find group {wanted_group}: no matching entries in group file")));
            }
        };
    }
    Ok(with_primary(uid as u32, gid as u32, groups.into_iter().map(|id| id as u32).collect()))
}

fn records(file: &[u8]) -> impl Iterator<Item = Vec<String>> {
    String::from_utf8_lossy(file)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>())
        .collect::<Vec<_>>()
        .into_iter()
}

fn field_number(fields: &[String], at: usize) -> i64 {
    fields.get(at).and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\nweb:x:101:102::/var/www:/bin/false\nbob:x:1000:1000::/home/bob:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:102:\nwheel:x:10:root,bob\naudio:x:29:bob\nbob:x:1000:bob\n";

    fn found(name: &str) -> (u32, u32, Vec<u32>) {
        let user = lookup(name, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        assert_eq!(found("bob"), (1000, 1000, vec![1000, 10, 29]));
        assert_eq!(found("1000"), (1000, 1000, vec![1000, 10, 29]));
        assert_eq!(found("bob:www"), (1000, 102, vec![102]));
        assert_eq!(found("web:12345"), (101, 12345, vec![12345]));
        assert_eq!(found("4242"), (4242, 0, vec![0]));
        assert_eq!(found("0"), (0, 0, vec![0, 10]));
    }

    #[test]
    fn two_numbers_need_no_files() {
        assert_eq!(both_numeric("1000:7"), Some(User { uid: 1000, gid: 7, groups: vec![7], ..User::default() }));
        assert_eq!(both_numeric("root:root"), Some(User { uid: 0, gid: 0, groups: vec![0], ..User::default() }));
        assert_eq!(both_numeric("bob:7"), None);
        assert_eq!(both_numeric("1000"), None);
    }

    #[test]
    fn homes_go_by_number() {
        let homes = [0, 101, 1000, 4242].map(|uid| home(uid, PASSWD));
        assert_eq!(homes, ["/root", "/var/www", "/home/bob", "/"]);
        assert_eq!(home(5, b"x:x:5:5:::/bin/sh"), "/");
    }

    #[test]
    fn the_unknown_is_named() {
        let error = |name| lookup(name, PASSWD, GROUP).unwrap_err().into_failure().message;
        assert_eq!(error("eve"), "unable to find user eve: no matching entries in passwd file");
        assert_eq!(error("bob:nogroup"), "unable to find group nogroup: no matching entries in group file");
        assert_eq!(error("-1"), "uids and gids must be in range 0-2147483647");
    }
}
