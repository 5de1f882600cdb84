//! The pair on the cluster.
