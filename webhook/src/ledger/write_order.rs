//! Whose turn it is to write a ledger, where several replicas want to.
//!
//! Whoever wrote last knows the newest version before all others do, and would come first again and again; and of those
//! who hear of it at the same time all but one would write in vain. So each version says who may write first: of the
//! replicas that made the last few versions, which stand in it, the one that has not written for longest. It is the one
//! with most to write, as a rule, and whoever wrote last has just given everybody an answer. The others follow, each as
//! much later as a write takes. Nobody relies on it: the write itself tells who came first.

use std::net::SocketAddr;

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

/// Who of them had better decide for all: any that can be asked, as long as all agree, and one ledger's is not always
/// another's too.
pub fn leader(ledger: &str, writers: &str) -> Option<SocketAddr> {
    let addresses = last(writers).filter_map(|writer| Some((writer, writer.parse().ok()?)));
    addresses.min_by_key(|(writer, _)| fnv(ledger.bytes().chain(writer.bytes()))).map(|(_, address)| address)
}

/// FNV-1a: the same in all builds, as replicas of two versions have to agree as well.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
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
    fn one_of_those_who_can_be_asked_decides_for_all() {
        let writers = "10.0.0.1:8443 0f3a22c1 [fd00::1]:8443 10.0.0.1:8443";
        let of_first = (0..100).filter(|n| leader(&format!("ns-{n}"), writers).unwrap().is_ipv4()).count();
        assert!((30..70).contains(&of_first), "one decides for {of_first} of 100 ledgers");
        assert_eq!(leader("ci", "0f3a22c1"), None);
        let other_order = "10.0.0.1:8443 10.0.0.1:8443 [fd00::1]:8443";
        assert_eq!(leader("ci", writers), leader("ci", other_order));
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
