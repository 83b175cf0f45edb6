//! Does: owns the solver, runs its commands on tokio, shares work between jobs, cancels.
