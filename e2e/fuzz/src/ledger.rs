//! A JobLedger as it may be stored: by another version, by a person, or filled by somebody who calls the webhook.
//!
//! Either it is rejected with a short reason, or a round decides by it: the ledger that the round writes is understood,
//! the limit holds, and the same requests get the same answers again. The scope of the limit is [`SCOPE`], and the policy
//! revision of the round [`REVISION`].

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, JobLedger, JobLedgerSpec, LedgerContents};
use job_handler_webhook::ledger::{
    decide::{HeldRequest, RoundInput, SlotAnswer, SlotRequest, decide},
    resolve::{ObservedJob, ViewSource},
};

const SCOPE: &str = "uid/few";
const MAX_ACTIVE: u32 = 2;
const REVISION: &str = "now";
/// Most characters of a reason. It is in the policy's status and in the message to each author.
const MAX_REASON: usize = 500;

/// Checks one input.
pub fn check(bytes: &[u8]) {
    let Ok(JobLedger { spec, .. }) = serde_json::from_slice(bytes) else { return };
    spec.streaks();
    let contents = match spec.contents() {
        Ok(contents) => contents,
        Err(error) => {
            let reason = error.to_string();
            assert!(reason.chars().count() <= MAX_REASON, "{reason}");
            return;
        }
    };
    assert_written_back(&spec, &contents);
    assert_rounds(&contents, &[]);
    // A Job of one of the attempts exists.
    for (name, _, granted) in contents.attempts().take(2) {
        let job = ObservedJob {
            name: name.to_owned(),
            uid: granted.job_uid.clone(),
            version: contents.observed_through.saturating_add(1),
            active: true,
            scopes: vec![SCOPE.to_owned()],
            since: granted.since,
        };
        assert_rounds(&contents, &[&job]);
    }
}

/// Checks that writing the contents changes nothing, also not in the fields of other writers.
fn assert_written_back(spec: &JobLedgerSpec, contents: &LedgerContents) {
    let mut written = spec.clone();
    written.set(contents);
    let mut fields = spec.fields.clone();
    if contents.held.is_empty() {
        fields.remove("held");
    }
    for field in ["format", "pending", "observedThrough", "refused", "held"] {
        if let Some(value) = written.fields.get(field) {
            fields.insert(field.to_owned(), value.clone());
        }
    }
    assert_eq!(written.fields, fields);
    let stored: JobLedgerSpec = serde_json::from_slice(&serde_json::to_vec(&written).unwrap()).unwrap();
    assert_eq!(stored.contents().as_ref(), Ok(contents));
}

fn assert_rounds(contents: &LedgerContents, jobs: &[&ObservedJob]) {
    let none = BTreeSet::new();
    let mut requests: Vec<SlotRequest> = (0..3).map(|n| request(&format!("ci/new-{n}"), n)).collect();
    // A name that the ledger has already.
    requests.extend(contents.pending.keys().next().map(|name| request(name, 3)));
    for view_source in [ViewSource::List, ViewSource::Cache(contents.observed_through)] {
        let input = RoundInput {
            contents,
            view_source,
            jobs,
            expired: &none,
            unstored: &BTreeMap::new(),
            revoked: &none,
            forgotten: &none,
            refusals_by: Some(ViewSource::List),
            revision: &|_| REVISION.to_owned(),
            now: Timestamp::UNIX_EPOCH,
        };
        let decision = decide(input, &requests).unwrap();
        assert_eq!(decision.answers.len(), requests.len());
        let (before, after) = (holders(contents, jobs), holders(&decision.contents, jobs));
        assert!(after.len() <= before.len().max(MAX_ACTIVE as usize), "{before:?} {after:?}");
        // The write was stored and its answer lost: the requests come again.
        let view_source = ViewSource::List;
        let again = decide(RoundInput { contents: &decision.contents, view_source, ..input }, &requests);
        for (first, second) in decision.answers.iter().zip(again.unwrap().answers) {
            assert!(*first != SlotAnswer::Granted || second == SlotAnswer::Granted, "{second:?}");
        }
    }
}

fn request(name: &str, n: usize) -> SlotRequest {
    SlotRequest {
        request: format!("fuzz-request-{n}"),
        name: name.to_owned(),
        job_uid: format!("fuzz-uid-{n}"),
        kind: AttemptKind::Create,
        scopes: vec![(SCOPE.to_owned(), MAX_ACTIVE)],
        held: HeldRequest::Nothing,
        dry_run: false,
        shared: true,
        in_backoff: false,
    }
}

/// The names that hold a slot. An attempt of another policy revision counts in every scope.
fn holders(contents: &LedgerContents, jobs: &[&ObservedJob]) -> BTreeSet<String> {
    let counts = contents
        .attempts()
        .filter(|(_, _, granted)| granted.revision != REVISION || granted.scopes.iter().any(|s| s == SCOPE));
    let jobs = jobs.iter().filter(|job| job.active).map(|job| job.name.as_str());
    counts.map(|(name, _, _)| name).chain(jobs).map(str::to_owned).collect()
}
