//! `/mutate`: stamps.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use jiff::Timestamp;
use job_handler_shared::policy::reference::Labels;

use crate::{
    admission::{
        response::{Answer, Reply},
        review::{self, Review, Subject},
        state::State,
        warn,
    },
    metrics::{Endpoint, Outcome},
    stamp::{
        decide::{self, StampContext},
        patch,
    },
};

/// Answers one review. Never denies: what cannot be stamped goes on as it is, and the sink mends it.
pub async fn mutate(bytes: &[u8], state: &State) -> Reply {
    let begun = Instant::now();
    let (reply, outcome) = answer(bytes, state).await;
    state.metrics.review(Endpoint::Mutate, outcome, begun.elapsed());
    reply
}

async fn answer(bytes: &[u8], state: &State) -> (Reply, Outcome) {
    let review = match review::parse(bytes) {
        Ok(review) => review,
        Err(error) => return (Reply::text(400, error.to_string()), Outcome::Bad),
    };
    if let Subject::NotOurs(why) | Subject::Unreadable(why) = &review.subject {
        let answer = Answer::warned(format!("job-handler: not stamped: {why}"));
        return (answer.reply(&review.uid), Outcome::Bad);
    }
    if state.is_excluded(&review.namespace) {
        return (Answer::default().reply(&review.uid), Outcome::Allowed);
    }
    if !state.policies.synced() {
        let why = "the policies are not loaded yet: this Job is stamped by the sink later";
        return (Reply::text(503, why), Outcome::Unavailable);
    }
    let labels = namespace_labels(state, &review.namespace).await;
    let answer = stamp(&review, &labels, state);
    let outcome = if answer.patch.is_empty() { Outcome::Allowed } else { Outcome::Patched };
    (answer.reply(&review.uid), outcome)
}

fn stamp(review: &Review, namespace_labels: &Labels, state: &State) -> Answer {
    let policies = state.policies.current();
    let context = StampContext { policies: &policies, namespace_labels, now: Timestamp::now() };
    let (job, decision) = match &review.subject {
        Subject::Create(job) => (job, decide::create(job, context)),
        Subject::Update { new, old } => (new, decide::update(new, old, context)),
        Subject::NotOurs(_) | Subject::Unreadable(_) => return Answer::default(),
    };
    let patch = patch::patch(job, &decision);
    let would = warn::stamping(review, job, &decision, context);
    let warnings = decision.warnings.into_iter().chain(would).collect();
    Answer { patch, warnings, ..Answer::default() }
}

/// Labels of a namespace; of one that nobody has told us of yet, the one that the apiserver puts on all of them.
async fn namespace_labels(state: &State, namespace: &str) -> Arc<Labels> {
    match state.policies.namespace(namespace).await {
        Some(labels) => labels,
        None => Arc::new(BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())])),
    }
}
