//! `/mutate`: stamps Jobs.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use job_handler_shared::policy::reference::Labels;

use crate::{
    admission::{
        endpoint::answer_review,
        response::{AdmissionResponse, HttpReply},
        review::{AdmissionReview, ReviewedObject},
        state::WebhookState,
        warn,
    },
    metrics::{Endpoint, ReviewVerdict},
    stamp::{
        decide::{self, StampContext},
        patch,
    },
};

/// Answers one review. Never denies: a Job that cannot be stamped is created as it is, and the sink repairs it.
pub async fn mutate(body: impl AsRef<[u8]>, state: &WebhookState) -> HttpReply {
    answer_review(Endpoint::Mutate, body, state, async |review| answer(&review, state).await).await
}

async fn answer(review: &AdmissionReview, state: &WebhookState) -> (HttpReply, ReviewVerdict) {
    if let ReviewedObject::Unsupported(why) | ReviewedObject::Unreadable(why) = &review.object {
        let response = AdmissionResponse::warned(format!("job-handler: not stamped: {why}"));
        return (response.reply(&review.uid), ReviewVerdict::Bad);
    }
    if state.is_excluded(&review.namespace) {
        return (AdmissionResponse::default().reply(&review.uid), ReviewVerdict::Allowed);
    }
    if !state.policies.synced() {
        let why = "the policies are not loaded yet: this Job is stamped by the sink later";
        return (HttpReply::text(503, why), ReviewVerdict::Unavailable);
    }
    let labels = namespace_labels(state, &review.namespace).await;
    let response = stamp(review, &labels, state);
    let verdict = if response.patch.is_empty() { ReviewVerdict::Allowed } else { ReviewVerdict::Patched };
    (response.reply(&review.uid), verdict)
}

fn stamp(review: &AdmissionReview, namespace_labels: &Labels, state: &WebhookState) -> AdmissionResponse {
    let policies = state.policies.current();
    let context = StampContext { policies: &policies, namespace_labels, now: Timestamp::now() };
    let (job, decision) = match &review.object {
        ReviewedObject::Create(job) => (job, decide::create(job, context)),
        ReviewedObject::Update { new, old } => (new, decide::update(new, old, context)),
        ReviewedObject::Unsupported(_) | ReviewedObject::Unreadable(_) => {
            return AdmissionResponse::default();
        }
    };
    let patch = patch::patch(job, &decision);
    let would_stamp = warn::stamp_warnings(review, job, &decision, context);
    let warnings = decision.warnings.into_iter().chain(would_stamp).collect();
    AdmissionResponse { patch, warnings, ..AdmissionResponse::default() }
}

/// Labels of a namespace. For a namespace that the watch has not reported yet, the label that the apiserver sets on each.
async fn namespace_labels(state: &WebhookState, namespace: &str) -> Arc<Labels> {
    match state.policies.namespace(namespace).await {
        Some(labels) => labels,
        None => Arc::new(BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())])),
    }
}
