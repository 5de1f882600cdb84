//! Keeps the webhook entries of the policies in the ValidatingWebhookConfigurations `job-handler-limits*`, and restores
//! them when someone else changes them.
//!
//! One policy harms only itself: its entries are tried alone first (`entry_checks`), rejected ones are left out, and a
//! configuration that cannot be written concerns only the policies in it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, ready},
    stream::FuturesUnordered,
};
use job_handler_shared::{
    keys,
    kube::{
        error::{ApiError, call},
        watch as kube_watch,
    },
    names::limits_configuration,
    policy::set::PolicySet,
    process::{failure_log::FailureLog, jitter::jitter},
};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, WebhookClientConfig};
use kube::{
    Api, Client,
    runtime::watcher::{Config, Event, watcher},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    enforce::{
        configurations::Configurations,
        entry_checks::EntryChecks,
        placement::Placement,
        restored_entries::RestoredEntries,
        wanted_entries::{CorrectEntries, WantedEntries},
        webhook_client::client_config,
        webhook_entries::{EntryPair, build, has_entries},
        write_pace::{PERIOD, WritePace},
    },
    model::entry_state::{EntryFailure, EntryState},
    notify::recorder::Recorder,
    observe::store::Store,
};

/// A round without any change, in case a watch missed one.
pub(crate) const RESYNC: Duration = Duration::from_secs(5);
/// Least time between two rounds, and how long a round waits for the next check of new entries to finish.
const EVERY: Duration = Duration::from_millis(200);
/// How long a round goes on with checks that do finish. A write costs the apiserver as much as the checks of all entries
/// of that configuration, so thousands of new policies are better written in a few rounds.
const CHECKS: Duration = Duration::from_secs(5);
/// How long a policy stays not `Ready` after its entry was restored: the apiservers take our write up, and users see
/// that there was a gap.
const SETTLE: Duration = Duration::from_secs(3);

/// Why the entries cannot be compared.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("{0}")]
    NoClientConfig(String),
}

/// The configurations that differ and were not written in a round.
#[derive(Default)]
struct UnwrittenConfigurations {
    /// Why they could not be written. It may quote the entries of any tenant, and so only the log says it.
    failed: BTreeMap<usize, String>,
    /// They were written too often.
    postponed: BTreeSet<usize>,
}

impl UnwrittenConfigurations {
    /// What a condition says.
    fn message(&self, index: usize) -> String {
        let name = limits_configuration(index);
        if self.failed.contains_key(&index) {
            format!("ValidatingWebhookConfiguration {name} cannot be written; the sink's log says why")
        } else if self.postponed.contains(&index) {
            format!(
                "ValidatingWebhookConfiguration {name} changes often and is written once in {} s",
                PERIOD.as_secs()
            )
        } else {
            format!("ValidatingWebhookConfiguration {name} differs")
        }
    }
}

/// Writes the entries until it is dropped: on every change of a policy or of the webhook configurations, and every [`RESYNC`].
pub(crate) async fn run(
    client: Client,
    store: Store,
    own_namespace: Arc<str>,
    recorder: Recorder,
    state: watch::Sender<EntryState>,
) -> Infallible {
    let mut store_changes = store.changes();
    let mut client_changes = pin!(client_config_changes(&client));
    let mut writer = EntryWriter::new(client, own_namespace, recorder, state);
    loop {
        let policies = store.policies();
        let pause = writer.round(&policies).await;
        sleep(EVERY).await;
        let end = Instant::now() + pause;
        // The store also signals changes of Jobs: only another set of policies is a reason to compare.
        loop {
            tokio::select! {
                () = sleep_until(end) => break,
                () = writer.configurations.changed() => break,
                () = writer.checks.next() => break,
                Some(()) = writer.events.next() => {}
                Some(()) = client_changes.next() => break,
                Ok(()) = store_changes.changed() => {
                    if !Arc::ptr_eq(&policies, &store.policies()) {
                        break;
                    }
                }
            }
        }
    }
}

/// Yields an item for each change of the configuration from which address and caBundle are copied.
fn client_config_changes(client: &Client) -> impl Stream<Item = ()> + use<> {
    let config = Config::default().fields(&format!("metadata.name={}", keys::MUTATING_CONFIGURATION));
    let events = kube_watch::events(
        watcher(Api::<MutatingWebhookConfiguration>::all(client.clone()), config),
        "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    );
    events.filter_map(|event| ready(matches!(event, Event::Apply(_) | Event::Delete(_)).then_some(())))
}

struct EntryWriter {
    mutating: Api<MutatingWebhookConfiguration>,
    own_namespace: Arc<str>,
    recorder: Recorder,
    state: watch::Sender<EntryState>,
    configurations: Configurations,
    loaded: bool,
    checks: EntryChecks,
    placement: Placement,
    pace: WritePace,
    /// A configuration waits for its next write.
    is_postponed: bool,
    correct: CorrectEntries,
    restored: Option<RestoredEntries>,
    /// Events about restored entries. They are written between the rounds: one may take seconds, and no entry waits for it.
    events: FuturesUnordered<BoxFuture<'static, ()>>,
    failures: FailureLog,
}

impl EntryWriter {
    fn new(
        client: Client,
        own_namespace: Arc<str>,
        recorder: Recorder,
        state: watch::Sender<EntryState>,
    ) -> Self {
        Self {
            mutating: Api::all(client.clone()),
            own_namespace,
            recorder,
            state,
            configurations: Configurations::new(client.clone()),
            loaded: false,
            checks: EntryChecks::new(client),
            placement: Placement::default(),
            pace: WritePace::default(),
            is_postponed: false,
            correct: CorrectEntries::new(),
            restored: None,
            events: FuturesUnordered::new(),
            failures: FailureLog::default(),
        }
    }

    /// Compares and writes once, and publishes the state. Returns the pause until the next round.
    async fn round(&mut self, policies: &PolicySet) -> Duration {
        let (state, failed) = match self.write_all(policies).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let error = error.to_string();
                (EntryState { error: Some(error.clone()), ..EntryState::default() }, Some(error))
            }
        };
        self.publish(state);
        if let Some(failed) = &failed {
            if self.failures.is_due(failed) {
                tracing::warn!("cannot write the webhook entries: {failed}; retrying");
            }
        } else {
            self.failures.succeeded();
        }
        if failed.is_some() || self.is_postponed { jitter(Duration::from_secs(1)) } else { RESYNC }
    }

    fn publish(&self, new: EntryState) {
        self.state.send_if_modified(|state| {
            let changed = *state != new;
            *state = new;
            changed
        });
    }

    /// Returns the state, and why a configuration could not be written.
    async fn write_all(&mut self, policies: &PolicySet) -> Result<(EntryState, Option<String>), EntryError> {
        if self.loaded {
            self.configurations.read_next().await?;
        } else {
            self.configurations.load().await?;
            self.loaded = true;
        }
        let (pairs, client) = pairs(&self.mutating, policies, &self.own_namespace).await?;
        let stored = &self.configurations;
        self.checks.start(&pairs, |pair| stored.find(pair).is_some_and(|index| stored.has(index, pair)));
        // A check takes some milliseconds. One that takes longer delays only its own policy.
        self.checks.finish(EVERY, CHECKS).await;

        let mut failures: BTreeMap<String, EntryFailure> = BTreeMap::new();
        let (mut accepted, mut undecided) = (Vec::new(), Vec::new());
        for pair in pairs {
            let verdict = self.checks.verdict(&pair);
            if let Some(Err(failure)) = verdict {
                failures.insert(pair.uid().to_owned(), failure.clone());
            }
            match verdict {
                Some(Ok(())) => accepted.push(pair),
                Some(Err(failure)) if failure.is_rejected() => {}
                _ => undecided.push(pair),
            }
        }
        let stored = &self.configurations;
        let left_out = self.placement.place(&accepted, &undecided, |pair| stored.standing(pair));
        failures.extend(left_out.into_iter().map(|(uid, why)| (uid, EntryFailure::no_room(&why))));
        let undecided: HashSet<String> =
            undecided.iter().flat_map(EntryPair::names).map(|(name, _)| name.to_owned()).collect();
        let wanted = WantedEntries::new(&accepted, &self.placement, undecided, &client);
        let tampered = self.report_tampered(&wanted, &failures);
        let unwritten = self.write_dirty(&wanted, &tampered).await;
        self.is_postponed = !unwritten.postponed.is_empty();
        Ok(self.outcome(&wanted, failures, &unwritten))
    }

    /// Publishes the state without the entries that someone else changed, before they are written again: that may take its
    /// time. Returns their configurations.
    fn report_tampered(
        &mut self,
        wanted: &WantedEntries<'_>,
        failures: &BTreeMap<String, EntryFailure>,
    ) -> BTreeSet<usize> {
        self.restored = self.restored.take().filter(|restored| restored.at().elapsed() < SETTLE);
        let tampered = wanted.tampered(&self.correct, &self.configurations);
        let configurations: BTreeSet<usize> = tampered.iter().map(|entries| entries.configuration).collect();
        if tampered.is_empty() {
            return configurations;
        }
        let restored = RestoredEntries::new(tampered);
        self.events.push(restored.clone().publish(self.recorder.clone()).boxed());
        self.restored = Some(restored);
        let (state, _) = self.outcome(wanted, failures.clone(), &UnwrittenConfigurations::default());
        self.publish(state);
        configurations
    }

    /// Writes the configurations that have other entries than they should. Those that someone else changed (`tampered`) wait
    /// for no earlier writes.
    async fn write_dirty(
        &mut self,
        wanted: &WantedEntries<'_>,
        tampered: &BTreeSet<usize>,
    ) -> UnwrittenConfigurations {
        let mut unwritten = UnwrittenConfigurations::default();
        // An entry that moves is first added to its new configuration. The second pass removes it from the old one.
        for _ in 0..2 {
            for index in wanted.dirty(&self.configurations) {
                if let Some(why) = self.pace.rejection(index) {
                    unwritten.failed.insert(index, why.to_owned());
                    continue;
                }
                if self.pace.is_exhausted(index) && !tampered.contains(&index) {
                    unwritten.postponed.insert(index);
                    continue;
                }
                let kept = wanted.kept(index, &self.configurations);
                let entries = wanted.entries(index);
                let client_of = |name: &str| kept.contains(name).then(|| wanted.client_of(name));
                match self.configurations.write(index, entries, client_of).await {
                    Ok(()) => {
                        self.pace.written(index);
                        unwritten.failed.remove(&index);
                    }
                    Err(error) => {
                        let why = error.to_string();
                        if error.is_rejected() {
                            self.checks.try_again(wanted.uids(index));
                            self.pace.rejected(index, why.clone());
                        }
                        unwritten.failed.insert(index, why);
                    }
                }
            }
        }
        unwritten
    }

    /// The state as it is now, and what could not be written, as one text.
    fn outcome(
        &mut self,
        wanted: &WantedEntries<'_>,
        mut failures: BTreeMap<String, EntryFailure>,
        unwritten: &UnwrittenConfigurations,
    ) -> (EntryState, Option<String>) {
        let (mut written, mut missing) = (BTreeMap::new(), BTreeSet::new());
        self.correct.clear();
        for (index, pair) in wanted.pairs() {
            let uid = pair.uid().to_owned();
            if self.configurations.has(index, pair) {
                let entries = pair.names().map(|(name, digest)| (name.to_owned(), (index, digest)));
                self.correct.extend(entries);
                written.insert(uid, pair.policy.generation);
            } else {
                let why = unwritten.message(index);
                failures.insert(uid, EntryFailure::missing(&why));
                if !unwritten.postponed.contains(&index) && !unwritten.failed.contains_key(&index) {
                    missing.insert(why);
                }
            }
        }
        for (policy, failure) in self.restored.iter().flat_map(RestoredEntries::failures) {
            if written.remove(&policy.uid).is_some() {
                failures.insert(policy.uid.clone(), failure);
            }
        }
        missing.extend(unwritten.failed.values().cloned());
        let error = (!missing.is_empty()).then(|| missing.into_iter().collect::<Vec<_>>().join("; "));
        (EntryState { written, failures, error: None }, error)
    }
}

/// The entries of all policies with limits, and the client configuration of `/validate`.
async fn pairs(
    mutating: &Api<MutatingWebhookConfiguration>,
    policies: &PolicySet,
    own_namespace: &str,
) -> Result<(Vec<EntryPair>, WebhookClientConfig), EntryError> {
    if !policies.iter().any(|policy| has_entries(policy, own_namespace)) {
        return Ok((Vec::new(), WebhookClientConfig::default()));
    }
    let name = keys::MUTATING_CONFIGURATION;
    let what = format!("get mutatingwebhookconfiguration {name}");
    let found = call(&what, mutating.get_opt(name)).await?;
    let client = client_config(found.as_ref()).map_err(EntryError::NoClientConfig)?;
    Ok((build(policies, &client, own_namespace), client))
}

#[cfg(test)]
mod tests;
