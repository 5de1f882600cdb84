//! How much the JobPolicies of one namespace may use of what all policies share.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use jiff::Timestamp;

use crate::policy::{label_keys, parsed::Policy, reference::PolicyRef};

/// JobPolicies of one namespace that apply. Further ones, the newer ones, do not, so that one namespace can neither make
/// every decision slow nor use up what all policies share: memory, the Leases of the webhook replicas and the webhook
/// configurations of the limits.
pub const NAMESPACE_POLICIES_MAX: usize = 100;
/// Bytes of the specs of these policies as JSON, each of which takes up to five in memory. Usual policies have one or two KiB.
pub const NAMESPACE_POLICY_BYTES_MAX: usize = 1 << 20;
/// Different label keys that these policies may name together. Memory keeps the labels with these keys of each Job of the
/// namespace, so each key costs whoever holds all Jobs up to 380 bytes per Job. Usual namespaces name fewer than ten.
pub const NAMESPACE_LABEL_KEYS_MAX: usize = 64;

/// What tells whether a policy applies. Memory keeps it of each policy, and the rest only of those that do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicyClaim {
    reference: PolicyRef,
    pub(super) generation: i64,
    created: Option<Timestamp>,
    bytes: usize,
    /// Hashes of the label keys that it names; a key may have 317 bytes. Only their number counts.
    label_keys: Arc<[u64]>,
}

/// What the policies of a namespace that apply use up.
#[derive(Default)]
struct NamespaceShare {
    policies: usize,
    bytes: usize,
    label_keys: HashSet<u64>,
}

impl PolicyClaim {
    pub(super) fn of(policy: &Policy) -> Self {
        Self {
            reference: policy.reference.clone(),
            generation: policy.generation,
            created: policy.created,
            bytes: policy.bytes,
            label_keys: label_keys::named_by(&policy.spec).map(|key| hash(key)).collect(),
        }
    }
}

fn hash(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// The policies that apply and those that do not, each with a name for it: the older ones first, and one that has no room
/// takes none from those behind it. All programs leave out the same ones.
pub(super) fn share_out<'a, T>(policies: impl Iterator<Item = (&'a PolicyClaim, T)>) -> (Vec<T>, Vec<T>) {
    let mut policies: Vec<(&PolicyClaim, T)> = policies.collect();
    policies.sort_by(|(a, _), (b, _)| (a.created, &a.reference).cmp(&(b.created, &b.reference)));
    let mut shares: HashMap<&str, NamespaceShare> = HashMap::new();
    let (mut applying, mut surplus) = (Vec::new(), Vec::new());
    for (claim, name) in policies {
        let Some(namespace) = claim.reference.namespace.as_deref() else {
            applying.push(name);
            continue;
        };
        let share = shares.entry(namespace).or_default();
        let mut further: HashSet<u64> = claim.label_keys.iter().copied().collect();
        further.retain(|key| !share.label_keys.contains(key));
        let has_room = share.policies < NAMESPACE_POLICIES_MAX
            && share.bytes + claim.bytes <= NAMESPACE_POLICY_BYTES_MAX
            && share.label_keys.len() + further.len() <= NAMESPACE_LABEL_KEYS_MAX;
        if has_room {
            share.policies += 1;
            share.bytes += claim.bytes;
            share.label_keys.extend(further);
            applying.push(name);
        } else {
            surplus.push(name);
        }
    }
    (applying, surplus)
}
