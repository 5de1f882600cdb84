//! Admission webhook: stamps new Jobs and holds limits.
