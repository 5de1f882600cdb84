//! From which addresses reviews come. An apiserver keeps its address, or that of its tunnel, so that a valid secret from a
//! new address is a sign of a leak.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// For this long after the start all addresses are taken for those of apiservers.
const LEARNING: Duration = Duration::from_secs(60);
/// Most addresses to remember.
const MAX_ADDRESSES: usize = 1024;

/// The addresses from which reviews with a valid secret came. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct KnownCallers {
    begun: Instant,
    addresses: Arc<Mutex<HashSet<IpAddr>>>,
}

impl KnownCallers {
    /// No addresses; the process has started at `begun`.
    pub(super) fn new(begun: Instant) -> Self {
        Self { begun, addresses: Arc::default() }
    }

    /// Remembers an address. Returns whether it is new, unless the process has just started.
    pub(super) fn is_new(&self, address: IpAddr, now: Instant) -> bool {
        let mut addresses = self.addresses.lock();
        if addresses.contains(&address) {
            return false;
        }
        if addresses.len() >= MAX_ADDRESSES {
            addresses.clear();
        }
        addresses.insert(address);
        now.saturating_duration_since(self.begun) > LEARNING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_new_once_and_not_right_after_the_start() {
        let begun = Instant::now();
        let callers = KnownCallers::new(begun);
        let later = begun + LEARNING + Duration::from_secs(1);
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        assert!(!callers.is_new(address(1), begun));
        assert_eq!([1, 2, 2, 1].map(|n| callers.is_new(address(n), later)), [false, true, false, false]);
        for n in 3..5000 {
            assert!(callers.is_new(address(n), later));
            assert!(callers.addresses.lock().len() <= MAX_ADDRESSES);
        }
    }
}
