//! Built-in Dockerfile frontend and gateway containers; asks back through one trait.
