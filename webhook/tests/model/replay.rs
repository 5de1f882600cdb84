//! Leads the program's actors through the counterexamples of protocols with a rule removed.
//!
//! A trace of the model orders requests, reads of the ledger, watch events, writes and stored Jobs. Each of its replicas is
//! a [`LedgerActor`] here, over an in-memory apiserver. Before it runs, it gets the ledger that the trace's replica had
//! read and the Jobs that it had observed. It may do more than the trace, such as a fresh read, but it must not let too
//! many Jobs become active.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    ledger::crd::AttemptKind,
    policy::{reference::Labels, set::PolicySet},
    process::telemetry::Metrics,
    testing::apiserver::LostWrite,
};
use job_handler_webhook::{
    cache::{consistent_list::read_job, jobs::JobCache, policies::Policies, reflector::WatchHandler},
    ledger::{
        actor::LedgerActor,
        attempt_age::Clock,
        client::LedgerClient,
        known_ledgers::{KnownLedger, KnownLedgers, LedgerWatchHandler},
        ledger_id::LedgerId,
        messages::{ActorMessage, DecisionRequest},
        other_webhooks::OtherWebhooks,
        shared::{LedgerContext, ReadRateLimiter},
    },
    limit::{Attempt, EarlierSlots, Verdict},
    metrics::WebhookMetrics,
};
use serde_json::json;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    apiserver::{LimitsApiserver, empty, eventually},
    cluster::{
        ClientRequest, ModelCluster, ModelJobState, ModelProtocol, ModelView, Phase, RequestStage, request,
    },
    common::policy,
    steps::{ModelStep, WriteAnswer},
};

const LEDGER: &str = "ci";
/// The longest time for anything here.
const PATIENCE: Duration = Duration::from_secs(30);

struct ReplayedReplica {
    shared: Arc<LedgerContext>,
    clock: Clock,
    delivered: u64,
    inbox: mpsc::Sender<ActorMessage>,
    task: JoinHandle<()>,
    expire: bool,
}

impl Drop for ReplayedReplica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request of the trace.
struct TracedRequest {
    name: &'static str,
    one: ClientRequest,
    /// For a change, the resourceVersion of the stored Job.
    from: Option<u64>,
    waiting: Option<DecisionRequest>,
    answer: Option<oneshot::Receiver<Verdict>>,
    granted: bool,
}

struct Replay<'a> {
    protocol: &'a ModelProtocol,
    apiserver: Arc<LimitsApiserver>,
    replicas: Vec<ReplayedReplica>,
    asked: BTreeMap<usize, TracedRequest>,
    /// The apiserver's resourceVersion after each write of the trace.
    versions: Vec<u64>,
}

/// Leads actors through the trace. Returns how many requests they granted.
pub fn replay(protocol: &ModelProtocol, trace: Vec<(ModelCluster, Option<ModelStep>)>) -> usize {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut replay = Replay::new(protocol, &trace[0].0);
        for n in 0..trace.len() {
            let (before, Some(step)) = &trace[n] else { break };
            let after = &trace[n + 1].0;
            replay.begin_early_lists(&trace[n..]).await;
            replay.step(before, after, step).await;
            let active = replay.apiserver.active();
            assert!(active <= protocol.max, "{active} active after step {n}: {step:?}");
            replay.versions.resize(after.history.len(), replay.apiserver.version());
        }
        // Granted requests may still be stored.
        let rest: Vec<usize> = replay.asked.keys().copied().collect();
        for n in rest {
            replay.store_job(n).await;
        }
        let active = replay.apiserver.active();
        assert!(active <= protocol.max, "{active} active in the end");
        replay.asked.values().filter(|asked| asked.granted).count()
    })
}

impl<'a> Replay<'a> {
    fn new(protocol: &'a ModelProtocol, first: &ModelCluster) -> Self {
        let apiserver = Arc::new(LimitsApiserver::default().with_ledger(LEDGER, empty()));
        let mut versions = Vec::new();
        for (name, stored) in &first.history {
            let stored = stored.as_ref().unwrap();
            assert!(apiserver.store(&key(name), &stored.uid));
            apiserver.change_job(&key(name), |job| {
                job["spec"]["suspend"] = json!(stored.state == ModelJobState::Suspended);
            });
            versions.push(apiserver.version());
        }
        let replicas =
            (0..first.replicas.len()).map(|n| ReplayedReplica::new(protocol, n, &apiserver)).collect();
        Self { protocol, apiserver, replicas, asked: BTreeMap::new(), versions }
    }

    async fn step(&mut self, before: &ModelCluster, after: &ModelCluster, step: &ModelStep) {
        match step {
            ModelStep::Ask { client, .. } => {
                let (n, one) = after.requests.iter().find(|(n, _)| !before.requests.contains_key(n)).unwrap();
                self.ask(*n, self.protocol.clients[*client].name, one);
            }
            ModelStep::GiveUp { request } => self.asked.get_mut(request).unwrap().answer = None,
            ModelStep::ReadLedger { replica } => self.replicas[*replica].read(&self.apiserver),
            ModelStep::ReadJobs { replica, view, clocks_run_out, .. } => {
                let until = view.checked_sub(1).map_or(0, |last| self.versions[last]);
                let replica = &mut self.replicas[*replica];
                if self.protocol.view == ModelView::Cache {
                    replica.deliver_events(&self.apiserver, until);
                }
                if *clocks_run_out {
                    replica.run_out(before);
                }
            }
            ModelStep::Write { replica, answer } => {
                self.apiserver.lose_next(match answer {
                    WriteAnswer::Known => None,
                    WriteAnswer::LostAfter => Some(LostWrite::Done),
                    WriteAnswer::LostBefore => Some(LostWrite::Undone),
                    WriteAnswer::Late => Some(LostWrite::Late),
                });
                self.write(before, *replica).await;
                let lost = self.apiserver.lose_next(None);
                assert!(lost.is_none(), "it wrote nothing whose answer could have been lost");
            }
            ModelStep::Crash { replica } => {
                self.replicas[*replica] = ReplayedReplica::new(self.protocol, *replica, &self.apiserver);
            }
            ModelStep::StoreJob { request } => self.store_job(*request).await,
            ModelStep::Finish { name } => self.change(name, |job| {
                job["status"] = json!({"conditions": [{"type": "Complete", "status": "True"}]});
            }),
            ModelStep::Suspend { name } | ModelStep::Touch { name } => {
                self.change(name, |job| job["spec"]["suspend"] = json!(true));
            }
            ModelStep::Delete { name } => {
                if self.stored(name) {
                    self.apiserver.delete_job(&key(name));
                }
            }
            // No client of these models orphans pods.
            ModelStep::PodsEnd { .. } | ModelStep::Look { .. } | ModelStep::Free => {}
            ModelStep::Answer { .. } | ModelStep::Deny { .. } => {}
            ModelStep::Arrive => self.apiserver.arrive(),
        }
    }

    fn ask(&mut self, n: usize, name: &'static str, one: &ClientRequest) {
        let from = matches!(one.kind, AttemptKind::Unsuspend { .. }).then(|| {
            let stored = self.apiserver.job(&key(name)).unwrap();
            stored["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
        });
        let job = JobSnapshot {
            namespace: LEDGER.into(),
            name: name.into(),
            uid: one.job_uid.clone(),
            ..JobSnapshot::default()
        };
        let arrived = Instant::now();
        let attempt = Attempt {
            uid: request(n),
            job,
            from: from.map(|from: u64| from.to_string()),
            earlier_slots: EarlierSlots::Nothing,
            dry_run: false,
            probe: false,
            answer_by: arrived + PATIENCE,
        };
        let (reply, answer) = oneshot::channel();
        let waiting = Some(DecisionRequest { attempt, arrived, reply });
        let asked =
            TracedRequest { name, one: one.clone(), from, waiting, answer: Some(answer), granted: false };
        self.asked.insert(n, asked);
    }

    /// Runs a replica: it decides about the requests that had arrived when its round began.
    async fn write(&mut self, before: &ModelCluster, n: usize) {
        let Phase::JobsRead { round, .. } = &before.replicas[n].phase else {
            panic!("it did not read the Jobs")
        };
        self.apiserver.hold_reads(false);
        let replica = &mut self.replicas[n];
        let reads = |apiserver: &LimitsApiserver| apiserver.job_lists() + apiserver.job_gets();
        let reads_before = reads(&self.apiserver);
        if replica.expire {
            replica.inbox.send(ActorMessage::RemoveExpired).await.unwrap();
            replica.expire = false;
            eventually("a read", || reads(&self.apiserver) > reads_before).await;
        }
        if round.asked.is_empty() {
            replica.inbox.send(ActorMessage::RemoveResolved).await.unwrap();
            replica.is_done().await;
        }
        for n in &round.asked {
            if let Some(waiting) = self.asked.get_mut(n).unwrap().waiting.take() {
                replica.inbox.send(ActorMessage::Decide(Box::new(waiting))).await.unwrap();
            }
        }
        for n in &round.asked {
            let asked = self.asked.get_mut(n).unwrap();
            if let Some(answer) = asked.answer.take() {
                let verdict = tokio::time::timeout(PATIENCE, answer).await.expect("an answer").unwrap();
                assert!(matches!(verdict, Verdict::Granted | Verdict::Refused(_)), "{verdict:?}");
                asked.granted = verdict == Verdict::Granted;
            }
        }
    }

    async fn store_job(&mut self, n: usize) {
        let asked = self.asked.get_mut(&n).unwrap();
        if !std::mem::take(&mut asked.granted) {
            return;
        }
        let key = key(asked.name);
        match asked.from {
            None => {
                self.apiserver.store(&key, &asked.one.job_uid);
            }
            Some(from) => {
                let stored = self.apiserver.job(&key);
                let unchanged =
                    stored.is_some_and(|job| job["metadata"]["resourceVersion"] == json!(from.to_string()));
                if unchanged {
                    self.apiserver.change_job(&key, |job| job["spec"]["suspend"] = json!(false));
                }
            }
        }
        asked.granted = true;
        asked.from = Some(u64::MAX);
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
        if self.stored(name) {
            self.apiserver.change_job(&key(name), change);
        }
    }

    fn stored(&self, name: &str) -> bool {
        self.apiserver.job(&key(name)).is_some()
    }

    /// Begins a LIST now that the trace joins later, when other writes have been stored.
    async fn begin_early_lists(&mut self, rest: &[(ModelCluster, Option<ModelStep>)]) {
        let now = rest[0].0.history.len();
        let (ModelView::List, Some((next, _))) = (self.protocol.view, rest.get(1)) else { return };
        if next.history.len() == now {
            return;
        }
        let joined = rest.iter().find_map(|(cluster, step)| match step {
            Some(ModelStep::ReadJobs { replica, view, .. })
                if *view == now && cluster.history.len() > now =>
            {
                Some(*replica)
            }
            _ => None,
        });
        if let Some(replica) = joined {
            let lists = self.apiserver.job_lists();
            self.apiserver.hold_reads(true);
            self.replicas[replica].inbox.send(ActorMessage::RemoveExpired).await.unwrap();
            eventually("the LIST", || self.apiserver.job_lists() > lists).await;
        }
    }
}

impl ReplayedReplica {
    fn new(protocol: &ModelProtocol, n: usize, apiserver: &Arc<LimitsApiserver>) -> Self {
        let limits = json!({"limits": [{"name": "few", "maxActiveJobs": protocol.max}]});
        // Another revision is another policy.
        let policies = PolicySet::new([policy(protocol.revisions[n], limits)]);
        let clock = Clock::default();
        let shared = Arc::new(LedgerContext {
            client: apiserver.client(),
            ledger_client: LedgerClient::new(apiserver.client(), "system"),
            known_ledgers: KnownLedgers::new(clock.clone()),
            other_webhooks: OtherWebhooks::default(),
            cache: JobCache::default(),
            reads: ReadRateLimiter::default(),
            policies: Policies::fixed(policies, [(LEDGER.to_owned(), Labels::new())]),
            namespace: "system".to_owned(),
            metrics: WebhookMetrics::new(&Metrics::default()),
        });
        if protocol.view == ModelView::Cache {
            shared.cache.begin_list();
            shared.cache.end_list(0);
        }
        let (inbox, messages) = mpsc::channel(100);
        let actor = LedgerActor::new(LedgerId::Namespace(LEDGER.into()), messages, shared.clone());
        Self { shared, clock, delivered: 0, inbox, task: tokio::spawn(actor.run()), expire: false }
    }

    /// Records the ledger as it is stored now.
    fn read(&self, apiserver: &LimitsApiserver) {
        let ledger = apiserver.ledger(LEDGER);
        let known = KnownLedger::parse(serde_json::from_value(ledger).unwrap()).unwrap();
        self.shared.known_ledgers.record(LEDGER, &known);
    }

    /// Expires the attempts whose requests have ended. The ages of the others restart, since no request takes that long.
    fn run_out(&mut self, cluster: &ModelCluster) {
        let memory = &self.shared.known_ledgers;
        let known = memory.latest(LEDGER).unwrap();
        let mut over = KnownLedger::clone(&known);
        for attempts in over.contents.pending.values_mut() {
            attempts.retain(|name, _| {
                cluster.requests.iter().any(|(n, one)| request(*n) == *name && one.at == RequestStage::Ended)
            });
        }
        let mut watcher =
            LedgerWatchHandler { known_ledgers: memory, policies: self.shared.policies.clone() };
        watcher.delete(known.ledger.clone());
        over.version -= 1;
        memory.record(LEDGER, &Arc::new(over));
        self.clock.advance(Duration::from_secs(61));
        memory.record(LEDGER, &known);
        self.expire = true;
    }

    /// Delivers the watch events of Jobs up to a resourceVersion.
    fn deliver_events(&mut self, apiserver: &LimitsApiserver, until: u64) {
        for (version, event) in apiserver.events("jobs", self.delivered, until) {
            let policies = self.shared.policies.current().clone();
            let job = read_job(event["object"].to_string().as_bytes(), policies.label_keys()).unwrap();
            match event["type"].as_str() {
                Some("DELETED") => self.shared.cache.delete(&job, version),
                _ => self.shared.cache.apply(Arc::new(job), version),
            }
            self.delivered = version;
        }
    }

    /// Waits until it has handled every message.
    async fn is_done(&self) {
        let (reply, answer) = oneshot::channel();
        let job = JobSnapshot { namespace: LEDGER.into(), name: "probe".into(), ..JobSnapshot::default() };
        let arrived = Instant::now();
        let attempt = Attempt {
            uid: "probe".into(),
            job,
            from: None,
            earlier_slots: EarlierSlots::Nothing,
            dry_run: true,
            probe: false,
            answer_by: arrived + PATIENCE,
        };
        self.inbox
            .send(ActorMessage::Decide(Box::new(DecisionRequest { attempt, arrived, reply })))
            .await
            .unwrap();
        tokio::time::timeout(PATIENCE, answer).await.expect("an answer").unwrap();
    }
}

fn key(name: &str) -> String {
    format!("{LEDGER}/{name}")
}
