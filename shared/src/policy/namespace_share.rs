//! How much the JobPolicies of one namespace may use of what all policies share.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::policy::{parsed::Policy, reference::PolicyRef};

/// JobPolicies of one namespace that apply. Further ones, the newer ones, do not, so that one namespace can neither make
/// every decision slow nor use up what all policies share: memory, the Leases of the webhook replicas and the webhook
/// configurations of the limits.
pub const NAMESPACE_POLICIES_MAX: usize = 100;
/// Bytes of the specs of these policies as JSON, each of which takes up to five in memory. Usual policies have one or two KiB.
pub const NAMESPACE_POLICY_BYTES_MAX: usize = 1 << 20;

/// What tells whether a policy applies. Memory keeps it of each policy, and the rest only of those that do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PolicyClaim {
    reference: PolicyRef,
    pub(super) generation: i64,
    created: Option<Timestamp>,
    bytes: usize,
}

impl PolicyClaim {
    pub(super) fn of(policy: &Policy) -> Self {
        Self {
            reference: policy.reference.clone(),
            generation: policy.generation,
            created: policy.created,
            bytes: policy.bytes,
        }
    }
}

/// The policies that apply and those that do not, each with a name for it: the older ones first, and one that has no room
/// takes none from those behind it. All programs leave out the same ones.
pub(super) fn share_out<'a, T>(policies: impl Iterator<Item = (&'a PolicyClaim, T)>) -> (Vec<T>, Vec<T>) {
    let mut policies: Vec<(&PolicyClaim, T)> = policies.collect();
    policies.sort_by(|(a, _), (b, _)| (a.created, &a.reference).cmp(&(b.created, &b.reference)));
    let mut shares: HashMap<&str, (usize, usize)> = HashMap::new();
    let (mut applying, mut surplus) = (Vec::new(), Vec::new());
    for (claim, name) in policies {
        let Some(namespace) = claim.reference.namespace.as_deref() else {
            applying.push(name);
            continue;
        };
        let (count, bytes) = shares.entry(namespace).or_default();
        if *count < NAMESPACE_POLICIES_MAX && *bytes + claim.bytes <= NAMESPACE_POLICY_BYTES_MAX {
            *count += 1;
            *bytes += claim.bytes;
            applying.push(name);
        } else {
            surplus.push(name);
        }
    }
    (applying, surplus)
}
