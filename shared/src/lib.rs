//! The vocabulary both programs agree on.
