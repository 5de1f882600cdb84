//! The ledger's protocol in every order of events, within bounds: few replicas, few creates, small limits.
//!
//! The decisions are the program's own: `ledger::decide` and `ledger::resolve`. The model adds the rest: etcd and its
//! history, watch caches that lag behind it, requests in progress, crashes between any two steps. Always: no more Jobs are
//! active than the limit allows, and once nothing is in progress, a round can empty the ledger. Removing any rule of the
//! protocol must yield a counterexample, which shows that the model can fail. The program's actors are then led through
//! that counterexample and must not fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../apiserver/mod.rs"]
mod apiserver;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod expiry;
mod replay;
mod steps;
mod two_ledgers;

use std::{
    fmt::Debug,
    hash::Hash,
    time::{Duration, Instant},
};

use cluster::{EventBudget, ModelClient, ModelCluster, ModelProtocol, ModelView, RemovedRules};
use expiry::ExpiryModel;
use stateright::{Checker, Model};
use two_ledgers::TwoLedgers;

const EXACT: &str = "never more active Jobs than the limit";
const QUIET: &str = "the ledger can be emptied once nothing is in progress";
const NO_PHANTOM: &str = "no attempt is left of a refused create";
const FULL: &str = "the limit is reached";

/// The longest time for one model.
const PATIENCE: Duration = Duration::from_secs(600);

impl Model for ModelProtocol {
    type State = ModelCluster;
    type Action = steps::ModelStep;

    fn init_states(&self) -> Vec<ModelCluster> {
        vec![ModelCluster::new(self)]
    }

    fn actions(&self, cluster: &ModelCluster, steps: &mut Vec<steps::ModelStep>) {
        cluster.steps(self, steps);
    }

    fn next_state(&self, cluster: &ModelCluster, step: steps::ModelStep) -> Option<ModelCluster> {
        cluster.after(self, step)
    }

    fn properties(&self) -> Vec<stateright::Property<Self>> {
        vec![
            stateright::Property::always(EXACT, |protocol: &Self, cluster: &ModelCluster| {
                cluster.active() <= protocol.max
            }),
            stateright::Property::always(QUIET, |protocol: &Self, cluster: &ModelCluster| {
                cluster.is_clean(protocol)
            }),
            stateright::Property::always(NO_PHANTOM, |_: &Self, cluster: &ModelCluster| {
                !cluster.has_phantom()
            }),
            stateright::Property::sometimes(FULL, |protocol: &Self, cluster: &ModelCluster| {
                cluster.active() == protocol.max
            }),
        ]
    }
}

/// Checks that the protocol holds in every state within bounds.
fn holds(what: &str, protocol: ModelProtocol) {
    let alike = protocol.revisions.iter().all(|revision| *revision == protocol.revisions[0]);
    check(what, ModelProtocol { fold: alike, ..protocol });
}

fn check<M>(what: &str, model: M)
where
    M: Model<State: Clone + Debug + PartialEq + Hash + Send + Sync, Action: Clone + Debug + PartialEq>
        + Send
        + Sync
        + 'static,
{
    let begun = Instant::now();
    let checker = model.checker().threads(2).timeout(PATIENCE).spawn_bfs().join();
    println!(
        "{what}: {} states, {} unique, depth {}, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f32()
    );
    assert!(begun.elapsed() < PATIENCE, "{what}: not all states were checked");
    for property in [EXACT, QUIET, NO_PHANTOM] {
        if let Some(path) = checker.discovery(property) {
            panic!("{what}: {property}: {}", format_trace(path));
        }
    }
    assert!(checker.discovery(FULL).is_some(), "{what}: the limit was never reached");
}

/// A Job that is suspended after its deletion was admitted, and resumed. One replica, since the sink is the other writer.
fn suspended_while_its_slot_is_freed(without: RemovedRules) -> ModelProtocol {
    let clients = [vec![unsuspends("s", 2)], creates(&["a"], 1), vec![orphans("s", 2)]].concat();
    let budget = EventBudget { suspends: 1, finishes: 0, ..EventBudget::default() };
    let (revisions, housekeeping) = (vec!["same"], false);
    ModelProtocol { clients, budget, revisions, housekeeping, without, ..ModelProtocol::default() }
}

/// Checks that the protocol admits too many Jobs without one of its rules.
fn exceeds<M>(what: &str, model: M)
where
    M: Model<State: Clone + Debug + PartialEq + Hash + Send + Sync, Action: Clone + Debug + PartialEq>
        + Send
        + Sync
        + 'static,
{
    let only_exact = stateright::HasDiscoveries::AnyOf([EXACT].into());
    let checker = model.checker().threads(2).timeout(PATIENCE).finish_when(only_exact).spawn_bfs().join();
    let path = checker.discovery(EXACT).unwrap_or_else(|| panic!("{what}: no counterexample was found"));
    println!("{what}: {}", format_trace(path));
}

/// Checks that the protocol admits too many Jobs without one of its rules, and that the program, led the same way, does
/// not.
fn breaks(what: &str, protocol: ModelProtocol) {
    let begun = Instant::now();
    let checker = protocol
        .clone()
        .checker()
        .threads(2)
        .timeout(PATIENCE)
        .finish_when(stateright::HasDiscoveries::AnyOf([EXACT].into()))
        .spawn_bfs()
        .join();
    let path = checker.discovery(EXACT).unwrap_or_else(|| panic!("{what}: no counterexample was found"));
    let trace = path.clone().into_vec();
    println!("{what}, {:.1} s: {}", begun.elapsed().as_secs_f32(), format_trace(path));
    let granted = replay::replay(&protocol, trace);
    println!("the program, led through this, granted {granted}");
    assert!(granted > 0, "{what}: the trace was not followed");
}

fn format_trace<S: Debug + PartialEq, A: Debug>(path: stateright::Path<S, A>) -> String {
    path.into_actions().iter().map(|step| format!("\n  {step:?}")).collect()
}

/// Several policies select the Jobs, and so the apiserver asks several times, each time another replica.
#[test]
fn two_entries_that_ask_two_replicas() {
    let budget = EventBudget { finishes: 1, ..EventBudget::default() };
    let protocol = ModelProtocol {
        entries: 2,
        clients: creates(&["a", "b"], 1),
        budget,
        housekeeping: false,
        ..ModelProtocol::default()
    };
    holds("two entries", protocol.clone());
    // A policy that a replica does not know yet.
    let revisions = vec!["old", "new"];
    holds("two entries, revisions", ModelProtocol { revisions, ..protocol.clone() });
    let without = RemovedRules { refusals: true, ..RemovedRules::default() };
    let checker =
        ModelProtocol { without, ..protocol }.checker().threads(2).timeout(PATIENCE).spawn_bfs().join();
    let path = checker.discovery(NO_PHANTOM).expect("a grant that stays although the create was refused");
    println!("refusals that are not recorded: {}", format_trace(path));
    assert!(checker.discovery(EXACT).is_none());
}

fn creates(names: &[&'static str], max_requests: u8) -> Vec<ModelClient> {
    names.iter().map(|name| ModelClient { name, unsuspends: false, orphans: false, max_requests }).collect()
}

fn unsuspends(name: &'static str, max_requests: u8) -> ModelClient {
    ModelClient { name, unsuspends: true, orphans: false, max_requests }
}

fn orphans(name: &'static str, max_requests: u8) -> ModelClient {
    ModelClient { name, unsuspends: false, orphans: true, max_requests }
}

/// Two creates of a name, the deletion of its Job in between, and a create of another name.
fn deleted_while_its_pods_run(without: RemovedRules) -> ModelProtocol {
    let clients = [creates(&["a"], 2), creates(&["b"], 1), vec![orphans("a", 1)]].concat();
    let budget = EventBudget { finishes: 1, ..EventBudget::default() };
    ModelProtocol { clients, budget, housekeeping: false, without, ..ModelProtocol::default() }
}

#[test]
fn three_creates_of_two_replicas_behind_lagging_caches() {
    holds("creates", ModelProtocol { clients: creates(&["a", "b", "c"], 1), ..ModelProtocol::default() });
}

#[test]
fn three_replicas() {
    let budget = EventBudget { crashes: 1, finishes: 1, ..EventBudget::default() };
    let revisions = vec!["same"; 3];
    let clients = creates(&["a", "b", "c"], 1);
    let protocol =
        ModelProtocol { clients, revisions, budget, housekeeping: false, ..ModelProtocol::default() };
    holds("three replicas", protocol);
}

#[test]
fn four_creates() {
    let budget = EventBudget { finishes: 1, ..EventBudget::default() };
    let clients = creates(&["a", "b", "c", "d"], 1);
    let protocol = ModelProtocol { clients, budget, housekeeping: false, ..ModelProtocol::default() };
    holds("four creates", protocol.clone());
    holds("four creates, limit 2", ModelProtocol { max: 2, ..protocol });
}

#[test]
fn a_crash_with_three_creates() {
    let budget = EventBudget { crashes: 1, finishes: 1, ..EventBudget::default() };
    let clients = creates(&["a", "b", "c"], 1);
    holds(
        "crash, three creates",
        ModelProtocol { clients, budget, housekeeping: false, ..ModelProtocol::default() },
    );
}

#[test]
fn a_limit_of_two() {
    let budget = EventBudget { finishes: 1, ..EventBudget::default() };
    let clients = creates(&["a", "b", "c"], 1);
    holds(
        "limit 2",
        ModelProtocol { max: 2, clients, budget, housekeeping: false, ..ModelProtocol::default() },
    );
}

#[test]
fn consistent_lists() {
    let clients = creates(&["a", "b", "c"], 1);
    holds(
        "lists",
        ModelProtocol {
            view: ModelView::List,
            clients,
            budget: EventBudget { crashes: 1, finishes: 1, ..EventBudget::default() },
            ..ModelProtocol::default()
        },
    );
}

#[test]
fn caches_with_fetched_slot_holders() {
    let view = ModelView::Fetched;
    let budget = EventBudget { crashes: 1, finishes: 1, ..EventBudget::default() };
    let clients = creates(&["a", "b"], 1);
    holds("fetched", ModelProtocol { view, clients, budget, ..ModelProtocol::default() });
    let budget = EventBudget { finishes: 1, ..EventBudget::default() };
    let clients = creates(&["a", "b", "c"], 1);
    let protocol = ModelProtocol { view, clients, budget, housekeeping: false, ..ModelProtocol::default() };
    holds("fetched, three creates", protocol);
    let budget = EventBudget { deletes: 1, finishes: 0, ..EventBudget::default() };
    let clients = [creates(&["a"], 2), creates(&["b"], 1)].concat();
    holds(
        "fetched, retries",
        ModelProtocol { view, clients, budget, housekeeping: false, ..ModelProtocol::default() },
    );
    let budget = EventBudget { touches: 1, suspends: 1, finishes: 0, ..EventBudget::default() };
    let clients = [vec![unsuspends("s", 1)], creates(&["a"], 1)].concat();
    holds(
        "fetched, un-suspends",
        ModelProtocol { view, clients, budget, housekeeping: false, ..ModelProtocol::default() },
    );
}

#[test]
fn a_crash_between_any_two_steps() {
    let budget = EventBudget { crashes: 1, deletes: 1, ..EventBudget::default() };
    holds("crashes", ModelProtocol { clients: creates(&["a", "b"], 1), budget, ..ModelProtocol::default() });
    let budget = EventBudget { crashes: 1, finishes: 1, ..EventBudget::default() };
    let clients = creates(&["a", "b", "c"], 1);
    holds("crashes of three creates", ModelProtocol { clients, budget, ..ModelProtocol::default() });
}

#[test]
fn retries_with_new_uids_under_one_name() {
    let budget = EventBudget { deletes: 1, finishes: 0, ..EventBudget::default() };
    let clients = [creates(&["a"], 2), creates(&["b"], 1)].concat();
    holds("retries", ModelProtocol { clients, budget, housekeeping: false, ..ModelProtocol::default() });
}

#[test]
fn gone_callers_and_writes_with_lost_answers() {
    let budget = EventBudget { ambiguous: 1, gone: 1, ..EventBudget::default() };
    holds(
        "ambiguous",
        ModelProtocol { clients: creates(&["a", "b"], 1), budget, ..ModelProtocol::default() },
    );
    let budget = EventBudget { ambiguous: 1, crashes: 1, finishes: 1, ..EventBudget::default() };
    holds(
        "ambiguous, and a crash",
        ModelProtocol { clients: creates(&["a", "b"], 1), budget, ..ModelProtocol::default() },
    );
}

#[test]
fn unsuspends_suspends_and_other_changes() {
    let budget = EventBudget { touches: 1, deletes: 1, finishes: 0, ..EventBudget::default() };
    let clients = [vec![unsuspends("s", 1)], creates(&["a"], 1)].concat();
    holds("un-suspends", ModelProtocol { clients, budget, housekeeping: false, ..ModelProtocol::default() });
    let budget = EventBudget { suspends: 1, finishes: 0, ..EventBudget::default() };
    let clients = [vec![unsuspends("s", 2)], creates(&["a"], 1)].concat();
    holds(
        "suspended again",
        ModelProtocol { clients, budget, housekeeping: false, ..ModelProtocol::default() },
    );
}

#[test]
fn pods_that_run_on_when_their_job_is_deleted() {
    let protocol = deleted_while_its_pods_run(RemovedRules::default());
    holds("orphaned pods", protocol.clone());
    holds("orphaned pods, limit 2", ModelProtocol { max: 2, ..protocol.clone() });
    holds("orphaned pods, lists", ModelProtocol { view: ModelView::List, ..protocol.clone() });
    let budget = EventBudget { crashes: 1, finishes: 0, ..EventBudget::default() };
    let clients = [creates(&["a", "b"], 1), vec![orphans("a", 2)]].concat();
    holds("orphaned pods, and a crash", ModelProtocol { clients, budget, ..protocol.clone() });
    holds(
        "orphaned pods of a Job that was suspended",
        suspended_while_its_slot_is_freed(RemovedRules::default()),
    );
}

#[test]
fn without_freeing_only_what_was_read() {
    let without = RemovedRules { look_at_version: true, ..RemovedRules::default() };
    exceeds("the sink frees a slot that was taken again", suspended_while_its_slot_is_freed(without));
}

#[test]
fn without_held_slots() {
    let without = RemovedRules { held: true, ..RemovedRules::default() };
    exceeds("no slots held for pods", deleted_while_its_pods_run(without));
}

#[test]
fn without_room_for_the_next_job_of_a_name() {
    let without = RemovedRules { room_for_both: true, ..RemovedRules::default() };
    exceeds("a Job goes whose name was admitted again", deleted_while_its_pods_run(without));
}

#[test]
fn policies_that_differ_between_replicas() {
    let clients = creates(&["a", "b"], 1);
    holds("revisions", ModelProtocol { clients, revisions: vec!["old", "new"], ..ModelProtocol::default() });
}

#[test]
fn limits_of_the_cluster_and_of_namespaces() {
    let creates = vec!["x/a", "x/b", "y/c"];
    let two = TwoLedgers { creates, in_cluster: 2, in_namespace: 1, crashes: 1, finishes: 1 };
    check("two ledgers", two.clone());
    check("two ledgers, one slot", TwoLedgers { in_cluster: 1, in_namespace: 2, ..two });
}

#[test]
fn without_observed_through() {
    let clients = creates(&["a", "b"], 1);
    let without = RemovedRules { observed_through: true, ..RemovedRules::default() };
    breaks("no observedThrough", ModelProtocol { clients, without, ..ModelProtocol::default() });
}

#[test]
fn without_waiting_for_a_version_after_from() {
    let clients = [vec![unsuspends("s", 1)], creates(&["a"], 1)].concat();
    let without = RemovedRules { after_from: true, ..RemovedRules::default() };
    breaks(
        "removal on first sight of an un-suspended uid",
        ModelProtocol { clients, without, ..ModelProtocol::default() },
    );
}

#[test]
fn without_the_quorum_read() {
    let clients = creates(&["a", "b"], 1);
    let without = RemovedRules { quorum_read: true, ..RemovedRules::default() };
    breaks("expiry without the quorum read", ModelProtocol { clients, without, ..ModelProtocol::default() });
}

#[test]
fn without_an_own_list() {
    let clients = creates(&["a", "b"], 1);
    let without = RemovedRules { list_of_ones_own: true, ..RemovedRules::default() };
    breaks(
        "joining a LIST that began earlier",
        ModelProtocol { view: ModelView::List, clients, without, ..ModelProtocol::default() },
    );
}

#[test]
fn without_attempts_per_request() {
    let clients = [creates(&["a"], 2), creates(&["b"], 1)].concat();
    let without = RemovedRules { attempts_per_request: true, ..RemovedRules::default() };
    let budget = EventBudget { deletes: 1, ..EventBudget::default() };
    breaks("one slot per name", ModelProtocol { clients, budget, without, ..ModelProtocol::default() });
}

#[test]
fn without_reading_again_after_a_lost_answer() {
    let budget = EventBudget { ambiguous: 1, ..EventBudget::default() };
    let without = RemovedRules { reread: true, ..RemovedRules::default() };
    breaks(
        "a write with a lost answer is assumed stored",
        ModelProtocol { clients: creates(&["a", "b"], 1), budget, without, ..ModelProtocol::default() },
    );
}

#[test]
fn without_revisions() {
    let clients = creates(&["a", "b"], 1);
    let without = RemovedRules { revision: true, ..RemovedRules::default() };
    breaks(
        "no policy revision",
        ModelProtocol { clients, revisions: vec!["old", "new"], without, ..ModelProtocol::default() },
    );
}

/// Other webhooks come and go while a create that they hold is in progress.
const EXPIRY_MODEL: ExpiryModel =
    ExpiryModel { last: 160, changes: 2, without_memory: false, lagging_watch: false };

#[test]
fn an_attempt_outlives_whatever_holds_its_request() {
    check("expiry", EXPIRY_MODEL);
    check("expiry, three changes", ExpiryModel { changes: 3, ..EXPIRY_MODEL });
}

#[test]
fn without_remembering_webhooks_that_are_gone() {
    exceeds("only what is configured now", ExpiryModel { without_memory: true, ..EXPIRY_MODEL });
}

#[test]
fn without_a_bound_of_the_watchs_lag() {
    exceeds("a watch that lags", ExpiryModel { lagging_watch: true, ..EXPIRY_MODEL });
}
