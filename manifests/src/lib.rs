//! The Kubernetes manifests, held against the code by tests.
