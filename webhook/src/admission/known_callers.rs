//! From which addresses reviews come. An apiserver keeps its address, or that of its tunnel, so that a valid secret from a
//! new address is a sign of a leak.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// For this long after the start all addresses are taken for those of apiservers.
const LEARNING: Duration = Duration::from_secs(60);
/// After this time without a review an address is new again: whoever used a secret once is not trusted for ever, and the
/// address of a pod soon belongs to another one.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);
/// Most addresses to remember.
const MAX_ADDRESSES: usize = 1024;

/// The addresses from which reviews with a valid secret came. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct KnownCallers {
    begun: Instant,
    /// When the last review came from each.
    addresses: Arc<Mutex<HashMap<IpAddr, Instant>>>,
}

impl KnownCallers {
    /// No addresses; the process has started at `begun`.
    pub(super) fn new(begun: Instant) -> Self {
        Self { begun, addresses: Arc::default() }
    }

    /// Remembers that a review came from an address. Returns whether the address is new, unless the process has just
    /// started.
    pub(super) fn is_new(&self, address: IpAddr, now: Instant) -> bool {
        let mut addresses = self.addresses.lock();
        if !addresses.contains_key(&address) && addresses.len() >= MAX_ADDRESSES {
            let longest_silent = addresses.iter().min_by_key(|(_, seen)| **seen).map(|(address, _)| *address);
            longest_silent.map(|address| addresses.remove(&address));
        }
        let before = addresses.insert(address, now);
        !before.is_some_and(|seen| is_remembered(seen, now))
            && now.saturating_duration_since(self.begun) > LEARNING
    }

    /// Whether reviews came from an address.
    pub(super) fn knows(&self, address: IpAddr, now: Instant) -> bool {
        self.addresses.lock().get(&address).is_some_and(|seen| is_remembered(*seen, now))
    }
}

fn is_remembered(seen: Instant, now: Instant) -> bool {
    now.saturating_duration_since(seen) < FORGOTTEN_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn an_address_is_new_once_and_not_right_after_the_start() {
        let begun = Instant::now();
        let callers = KnownCallers::new(begun);
        let later = begun + LEARNING + Duration::from_secs(1);
        assert!(!callers.is_new(address(1), begun));
        assert_eq!([1, 2, 2, 1].map(|n| callers.is_new(address(n), later)), [false, true, false, false]);
        for n in 3..5000 {
            let now = later + Duration::from_millis(n.into());
            assert!(callers.is_new(address(n), now));
            assert!(!callers.is_new(address(1), now), "the apiserver is not displaced");
            assert!(callers.addresses.lock().len() <= MAX_ADDRESSES);
        }
    }

    #[test]
    fn an_address_that_is_silent_for_long_is_new_again() {
        let begun = Instant::now();
        let callers = KnownCallers::new(begun);
        for caller in 1..3 {
            assert!(!callers.is_new(address(caller), begun));
        }
        let minutes = |minutes: u64| begun + Duration::from_secs(60 * minutes);
        assert!(!callers.is_new(address(1), minutes(14)));
        assert_eq!([1, 2, 3].map(|caller| callers.knows(address(caller), minutes(16))), [true, false, false]);
        assert_eq!([1, 2].map(|caller| callers.is_new(address(caller), minutes(16))), [false, true]);
    }
}
