//! Which configuration holds the entries of which policy. Pure.
//!
//! A configuration is written and, in the apiserver, compiled as a whole, and one object has at most 1.5 MiB. Entries
//! stay where they are, so that a change of one policy writes one configuration. Who stands keeps his place: it is lost
//! neither to policies that become larger nor to a second CA.

use std::{collections::HashMap, iter::once};

use job_handler_shared::{keys, names, policy::reference::PolicyRef, text::human_bytes};

use crate::enforce::webhook_entries::EntryPair;

/// Maximum number of entries in a configuration.
const ENTRIES_MAX: usize = 200;
/// Maximum size of the entries in a configuration, as JSON.
const BYTES_MAX: usize = 512 << 10;
/// Maximum size of the entries of one namespace's policies, without what the policies do not choose: a sixteenth of what
/// all configurations hold.
const NAMESPACE_BYTES_MAX: usize = 2 << 20;

/// What is reserved for address and caBundle in the two entries of a policy: two of our CAs, which are both valid while
/// one is replaced. A larger caBundle counts as it is.
const CLIENT_RESERVE: usize = 4 << 10;

/// The configuration of each policy, by uid.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    of_policy: HashMap<String, PlacedPair>,
}

/// Where the entries of a policy are.
#[derive(Clone, Copy, Debug)]
struct PlacedPair {
    /// The number of the configuration.
    index: usize,
    own_bytes: usize,
}

/// What a configuration holds.
#[derive(Clone, Copy, Debug, Default)]
struct ConfigurationLoad {
    entries: usize,
    bytes: usize,
}

impl ConfigurationLoad {
    fn fits(self, bytes: usize) -> bool {
        self.entries + 2 <= ENTRIES_MAX && self.bytes + bytes <= BYTES_MAX
    }

    fn add(&mut self, bytes: usize) {
        self.entries += 2;
        self.bytes += bytes;
    }
}

/// The room that entries take, if the policy itself chooses this much of them.
fn room(pair: &EntryPair, own_bytes: usize) -> usize {
    own_bytes + (pair.bytes - pair.own_bytes).max(CLIENT_RESERVE)
}

impl Placement {
    /// Places the entries of policies, given the oldest first, and forgets all others but `undecided` ones: what stands of
    /// these keeps its room. `standing` is where entries of an unknown policy stand already, and how much of these the policy
    /// chose. Returns by uid why entries have no place.
    pub(crate) fn place(
        &mut self,
        pairs: &[EntryPair],
        undecided: &[EntryPair],
        standing: impl Fn(&EntryPair) -> Option<(usize, usize)>,
    ) -> HashMap<String, String> {
        let before = std::mem::take(&mut self.of_policy);
        let mut loads = [ConfigurationLoad::default(); keys::LIMITS_CONFIGURATIONS];
        let place_of = |pair: &EntryPair| {
            let found = || standing(pair).filter(|(index, _)| *index < keys::LIMITS_CONFIGURATIONS);
            let unknown = || found().map(|(index, own_bytes)| PlacedPair { index, own_bytes });
            before.get(pair.uid()).copied().or_else(unknown)
        };
        for pair in undecided {
            if let Some(place) = place_of(pair) {
                self.put(pair, place, &mut loads);
            }
        }
        let mut left_out = HashMap::new();
        // Those that stand, but are larger than before, and those that stand nowhere, come after all others.
        let (mut changed, mut new) = (Vec::new(), Vec::new());
        let mut of_namespace: HashMap<&str, usize> = HashMap::new();
        for pair in pairs {
            let own_bytes = pair.own_bytes;
            if let Some(namespace) = pair.policy.reference.namespace.as_deref() {
                let bytes = of_namespace.entry(namespace).or_default();
                if *bytes + own_bytes > NAMESPACE_BYTES_MAX {
                    left_out.insert(pair.uid().to_owned(), too_large(namespace, pair));
                    continue;
                }
                *bytes += own_bytes;
            }
            let has_grown = |place: PlacedPair| own_bytes > place.own_bytes;
            match place_of(pair) {
                Some(place) if has_grown(place) || !loads[place.index].fits(room(pair, own_bytes)) => {
                    changed.push((pair, Some(place.index)));
                }
                Some(place) => self.put(pair, PlacedPair { own_bytes, ..place }, &mut loads),
                None => new.push((pair, None)),
            }
        }
        for (pair, place) in changed.into_iter().chain(new) {
            let own_bytes = pair.own_bytes;
            let mut tried = place.into_iter().chain(candidates(&pair.policy.reference));
            match tried.find(|index| loads[*index].fits(room(pair, own_bytes))) {
                Some(index) => self.put(pair, PlacedPair { index, own_bytes }, &mut loads),
                None => _ = left_out.insert(pair.uid().to_owned(), full(pair)),
            }
        }
        left_out
    }

    /// The number of the configuration.
    pub(crate) fn get(&self, uid: &str) -> Option<usize> {
        self.of_policy.get(uid).map(|place| place.index)
    }

    fn put(&mut self, pair: &EntryPair, place: PlacedPair, loads: &mut [ConfigurationLoad]) {
        loads[place.index].add(room(pair, place.own_bytes));
        self.of_policy.insert(pair.uid().to_owned(), place);
    }
}

/// All configurations in the order in which they are tried: the first one, so that most clusters have no other, and then
/// those from the hash of the namespace on, so that the policies of a namespace are together.
fn candidates(policy: &PolicyRef) -> impl Iterator<Item = usize> + use<> {
    let further = keys::LIMITS_CONFIGURATIONS - 1;
    let home = policy.namespace.as_deref().unwrap_or(&policy.name);
    let hash = u64::from_str_radix(&names::short_hash([home]), 16).unwrap_or_default();
    let start = usize::try_from(hash % further as u64).unwrap_or_default();
    once(0).chain((0..further).map(move |n| 1 + (start + n) % further))
}

fn too_large(namespace: &str, pair: &EntryPair) -> String {
    format!(
        "the webhook entries of the older policies of namespace {namespace} and its own {} exceed {}: make selectors \
         smaller, or delete policies",
        human_bytes(pair.own_bytes as u64),
        human_bytes(NAMESPACE_BYTES_MAX as u64)
    )
}

fn full(pair: &EntryPair) -> String {
    format!(
        "none of the {} ValidatingWebhookConfigurations {}* has room for its webhook entries of {} (at most {ENTRIES_MAX} \
         entries and {} each)",
        keys::LIMITS_CONFIGURATIONS,
        keys::LIMITS_CONFIGURATION,
        human_bytes(room(pair, pair.own_bytes) as u64),
        human_bytes(BYTES_MAX as u64)
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use job_handler_shared::{policy::set::PolicySet, testing::policies::job_policy};
    use k8s_openapi::{ByteString, api::admissionregistration::v1::WebhookClientConfig};
    use serde_json::{Value, json};

    use super::*;
    use crate::enforce::webhook_entries::build;

    /// Policies of these namespaces, each with this many, and a caBundle of this size.
    fn pairs(namespaces: usize, each: usize, selector: &Value, bundle: usize) -> Vec<EntryPair> {
        let policies = (0..namespaces * each).map(|n| {
            let (namespace, name) = (format!("team-{}", n / each), format!("p-{}", n % each));
            let created = jiff::Timestamp::from_second(1_800_000_000 + n as i64).unwrap().to_string();
            let metadata = json!({"name": name, "namespace": namespace, "uid": format!("{namespace}-{name}"),
                "creationTimestamp": created});
            let limits = json!([{"name": "l", "maxActiveJobs": 1}]);
            job_policy(metadata, json!({"limits": limits, "jobSelector": selector}))
        });
        let client = WebhookClientConfig {
            ca_bundle: Some(ByteString(vec![b'a'; bundle])),
            ..WebhookClientConfig::default()
        };
        build(&PolicySet::new(policies), &client, "job-handler-system")
    }

    fn places(placement: &Placement) -> BTreeMap<String, usize> {
        placement.of_policy.iter().map(|(uid, place)| (uid.clone(), place.index)).collect()
    }

    /// What a new leader finds of these entries.
    fn standing(placement: &Placement) -> impl Fn(&EntryPair) -> Option<(usize, usize)> + use<> {
        let placed = placement.of_policy.clone();
        move |pair: &EntryPair| placed.get(pair.uid()).map(|place| (place.index, place.own_bytes))
    }

    fn loads(placement: &Placement, pairs: &[EntryPair]) -> BTreeMap<usize, ConfigurationLoad> {
        let mut loads: BTreeMap<usize, ConfigurationLoad> = BTreeMap::new();
        for pair in pairs {
            if let Some(index) = placement.get(pair.uid()) {
                loads.entry(index).or_default().add(pair.bytes);
            }
        }
        for (index, load) in &loads {
            assert!(*index < keys::LIMITS_CONFIGURATIONS && load.entries <= 200 && load.bytes <= 512 << 10);
        }
        loads
    }

    /// A selector of this many bytes.
    fn selector(bytes: usize) -> Value {
        let value = |n: usize| format!("{n:05}{}", "v".repeat(57));
        let values: Vec<String> = (0..bytes / 65).map(value).collect();
        json!({"matchExpressions": [{"key": "a", "operator": "In", "values": values}]})
    }

    #[test]
    fn five_thousand_policies_fit_also_while_two_cas_are_valid() {
        for (namespaces, each) in [(5000, 1), (313, 16), (50, 100)] {
            let (one_ca, two_cas) =
                (pairs(namespaces, each, &Value::Null, 700), pairs(namespaces, each, &Value::Null, 1400));
            let mut placement = Placement::default();
            assert!(placement.place(&one_ca, &[], |_| None).is_empty());
            let before = places(&placement);
            assert!(loads(&placement, &one_ca).len() >= 50, "at most 100 policies each");
            assert!(placement.place(&two_cas, &[], |_| None).is_empty(), "{namespaces} x {each}");
            loads(&placement, &two_cas);
            assert_eq!(places(&placement), before, "none has moved");
        }
    }

    #[test]
    fn a_few_policies_are_in_the_first_configuration_and_stay_where_they_are() {
        let mut placement = Placement::default();
        let few = pairs(18, 5, &Value::Null, 700);
        assert!(placement.place(&few, &[], |_| None).is_empty());
        assert_eq!(loads(&placement, &few).into_keys().collect::<Vec<_>>(), [0]);
        // A new leader finds them elsewhere.
        let mut placement = Placement::default();
        assert!(placement.place(&few, &[], |pair| Some((pair.uid().len(), 0))).is_empty());
        assert!(few.iter().all(|pair| placement.get(pair.uid()) == Some(pair.uid().len())));
        placement.place(&few[..50], &[], |_| None);
        assert!(few.iter().take(50).all(|pair| placement.get(pair.uid()) == Some(pair.uid().len())));
        assert_eq!(placement.get(few[50].uid()), None, "deleted");
        assert!(placement.place(&few, &[], |_| Some((9999, usize::MAX))).is_empty(), "no such configuration");
    }

    #[test]
    fn one_namespace_cannot_fill_the_configurations() {
        let mut crowd = pairs(1, 100, &selector(60_000), 700);
        let other = pairs(2, 1, &Value::Null, 700).remove(1);
        crowd.push(other.clone());
        let mut placement = Placement::default();
        let left_out = placement.place(&crowd, &[], |_| None);
        loads(&placement, &crowd);
        let placed = crowd.iter().filter(|pair| placement.get(pair.uid()).is_some());
        let own: usize = placed.filter(|p| p.uid() != other.uid()).map(|p| p.own_bytes).sum();
        assert!(own <= NAMESPACE_BYTES_MAX && left_out.len() > 80, "{own} {}", left_out.len());
        assert!(placement.get(crowd[0].uid()).is_some() && left_out.contains_key(crowd[99].uid()), "by age");
        assert!(left_out[crowd[99].uid()].contains("namespace team-0"), "{left_out:?}");
        assert!(!left_out.contains_key(other.uid()));
    }

    #[test]
    fn entries_that_no_configuration_can_hold_are_left_out() {
        let mut placement = Placement::default();
        let left_out = placement.place(&pairs(1, 1, &Value::Null, 300_000), &[], |_| None);
        assert!(left_out["team-0-p-0"].contains("none of the 64"), "{left_out:?}");
    }

    /// Large policies of 17 tenants that fill all configurations: a few find no room.
    fn crowd() -> Vec<EntryPair> {
        pairs(17, 16, &selector(60_000), 700)
    }

    #[test]
    fn a_policy_that_grows_takes_no_room_of_others() {
        let mut placement = Placement::default();
        let mut all = crowd();
        let left_out = placement.place(&all, &[], |_| None);
        assert!(!left_out.is_empty() && !left_out.contains_key(all[0].uid()));
        let (stood, mut others) = (standing(&placement), places(&placement));
        others.remove(all[0].uid());
        // The oldest one gets a larger selector.
        all[0] = pairs(1, 1, &selector(90_000), 700).remove(0);
        let left_out = placement.place(&all, &[], |_| None);
        loads(&placement, &all);
        assert!(others.iter().all(|(uid, index)| placement.get(uid) == Some(*index)));
        assert!(left_out[all[0].uid()].contains("none of the 64"), "{left_out:?}");
        // A new leader finds what stands. If the address or the CA changed, it has to try all entries again.
        for renewed in [false, true] {
            let mut next = Placement::default();
            if renewed {
                all = pairs(17, 16, &selector(60_000), 1400);
                all[0] = pairs(1, 1, &selector(90_000), 1400).remove(0);
                next.place(&[], &all, &stood);
            }
            next.place(&all, &[], &stood);
            assert!(others.iter().all(|(uid, index)| next.get(uid) == Some(*index)), "{renewed}");
            assert_eq!(next.get(all[0].uid()), None, "{renewed}");
        }
    }

    #[test]
    fn what_is_being_checked_keeps_its_room() {
        let mut placement = Placement::default();
        let all = crowd();
        placement.place(&all, &[], |_| None);
        let (before, stood) = (places(&placement), standing(&placement));
        let (first, others) = all.split_at(1);
        placement.place(others, first, |_| None);
        assert_eq!(places(&placement), before, "no other policy has taken it");
        let mut next = Placement::default();
        next.place(others, first, stood);
        assert_eq!(places(&next), before);
    }

    #[test]
    fn a_second_ca_moves_and_drops_nothing() {
        let selector = selector(1000);
        let (one_ca, two_cas) = (pairs(67, 100, &selector, 700), pairs(67, 100, &selector, 1400));
        let mut placement = Placement::default();
        assert!(!placement.place(&one_ca, &[], |_| None).is_empty(), "they fill all configurations");
        let before = places(&placement);
        placement.place(&two_cas, &[], |_| None);
        loads(&placement, &two_cas);
        assert_eq!(places(&placement), before);
    }
}
