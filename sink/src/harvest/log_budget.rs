//! The remaining log budget of a Job.

use parking_lot::Mutex;

/// Bytes, shared by the pods that are read at the same time.
#[derive(Debug)]
pub(crate) struct LogBudget(Mutex<usize>);

impl LogBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Mutex::new(bytes))
    }

    /// Reserves up to `wanted` bytes. Callers reserve the most that a log may use and release the rest, so that logs read at
    /// the same time never exceed the budget together.
    pub(crate) fn reserve(&self, wanted: usize) -> usize {
        let mut left = self.0.lock();
        let granted = wanted.min(*left);
        *left -= granted;
        granted
    }

    pub(crate) fn release(&self, bytes: usize) {
        *self.0.lock() += bytes;
    }

    pub(crate) fn left(&self) -> usize {
        *self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_never_exceed_the_budget() {
        let budget = LogBudget::new(100);
        assert_eq!((budget.reserve(60), budget.reserve(60), budget.reserve(60)), (60, 40, 0));
        budget.release(30);
        assert_eq!((budget.left(), budget.reserve(60), budget.left()), (30, 30, 0));
    }
}
