use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::Layer;

/// What one build has found names to stand for: within a build that does not change, whatever becomes of the name elsewhere. Clones are the same.
#[derive(Clone, Default)]
pub struct Pins(Arc<Mutex<HashMap<String, Pin>>>);

/// What a name stands for: its content, which is kept for as long as the build lasts, and what the pinner wants to remember beside it.
#[derive(Clone)]
pub struct Pin {
    pub layer: Option<Layer>,
    pub note: Vec<u8>,
}

/// The pins of all builds that want one piece of work.
#[derive(Clone, Default)]
pub struct PinGroup(Vec<Pins>);

impl PinGroup {
    pub fn new(builds: impl IntoIterator<Item = Pins>) -> Self {
        Self(builds.into_iter().collect())
    }

    pub fn get(&self, name: &str) -> Option<Pin> {
        self.0.iter().find_map(|pins| pins.lock().get(name).cloned())
    }

    /// Pins the name in the builds that have not pinned it yet, and gives what it stands for now.
    pub fn put(&self, name: &str, pin: Pin) -> Pin {
        let pin = self.get(name).unwrap_or(pin);
        for pins in &self.0 {
            pins.lock().entry(name.to_owned()).or_insert_with(|| pin.clone());
        }
        pin
    }
}

impl Pins {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Pin>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(note: &str) -> Pin {
        Pin { layer: None, note: note.into() }
    }

    #[test]
    fn what_a_build_pinned_first_stays() {
        let (one, two) = (Pins::default(), Pins::default());
        let alone = PinGroup::new([one.clone()]);
        assert!(alone.get("a").is_none());
        assert_eq!(alone.put("a", pin("first")).note, b"first");
        // Work that both builds want goes by what either knows, and tells the other.
        let both = PinGroup::new([two.clone(), one]);
        assert_eq!(both.put("a", pin("second")).note, b"first");
        assert_eq!(PinGroup::new([two]).get("a").unwrap().note, b"first");
    }
}
