//! Whose turn it is to write a ledger, where several replicas want to.
//!
//! Whoever wrote last knows the newest version before all others do, and would come first again and again; and of those
//! who hear of it at the same time all but one would write in vain. So each version says who may write first: of the
//! replicas that made the last few versions, which stand in it, the one that has not written for longest. It is the one
//! with most to write, as a rule, and whoever wrote last has just given everybody an answer. The others follow, each as
//! much later as a write takes. Nobody relies on it: the write itself tells who came first.

/// Who made none of so many last versions is not expected to write.
const EXPECTED: usize = 6;

/// How many others may write before `me`, by who wrote last (newest first).
pub fn before(me: &str, writers: &str) -> u32 {
    let mut order: Vec<&str> = Vec::new();
    for writer in last(writers) {
        if !order.contains(&writer) {
            order.push(writer);
        }
    }
    let before = order.iter().position(|writer| *writer == me).map_or(0, |at| order.len() - at - 1);
    u32::try_from(before).unwrap_or(u32::MAX)
}

fn last(writers: &str) -> impl Iterator<Item = &str> {
    writers.split_whitespace().take(EXPECTED)
}

/// The same with a version that `me` makes.
pub fn after(me: &str, writers: &str) -> String {
    let last: Vec<&str> = std::iter::once(me).chain(last(writers)).take(EXPECTED).collect();
    last.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_place_of_its_own_by_who_wrote_last() {
        assert_eq!(before("a", ""), 0);
        assert_eq!(before("a", "a a a"), 0, "who is alone never waits");
        let writers = "a b a c b a";
        assert_eq!(["a", "b", "c"].map(|me| before(me, writers)), [2, 1, 0]);
        assert_eq!(before("d", writers), 0, "who has not written for long");
    }

    #[test]
    fn who_writes_no_more_is_forgotten() {
        let mut writers = after("gone", "");
        for _ in 1..EXPECTED {
            writers = after("a", &writers);
            assert_eq!(before("a", &writers), 1);
        }
        assert_eq!(before("a", &after("a", &writers)), 0);
    }
}
