//! Ids as BuildKit's clients make them.
use rand::Rng as _;

/// 25 characters of lower-case base 36; unique for all practical purposes. For builds and sessions.
pub fn new_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rng = rand::rng();
    (0..25).map(|_| DIGITS[rng.random_range(0..36)] as char).collect()
}
