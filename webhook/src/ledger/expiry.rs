//! How long after its grant an attempt can still store a Job.
//!
//! Until the apiserver has the answer of every validating webhook, and 20 s more: in them this process answers and the
//! apiserver writes the Job. Neither the clocks of other replicas nor the time in the ledger is trusted, so that the time counts from
//! when this process first saw the attempt.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use job_handler_shared::{ledger::crd::LedgerContents, policy::set::PolicySet};

use crate::{
    ledger::{
        attempt_age::USUAL_STORE_TIME, count, decide::namespace, ledger_id::LedgerId, shared::LedgerContext,
    },
    limit::scopes::LimitRules,
};

/// The longest time from the write of a grant to the write of its Job, without the time for which the apiserver waits for
/// other webhooks. Of it, [`ANSWER_WITHIN`] is ours for each ledger, and the rest is the apiserver's: for its own pauses, and for a
/// quota, which it checks within 10 s (`k8s.io/apiserver/pkg/admission/plugin/resourcequota/controller.go`).
pub const STORED_WITHIN: Duration = Duration::from_secs(20);
/// A grant whose write began longer ago is not answered, but revoked.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// The timeout of our own entries. The apiserver may wait for another one of them.
const OWN_TIMEOUT: Duration = Duration::from_secs(10);

impl LedgerContext {
    /// The attempts whose Job should have been stored long ago, by `request.uid`, and how long it still can be.
    pub(crate) fn unstored(
        &self,
        id: &LedgerId,
        policies: &PolicySet,
        contents: &LedgerContents,
    ) -> BTreeMap<String, Duration> {
        let now = self.known_ledgers.now();
        let ages = self.known_ledgers.attempt_ages(id.name()).older(USUAL_STORE_TIME, now);
        if ages.is_empty() {
            return BTreeMap::new();
        }
        let others = self.other_webhooks.longest_wait(now);
        let known_namespace = |name: &str| self.policies.known_namespace(name);
        let rules = LimitRules { policies, namespaces: &known_namespace };
        // The revision by which an attempt was granted, if the apiserver asked once about it. A policy that is gone may have had
        // an entry then, and the ledger of the cluster does not know the policies of namespaces.
        let of_one_entry = |own: &str| {
            id.namespace()?;
            let entries =
                policies.of_namespace(own).filter(|policy| policy.enforced() && policy.has_limits());
            (entries.count() < 2).then(|| count::policy_revision(rules, id, own))
        };
        let mut revisions: HashMap<&str, Option<String>> = HashMap::new();
        let mut left = BTreeMap::new();
        for (name, request, granted) in contents.attempts() {
            let Some(age) = ages.get(request) else { continue };
            let revision = revisions.entry(namespace(name)).or_insert_with_key(|own| of_one_entry(own));
            let own = if revision.as_ref() == Some(&granted.revision) { Duration::ZERO } else { OWN_TIMEOUT };
            let expiry = STORED_WITHIN + others.max(own);
            left.insert(request.to_owned(), expiry.saturating_sub(*age));
        }
        left
    }
}
