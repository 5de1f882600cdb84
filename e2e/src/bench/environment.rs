//! Sizes of benchmarks that the environment sets: `BENCH_HARVEST_JOBS=10000 cargo bench-all harvest`.

use crate::harness::error::{Error, Result};

/// The number in an environment variable, or the default.
///
/// # Errors
/// If the variable is not a number.
pub(super) fn number(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .map_err(|error| Error::Invalid(format!("{variable}={text}: expected a number: {error}"))),
        Err(_) => Ok(default),
    }
}
