//! A place where steps run: platforms, sandbox and layers.
