//! Tries the entries of each policy alone, by a server-side dry run, before they are written beside those of others: the
//! apiserver rejects a configuration as a whole, and so one policy could keep all others from being enforced.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, pending},
    stream::FuturesUnordered,
};
use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    process::jitter::Backoff,
};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use tokio::time::{Instant, timeout};

use crate::{
    enforce::{
        check_queue::CheckQueue,
        configurations::with_marks,
        webhook_entries::{EntryPair, digest},
    },
    model::entry_state::EntryFailure,
};

/// Dry runs at a time.
const CONCURRENT: usize = 8;
/// First and longest pause before rejected entries are tried again: another version of the apiserver may accept them.
const RETRY_REJECTED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The same after a call that failed for another reason.
const RETRY_FAILED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Longest message of the apiserver that a condition quotes, in bytes. It may quote a whole expression.
const MESSAGE_MAX: usize = 1024;

/// What the apiserver says about the entries of each policy, by uid.
pub(crate) struct EntryChecks {
    api: Api<ValidatingWebhookConfiguration>,
    verdicts: HashMap<String, EntryVerdict>,
    waiting: CheckQueue,
    running: FuturesUnordered<BoxFuture<'static, FinishedCheck>>,
    /// Uids and generations of the policies whose checks run.
    in_flight: HashSet<(String, i64)>,
}

/// The verdict about one generation of a policy.
struct EntryVerdict {
    generation: i64,
    state: CheckState,
}

enum CheckState {
    /// Waiting or running.
    Pending,
    /// `again`: they are tried once more, since what holds them was rejected.
    Accepted {
        again: bool,
    },
    Failed {
        failure: EntryFailure,
        rejected: bool,
        retry_at: Instant,
        backoff: Box<Backoff>,
    },
}

struct FinishedCheck {
    uid: String,
    generation: i64,
    /// Whether the apiserver would store the entries as they are.
    result: Result<bool, ApiError>,
}

impl EntryChecks {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            api: Api::all(client),
            verdicts: HashMap::new(),
            waiting: CheckQueue::default(),
            running: FuturesUnordered::new(),
            in_flight: HashSet::new(),
        }
    }

    /// Starts the checks that are due, and forgets all policies but these. Entries that the apiserver has stored
    /// (`is_stored`) are not tried again.
    pub(crate) fn start(&mut self, pairs: &[EntryPair], is_stored: impl Fn(&EntryPair) -> bool) {
        let known: HashSet<&str> = pairs.iter().map(EntryPair::uid).collect();
        self.verdicts.retain(|uid, _| known.contains(uid.as_str()));
        let mut due = Vec::new();
        for pair in pairs {
            let (uid, generation) = (pair.uid(), pair.policy.generation);
            let verdict = self.verdicts.get(uid).filter(|verdict| verdict.generation == generation);
            let is_due = match verdict.map(|verdict| &verdict.state) {
                Some(CheckState::Accepted { again }) => *again,
                Some(CheckState::Failed { retry_at, .. }) => *retry_at <= Instant::now(),
                Some(CheckState::Pending) => true,
                None => {
                    let stored = is_stored(pair);
                    let state =
                        if stored { CheckState::Accepted { again: false } } else { CheckState::Pending };
                    self.verdicts.insert(uid.to_owned(), EntryVerdict { generation, state });
                    !stored
                }
            };
            if is_due && !self.in_flight.contains(&(uid.to_owned(), generation)) {
                due.push(pair.clone());
            }
        }
        self.waiting.update(due);
    }

    /// Lets the accepted entries of these policies be tried again: another version of the apiserver may reject what one has
    /// accepted. Until it is known, they count as accepted.
    pub(crate) fn try_again<'a>(&mut self, uids: impl Iterator<Item = &'a str>) {
        for uid in uids {
            if let Some(EntryVerdict { state: CheckState::Accepted { again }, .. }) =
                self.verdicts.get_mut(uid)
            {
                *again = true;
            }
        }
    }

    /// What is known about the entries of a policy; None while they are checked for the first time.
    pub(crate) fn verdict(&self, pair: &EntryPair) -> Option<Result<(), &EntryFailure>> {
        let verdict = self.verdicts.get(pair.uid());
        match &verdict.filter(|verdict| verdict.generation == pair.policy.generation)?.state {
            CheckState::Pending => None,
            CheckState::Accepted { .. } => Some(Ok(())),
            CheckState::Failed { failure, .. } => Some(Err(failure)),
        }
    }

    /// Runs until a check has finished; for ever if there is none.
    pub(crate) async fn next(&mut self) {
        self.fill();
        match self.running.next().await {
            Some(finished) => self.record(finished),
            None => pending().await,
        }
    }

    /// Runs until all checks have finished, or none does within `patience`, or for `at_most` this long.
    pub(crate) async fn finish(&mut self, patience: Duration, at_most: Duration) {
        let end = Instant::now() + at_most;
        self.fill();
        while !self.running.is_empty() && Instant::now() < end {
            let Ok(Some(finished)) = timeout(patience, self.running.next()).await else { return };
            self.record(finished);
            self.fill();
        }
    }

    fn fill(&mut self) {
        while self.running.len() < CONCURRENT {
            let Some(pair) = self.waiting.pop() else { return };
            self.in_flight.insert((pair.uid().to_owned(), pair.policy.generation));
            self.running.push(dry_run(self.api.clone(), &pair));
        }
    }

    fn record(&mut self, finished: FinishedCheck) {
        let FinishedCheck { uid, generation, result } = finished;
        let verdict = self.verdicts.get_mut(&uid).filter(|verdict| verdict.generation == generation);
        self.in_flight.remove(&(uid.clone(), generation));
        // The policy has changed, or is gone.
        let Some(verdict) = verdict else { return };
        let (now_rejected, text) = match result {
            Ok(true) => {
                verdict.state = CheckState::Accepted { again: false };
                return;
            }
            // This says nothing about entries that were accepted before. If they still stand in the way, they are tried again.
            Err(error) if matches!(verdict.state, CheckState::Accepted { .. }) && !error.is_rejected() => {
                verdict.state = CheckState::Accepted { again: false };
                return;
            }
            // Written beside others, they would differ from what is wanted, and be written again and again.
            Ok(false) => (true, "it would store something else than was sent".to_owned()),
            Err(error) => (error.is_rejected(), shortened(error.to_string())),
        };
        let failure = if now_rejected { EntryFailure::rejected(&text) } else { EntryFailure::missing(&text) };
        let mut backoff = match std::mem::replace(&mut verdict.state, CheckState::Pending) {
            CheckState::Failed { backoff, rejected, .. } if rejected == now_rejected => backoff,
            _ => {
                tracing::warn!(uid, "{}; retrying", failure.message);
                let (first, longest) = if now_rejected { RETRY_REJECTED } else { RETRY_FAILED };
                Box::new(Backoff::new(first, longest))
            }
        };
        let retry_at = Instant::now() + backoff.next_pause();
        verdict.state = CheckState::Failed { failure, rejected: now_rejected, retry_at, backoff };
    }
}

fn dry_run(api: Api<ValidatingWebhookConfiguration>, pair: &EntryPair) -> BoxFuture<'static, FinishedCheck> {
    let (uid, generation) = (pair.uid().to_owned(), pair.policy.generation);
    let what = format!("check the webhook entries of {}", pair.policy.reference);
    // A fixed name, so that the apiserver's message stays the same. No object of this name ever exists.
    let name = format!("{}-check", keys::LIMITS_CONFIGURATION);
    let metadata = with_marks(ObjectMeta { name: Some(name), ..ObjectMeta::default() });
    let (webhooks, digests) = (Some(pair.entries.to_vec()), pair.digests);
    let configuration = ValidatingWebhookConfiguration { metadata, webhooks };
    async move {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let result = call(&what, api.create(&params, &configuration)).await;
        let result = result.map(|stored| stored.webhooks.iter().flatten().map(digest).eq(digests));
        FinishedCheck { uid, generation, result }
    }
    .boxed()
}

/// The beginning, which names the field, and the end, which says what is wrong.
fn shortened(text: String) -> String {
    if text.len() <= MESSAGE_MAX {
        return text;
    }
    let half = MESSAGE_MAX / 2;
    let (mut head, mut tail) = (half, text.len() - half);
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} … {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use http::Method;
    use job_handler_shared::{
        policy::set::PolicySet,
        testing::{apiserver::Apiserver, policies::job_policy},
    };
    use k8s_openapi::api::admissionregistration::v1::WebhookClientConfig;
    use serde_json::{Value, json};

    use super::*;
    use crate::enforce::webhook_entries::build;

    const LONG: Duration = Duration::from_secs(60);
    const RESOURCE: &str = "validatingwebhookconfigurations";

    fn pair(name: &str, generation: i64) -> EntryPair {
        limited("ci", name, generation)
    }

    fn limited(namespace: &str, name: &str, generation: i64) -> EntryPair {
        let metadata = json!({"name": name, "namespace": namespace, "uid": name, "generation": generation});
        let policy = job_policy(metadata, json!({"limits": [{"name": "l", "maxActiveJobs": 1}]}));
        build(&PolicySet::new([policy]), &WebhookClientConfig::default(), "ours").remove(0)
    }

    /// An apiserver that rejects the entries of policy `bad` while the switch is on.
    fn apiserver() -> (Apiserver, Arc<AtomicBool>) {
        let (apiserver, strict) = (Apiserver::default(), Arc::new(AtomicBool::new(true)));
        let switch = strict.clone();
        apiserver.validate(RESOURCE, move |configuration: &Value| {
            let is_bad = configuration["webhooks"].to_string().contains("\"bad.ci.");
            (is_bad && switch.load(Ordering::SeqCst)).then(|| "webhooks[0].name: no".to_owned())
        });
        (apiserver, strict)
    }

    fn rejected(checks: &EntryChecks, pair: &EntryPair) -> EntryFailure {
        checks.verdict(pair).expect("a verdict").expect_err("rejected").clone()
    }

    #[tokio::test(start_paused = true)]
    async fn each_policy_is_tried_alone_and_a_rejected_one_again_later() {
        let (apiserver, strict) = apiserver();
        let mut checks = EntryChecks::new(apiserver.client());
        let pairs = [pair("good", 1), pair("bad", 1)];
        checks.start(&pairs, |_| false);
        assert!(checks.verdict(&pairs[0]).is_none());
        checks.finish(LONG, LONG).await;
        assert_eq!(checks.verdict(&pairs[0]), Some(Ok(())));
        let failure = rejected(&checks, &pairs[1]);
        assert_eq!(failure.reason, "EntryRejected");
        assert!(failure.message.contains("of JobPolicy ci/bad: webhooks[0].name: no"), "{}", failure.message);
        assert!(apiserver.all(RESOURCE).is_empty(), "nothing is stored");
        assert_eq!(apiserver.calls().len(), 2);

        checks.start(&pairs, |_| false);
        checks.finish(LONG, LONG).await;
        assert_eq!(apiserver.calls().len(), 2, "neither is tried again at once");
        strict.store(false, Ordering::SeqCst);
        tokio::time::advance(Duration::from_secs(30)).await;
        checks.start(&pairs, |_| false);
        assert_eq!(rejected(&checks, &pairs[1]), failure, "until it is known better");
        checks.finish(LONG, LONG).await;
        assert_eq!(checks.verdict(&pairs[1]), Some(Ok(())));
        assert_eq!(apiserver.calls().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_of_a_rejected_policy_grow_and_a_new_generation_is_tried_at_once() {
        let (apiserver, _) = apiserver();
        let mut checks = EntryChecks::new(apiserver.client());
        let old = [pair("bad", 1)];
        for _ in 0..60 {
            checks.start(&old, |_| false);
            checks.finish(LONG, LONG).await;
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        let tried = apiserver.calls().len();
        assert!((3..12).contains(&tried), "{tried} times in 10 minutes");
        let new = [pair("bad", 2)];
        checks.start(&new, |_| false);
        assert!(checks.verdict(&new[0]).is_none(), "nothing is known about the new generation");
        checks.finish(LONG, LONG).await;
        assert_eq!(apiserver.calls().len(), tried + 1);
        checks.start(&[], |_| false);
        assert!(checks.verdict(&new[0]).is_none(), "deleted");
    }

    #[tokio::test(start_paused = true)]
    async fn stored_entries_are_not_tried_and_a_failed_call_is_not_blamed_on_the_policy() {
        let (apiserver, _) = apiserver();
        let mut checks = EntryChecks::new(apiserver.client());
        let pairs = [pair("good", 1)];
        checks.start(&pairs, |_| true);
        checks.finish(LONG, LONG).await;
        assert_eq!((checks.verdict(&pairs[0]), apiserver.calls().len()), (Some(Ok(())), 0));
        let pairs = [pair("good", 2)];
        apiserver.refuse_once(Method::POST, RESOURCE, 503);
        checks.start(&pairs, |_| false);
        checks.next().await;
        let failure = rejected(&checks, &pairs[0]);
        assert_eq!(failure.reason, "EntryMissing");
        tokio::time::advance(Duration::from_secs(5)).await;
        checks.start(&pairs, |_| false);
        checks.next().await;
        assert_eq!(checks.verdict(&pairs[0]), Some(Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn policies_that_keep_changing_do_not_keep_another_tenant_waiting() {
        let apiserver = Apiserver::default();
        let client = apiserver.slow_client(|_, _| Duration::from_secs(1));
        let mut checks = EntryChecks::new(client);
        let own = limited("victim", "own", 1);
        // A hundred older policies change in each round, and each round ends before more than a few checks do.
        for generation in 1..=10 {
            let mut pairs: Vec<_> =
                (0..100).map(|n| limited("hostile", &format!("p{n}"), generation)).collect();
            pairs.push(own.clone());
            checks.start(&pairs, |_| false);
            for _ in 0..4 {
                checks.next().await;
            }
            if checks.verdict(&own).is_some() {
                return;
            }
        }
        panic!("never checked");
    }

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        let text = format!("webhooks[0]: Invalid value: \"{}\": too long", "é".repeat(2000));
        let short = shortened(text);
        assert!(short.len() <= MESSAGE_MAX + 5, "{}", short.len());
        assert!(short.starts_with("webhooks[0]") && short.ends_with(": too long"), "{short}");
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
