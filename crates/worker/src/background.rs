//! What a worker does beside builds.
use layers::Layers;
use task::Cancel;

/// Upkeep of the layers; ends when dropped.
pub struct Background(Cancel);

impl Background {
    pub fn start(layers: Layers) -> Self {
        let cancel = Cancel::new();
        let child = cancel.child();
        task::spawn("upkeep", async move { layers.maintain(&child).await });
        Self(cancel)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.cancel("the worker is closed");
    }
}
