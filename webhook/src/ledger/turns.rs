//! Whose turn it is to write a ledger, where several replicas want to.
//!
//! Whoever wrote last knows the newest version before all others do, and would come first again and again; and of those
//! who hear of it at the same time all but one would write in vain. So each version says who may write first: the
//! replicas that wrote a moment ago, in one order for all, beginning with one that the version's number picks. The others
//! follow, each as much later as a write takes. Nobody relies on it: the write itself tells who came first.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Who has not written for this long is not expected to.
const QUIET: Duration = Duration::from_secs(1);

/// The other replicas that write a ledger.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    /// And when they did last.
    others: BTreeMap<String, Instant>,
}

impl Turns {
    /// Another replica wrote then, later than whatever was heard before.
    pub fn heard(&mut self, writer: &str, at: Instant) {
        self.others.insert(writer.to_owned(), at);
    }

    /// How many others may write before `me`, once this version is known.
    pub fn before(&mut self, me: &str, version: u64, now: Instant) -> u32 {
        self.others.retain(|_, last| now.saturating_duration_since(*last) < QUIET);
        let place = self.others.keys().filter(|other| other.as_str() < me).count() as u64;
        let all = self.others.len() as u64 + 1;
        u32::try_from((place + all - version % all) % all).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_never_waits_and_together_each_has_a_place_of_its_own() {
        let now = Instant::now();
        let replicas = ["a", "b", "c"];
        for version in 0..9 {
            let place = |me: &str| {
                let mut turns = Turns::default();
                assert_eq!(turns.before(me, version, now), 0);
                replicas.iter().filter(|other| **other != me).for_each(|other| turns.heard(other, now));
                turns.before(me, version, now)
            };
            let mut places = replicas.map(place);
            assert_eq!(place(replicas[(version % 3) as usize]), 0, "by its number");
            places.sort_unstable();
            assert_eq!(places, [0, 1, 2]);
        }
        let mut turns = Turns::default();
        turns.heard("a", now);
        assert_eq!(turns.before("b", 0, now + QUIET / 2), 1);
        assert_eq!(turns.before("b", 0, now + QUIET), 0, "nobody else writes any more");
    }
}
