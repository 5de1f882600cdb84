//! Reviews that one replica passes on to another, over TLS as it is: what the other decides is answered; where it gives no
//! decision, this one makes its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; clippy knows only #[test] itself"
)]

mod common;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{builds, job, policy, review};
use futures::{FutureExt, future::BoxFuture};
use job_handler_shared::policy::set::{Labels, PolicySet};
use job_handler_webhook::{
    admission::{server::serve_webhook, state::State, validate::validate},
    limit::{Attempt, Limiter, Refused, Verdict},
    peers::Peers,
};
use parking_lot::Mutex;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::sync::watch;

const SERVER_NAME: &str = "job-handler.job-handler-system.svc";
const TIMEOUT: Duration = Duration::from_secs(10);

/// Answers as the test says, keeps what it was asked, and sends others where the test says.
#[derive(Default)]
struct Replica {
    verdict: Mutex<Option<Verdict>>,
    takes: Mutex<Duration>,
    asked: Mutex<Vec<String>>,
    /// Callers that hung up.
    dropped: Arc<AtomicUsize>,
    elsewhere: Mutex<Option<SocketAddr>>,
}

impl Replica {
    fn deciding(verdict: Verdict) -> Arc<Self> {
        Arc::new(Self { verdict: Mutex::new(Some(verdict)), ..Self::default() })
    }

    fn passing_on(to: SocketAddr) -> Arc<Self> {
        let replica = Self::deciding(Verdict::Granted);
        *replica.elsewhere.lock() = Some(to);
        replica
    }

    /// Uids of the attempts that it has decided about since it was last asked for them.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock())
    }
}

struct Unheard(Option<Arc<AtomicUsize>>);

impl Unheard {
    fn heard(mut self) {
        self.0 = None;
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Limiter for Replica {
    fn admit(&self, attempt: Attempt) -> BoxFuture<'_, Verdict> {
        self.asked.lock().push(attempt.uid);
        let (verdict, takes) = (self.verdict.lock().clone().unwrap(), *self.takes.lock());
        let unheard = Unheard(Some(self.dropped.clone()));
        async move {
            tokio::time::sleep(takes).await;
            unheard.heard();
            verdict
        }
        .boxed()
    }

    fn elsewhere(&self, _: &Attempt) -> Option<SocketAddr> {
        *self.elsewhere.lock()
    }
}

fn refused(message: &str) -> Verdict {
    let policy = policy("builds", builds()).reference.clone();
    let audit = BTreeMap::from([("limit".to_owned(), "concurrent-builds".to_owned())]);
    Verdict::Refused(Refused {
        policy,
        limit: "concurrent-builds".to_owned(),
        message: message.to_owned(),
        audit,
    })
}

/// The certificate of a replica, PEM, and its key.
fn certificate(name: &str) -> (String, ServerConfig) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    (certified.cert.pem(), config)
}

/// With the way to others that show a certificate of this CA.
fn state(replica: Arc<Replica>, ca: &str) -> State {
    // A second one would be an error that says it is there already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let set = PolicySet::new([policy("builds", builds())]);
    let mut state = State::fixed(set, [("ci".to_owned(), Labels::new())]);
    let (_, bundle) = watch::channel(Some(ca.to_owned()));
    state.limiter = Some(replica);
    state.peers = Some(Arc::new(Peers::new("job-handler-system", bundle)));
    state
}

/// Serves until the test ends.
fn serve(state: State, config: ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    drop(tokio::spawn(serve_webhook(listener, config, state).unwrap()));
    address
}

async fn ask(state: &State) -> Value {
    let mut object = job(json!({"app": "build", "id": "7"}), json!({}));
    object["metadata"]["uid"] = "job-1".into();
    let reply = validate(&review(&object), TIMEOUT, state).await;
    assert_eq!(reply.status, 200);
    let answer: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(answer["response"]["uid"], "u-1");
    answer["response"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_replica_decides_is_answered() {
    let (ca, config) = certificate(SERVER_NAME);
    let other = Replica::deciding(Verdict::Granted);
    // It would pass on to somebody who does not answer: what comes from a replica goes no further.
    *other.elsewhere.lock() = Some((Ipv4Addr::LOCALHOST, 1).into());
    let own = Replica::passing_on(serve(state(other.clone(), &ca), config));
    let state = state(own.clone(), &ca);

    assert_eq!(ask(&state).await["allowed"], true);
    assert_eq!((other.asked(), own.asked()), (vec!["u-1".to_owned()], vec![]));
    *other.verdict.lock() = Some(refused("concurrent job limit reached: 10 active jobs"));
    let answer = ask(&state).await;
    assert_eq!(answer["allowed"], false);
    assert_eq!(answer["status"]["code"], 403);
    assert_eq!(answer["status"]["message"], "concurrent job limit reached: 10 active jobs");
    assert_eq!(answer["auditAnnotations"]["limit"], "concurrent-builds");
    assert_eq!((other.asked().len(), own.asked()), (1, vec![]));
    // A tenant that has to wait is told so; it is no reason to leave the other replica alone.
    let too_many = Verdict::TooMany { why: "5 Jobs were not created".to_owned(), retry_after_seconds: 5 };
    *other.verdict.lock() = Some(too_many);
    for _ in 0..2 {
        let answer = ask(&state).await;
        assert_eq!(
            (&answer["status"]["code"], &answer["status"]["details"]["retryAfterSeconds"]),
            (&429.into(), &5.into())
        );
    }
    assert_eq!((other.asked().len(), own.asked()), (2, vec![]));
    let counted = (state.metrics.passed_on.get(), state.metrics.passed_on_in_vain.get());
    assert_eq!(counted, (4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_decide_is_left_alone_for_a_while() {
    let (ca, config) = certificate(SERVER_NAME);
    let why = Verdict::Unavailable { why: "the apiserver is away".to_owned(), retry_after_seconds: 1 };
    let other = Replica::deciding(why);
    let own = Replica::passing_on(serve(state(other.clone(), &ca), config));
    let state = state(own.clone(), &ca);
    for _ in 0..3 {
        assert_eq!(ask(&state).await["allowed"], true);
    }
    assert_eq!(other.asked(), ["u-1"]);
    // An attempt of its own where the other was asked: that one may take its own back.
    assert_eq!(own.asked(), ["u-1-here", "u-1", "u-1"]);
    assert_eq!((state.metrics.passed_on.get(), state.metrics.passed_on_in_vain.get()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_not_waited_for() {
    let (ca, config) = certificate(SERVER_NAME);
    let other = Replica::deciding(refused("too late"));
    *other.takes.lock() = TIMEOUT;
    let own = Replica::passing_on(serve(state(other.clone(), &ca), config));
    let state = state(own.clone(), &ca);
    let begun = Instant::now();
    assert_eq!(ask(&state).await["allowed"], true);
    assert!(begun.elapsed() < TIMEOUT / 2, "waited for {:?}", begun.elapsed());
    assert_eq!((other.asked().len(), own.asked()), (1, vec!["u-1-here".to_owned()]));
    // Who was asked in vain learns of it, and takes back what it would have granted.
    while other.dropped.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < TIMEOUT / 2, "it goes on although nobody listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_taken_for_a_replica() {
    let (ca, _) = certificate(SERVER_NAME);
    let (own_ca, of_another_ca) = certificate(SERVER_NAME);
    let (_, of_another_name) = certificate("job-handler.elsewhere.svc");
    let other = Replica::deciding(refused("by somebody else"));
    for config in [of_another_ca, of_another_name] {
        let own = Replica::passing_on(serve(state(other.clone(), &own_ca), config));
        assert_eq!(ask(&state(own.clone(), &ca)).await["allowed"], true);
        assert_eq!((other.asked(), own.asked()), (vec![], vec!["u-1-here".to_owned()]));
    }
    // Nobody listens.
    let own = Replica::passing_on((Ipv4Addr::LOCALHOST, 1).into());
    assert_eq!(ask(&state(own.clone(), &ca)).await["allowed"], true);
    assert_eq!(own.asked(), ["u-1-here"]);
}
