//! What happened a moment ago, by its name.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Remembers for a given time, but no more than so many: then the eldest are forgotten early.
///
/// In two generations, of which the elder goes as a whole: nothing is searched through to forget, however much comes.
#[derive(Debug)]
pub struct TtlMap<V> {
    age: Duration,
    most: usize,
    began: Instant,
    young: HashMap<String, (V, Instant)>,
    elder: HashMap<String, (V, Instant)>,
}

impl<V> TtlMap<V> {
    /// For so long. At most twice `most` are remembered.
    pub fn new(age: Duration, most: usize, now: Instant) -> Self {
        Self { age, most, began: now, young: HashMap::new(), elder: HashMap::new() }
    }

    /// What was noted under a name, unless that is too long ago.
    pub fn get(&self, name: &str, now: Instant) -> Option<&V> {
        let (value, at) = self.young.get(name).or_else(|| self.elder.get(name))?;
        (now.saturating_duration_since(*at) < self.age).then_some(value)
    }

    /// Notes it.
    pub fn insert(&mut self, name: String, value: V, now: Instant) {
        if self.young.len() >= self.most {
            self.rotate(now);
        }
        self.evict(now);
        self.young.insert(name, (value, now));
    }

    /// Lets go of what is too long ago, for those who note nothing for a while.
    pub fn evict(&mut self, now: Instant) {
        if now.saturating_duration_since(self.began) >= self.age {
            self.rotate(now);
        }
    }

    fn rotate(&mut self, now: Instant) {
        self.elder = std::mem::take(&mut self.young);
        self.began = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(10);

    #[test]
    fn it_is_remembered_for_its_time_and_no_longer() {
        let begin = Instant::now();
        let mut map = TtlMap::new(AGE, 100, begin);
        // Noted at any moment of a generation's life.
        for n in 0..50_u32 {
            let at = begin + Duration::from_secs(3) * n;
            map.insert(n.to_string(), n, at);
            for known in 0..=n {
                let ago = Duration::from_secs(3) * (n - known);
                assert_eq!(map.get(&known.to_string(), at), (ago < AGE).then_some(&known), "{known} at {n}");
            }
        }
        let later = begin + Duration::from_secs(3) * 49 + AGE;
        map.evict(later);
        map.evict(later + AGE);
        assert!(map.young.is_empty() && map.elder.is_empty());
    }

    #[test]
    fn many_push_out_the_eldest() {
        let now = Instant::now();
        let mut map = TtlMap::new(AGE, 10, now);
        for n in 0..1000 {
            map.insert(n.to_string(), (), now);
            assert!(map.young.len() + map.elder.len() <= 20);
        }
        assert!(map.get("999", now).is_some() && map.get("985", now).is_some());
        assert!(map.get("900", now).is_none());
    }
}
