//! The sandbox's helper and nothing else, for this room's own tests; the daemon is its own helper.
fn main() {
    sandbox::helper::main()
}
