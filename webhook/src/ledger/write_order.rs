//! The order in which replicas write a ledger after their writes conflicted.
//!
//! The replica that wrote last knows the newest version first and would win again and again; of the replicas that
//! observe it at the same time, all but one would get a conflict. So each version names the replicas that wrote the
//! last few versions, and the one that has not written for longest writes first: it usually has the most requests
//! waiting. Each of the others waits for as long as the writes before its own take. The order is a hint: conflicting
//! writes are still detected by the resourceVersion.

/// How many of the last versions count. A replica that wrote none of them is not expected to write.
const VERSIONS: usize = 6;

/// How many replicas write before `me`, given the writers of the last versions, newest first.
pub(crate) fn writers_before(me: &str, writers: &str) -> u32 {
    let mut order: Vec<&str> = Vec::new();
    for writer in recent(writers) {
        if !order.contains(&writer) {
            order.push(writer);
        }
    }
    let before = order.iter().position(|writer| *writer == me).map_or(0, |at| order.len() - at - 1);
    u32::try_from(before).unwrap_or(u32::MAX)
}

/// The writers of the last versions once `me` has written another one.
pub(crate) fn with_writer(me: &str, writers: &str) -> String {
    let last: Vec<&str> = std::iter::once(me).chain(recent(writers)).take(VERSIONS).collect();
    last.join(" ")
}

fn recent(writers: &str) -> impl Iterator<Item = &str> {
    writers.split_whitespace().take(VERSIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_ordered_by_their_last_write() {
        assert_eq!(writers_before("a", ""), 0);
        assert_eq!(writers_before("a", "a a a"), 0, "a single replica never waits");
        let writers = "a b a c b a";
        assert_eq!(["a", "b", "c"].map(|me| writers_before(me, writers)), [2, 1, 0]);
        assert_eq!(writers_before("d", writers), 0, "d has not written for long");
    }

    #[test]
    fn a_replica_that_stopped_writing_is_dropped() {
        let mut writers = with_writer("gone", "");
        for _ in 1..VERSIONS {
            writers = with_writer("a", &writers);
            assert_eq!(writers_before("a", &writers), 1);
        }
        assert_eq!(writers_before("a", &with_writer("a", &writers)), 0);
    }
}
