//! A map whose entries expire.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Keeps entries for a fixed time, but at most a fixed number: beyond it, the oldest are evicted early.
///
/// Entries are in two generations, and the older one is dropped as a whole: eviction never searches the map.
#[derive(Debug)]
pub(crate) struct TtlMap<V> {
    ttl: Duration,
    /// Entries per generation.
    capacity: usize,
    generation_began: Instant,
    young: HashMap<String, (V, Instant)>,
    old: HashMap<String, (V, Instant)>,
}

impl<V> TtlMap<V> {
    /// Keeps entries for `ttl`, and at most twice `capacity` of them.
    pub(crate) fn new(ttl: Duration, capacity: usize, now: Instant) -> Self {
        Self { ttl, capacity, generation_began: now, young: HashMap::new(), old: HashMap::new() }
    }

    /// The value of a key, unless it has expired.
    pub(crate) fn get(&self, key: &str, now: Instant) -> Option<&V> {
        let (value, at) = self.young.get(key).or_else(|| self.old.get(key))?;
        (now.saturating_duration_since(*at) < self.ttl).then_some(value)
    }

    pub(crate) fn insert(&mut self, key: String, value: V, now: Instant) {
        if self.young.len() >= self.capacity {
            self.rotate(now);
        }
        self.evict(now);
        self.young.insert(key, (value, now));
    }

    /// Drops expired entries. [`insert`](Self::insert) does so as well.
    pub(crate) fn evict(&mut self, now: Instant) {
        if now.saturating_duration_since(self.generation_began) >= self.ttl {
            self.rotate(now);
        }
    }

    fn rotate(&mut self, now: Instant) {
        self.old = std::mem::take(&mut self.young);
        self.generation_began = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn an_entry_is_kept_for_its_ttl() {
        let begin = Instant::now();
        let mut map = TtlMap::new(TTL, 100, begin);
        // Inserted at any moment of a generation's life.
        for n in 0..50_u32 {
            let at = begin + Duration::from_secs(3) * n;
            map.insert(n.to_string(), n, at);
            for known in 0..=n {
                let ago = Duration::from_secs(3) * (n - known);
                assert_eq!(map.get(&known.to_string(), at), (ago < TTL).then_some(&known), "{known} at {n}");
            }
        }
        let later = begin + Duration::from_secs(3) * 49 + TTL;
        map.evict(later);
        map.evict(later + TTL);
        assert!(map.young.is_empty() && map.old.is_empty());
    }

    #[test]
    fn beyond_the_capacity_the_oldest_are_evicted() {
        let now = Instant::now();
        let mut map = TtlMap::new(TTL, 10, now);
        for n in 0..1000 {
            map.insert(n.to_string(), (), now);
            assert!(map.young.len() + map.old.len() <= 20);
        }
        assert!(map.get("999", now).is_some() && map.get("985", now).is_some());
        assert!(map.get("900", now).is_none());
    }
}
