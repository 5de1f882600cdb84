//! Who may read `/metrics`, where that is asked for (`--metrics-auth`): whoever presents a bearer token that the apiserver
//! knows (TokenReview) and whose user may get the path `/metrics` (SubjectAccessReview), as in controller-runtime
//! (`pkg/metrics/filters`, `WithAuthenticationAndAuthorization`).

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::{
    kube::error::{ApiError, call},
    process::admin::{METRICS_PATH, MetricsAuth, MetricsDenial},
};

/// How long a token stays accepted without another check.
const ACCEPTED: Duration = Duration::from_secs(60);
/// How long a token stays refused without another check.
const REFUSED: Duration = Duration::from_secs(10);
/// Most tokens to remember.
const MAX_TOKENS: usize = 256;
/// Longer ones are no tokens of a cluster.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// Most checks at the same time, so that nobody can make us flood the apiserver.
const MAX_CHECKS: usize = 4;
/// Longest wait for one of them: made-up tokens must not keep out Prometheus, which waits 10 s.
const CHECK_WAIT: Duration = Duration::from_secs(3);

type TokenDigest = [u8; 32];

/// Asks the apiserver about tokens, and remembers the answers for a short time.
pub struct TokenMetricsAuth {
    client: Client,
    answers: Mutex<HashMap<TokenDigest, RememberedAnswer>>,
    checks: Semaphore,
}

struct RememberedAnswer {
    until: Instant,
    result: Result<(), MetricsDenial>,
}

impl TokenMetricsAuth {
    /// Asks through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, answers: Mutex::default(), checks: Semaphore::new(MAX_CHECKS) }
    }

    async fn decide(&self, token: Option<&str>) -> Result<(), MetricsDenial> {
        let token = token.filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN_BYTES);
        let token = token.ok_or(MetricsDenial::Unauthenticated)?;
        // Only a digest is remembered.
        let digest = Sha256::digest(token.as_bytes()).into();
        if let Some(result) = self.remembered(&digest) {
            return result;
        }
        // In the order of their arrival.
        let turn = tokio::time::timeout(CHECK_WAIT, self.checks.acquire()).await;
        let Ok(Ok(_permit)) = turn else { return Err(MetricsDenial::Busy) };
        let result = match self.ask_apiserver(token).await {
            Ok(result) => result,
            Err(error) => return Err(MetricsDenial::Unavailable(error.to_string())),
        };
        self.remember(digest, result.clone());
        result
    }

    async fn ask_apiserver(&self, token: &str) -> Result<Result<(), MetricsDenial>, ApiError> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = call("create a TokenReview", reviews.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else {
            return Ok(Err(MetricsDenial::Unauthenticated));
        };
        let name = user.username.clone().unwrap_or_default();
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = access_review(user);
        let answer =
            call("create a SubjectAccessReview", reviews.create(&PostParams::default(), &review)).await?;
        let is_allowed = answer.status.is_some_and(|status| status.allowed);
        Ok(if is_allowed { Ok(()) } else { Err(MetricsDenial::Forbidden(name)) })
    }

    fn remembered(&self, digest: &TokenDigest) -> Option<Result<(), MetricsDenial>> {
        let answers = self.answers.lock();
        answers.get(digest).filter(|answer| Instant::now() < answer.until).map(|answer| answer.result.clone())
    }

    fn remember(&self, digest: TokenDigest, result: Result<(), MetricsDenial>) {
        let now = Instant::now();
        let mut answers = self.answers.lock();
        if answers.len() >= MAX_TOKENS {
            answers.retain(|_, answer| now < answer.until);
        }
        // Refused tokens are the ones that anybody can make up.
        if answers.len() >= MAX_TOKENS {
            answers.retain(|_, answer| answer.result.is_ok());
        }
        if answers.len() < MAX_TOKENS {
            let until = now + if result.is_ok() { ACCEPTED } else { REFUSED };
            answers.insert(digest, RememberedAnswer { until, result });
        }
    }
}

impl MetricsAuth for TokenMetricsAuth {
    fn check<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<(), MetricsDenial>> {
        self.decide(token).boxed()
    }
}

/// Whether `user` may get the path of the metrics.
fn access_review(user: UserInfo) -> SubjectAccessReview {
    let attributes =
        NonResourceAttributes { path: Some(METRICS_PATH.to_owned()), verb: Some("get".to_owned()) };
    let spec = SubjectAccessReviewSpec {
        user: user.username,
        groups: user.groups,
        uid: user.uid,
        extra: user.extra,
        non_resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { spec, ..SubjectAccessReview::default() }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tower_test::mock::Handle;

    use super::*;

    type ApiserverHandle = Handle<Request<Body>, Response<Body>>;

    fn auth() -> (TokenMetricsAuth, ApiserverHandle) {
        let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        (TokenMetricsAuth::new(Client::new(service, "default")), handle)
    }

    /// Answers the next call with this status. Returns its body.
    async fn answer(apiserver: &mut ApiserverHandle, resource: &str, status: Value) -> Value {
        let (request, respond) = apiserver.next_request().await.expect("a call");
        assert!(request.uri().path().ends_with(resource), "{}", request.uri());
        let body = request.into_body().collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let mut answered = body.clone();
        answered["status"] = status;
        respond.send_response(Response::new(Body::from(answered.to_string().into_bytes())));
        body
    }

    #[tokio::test]
    async fn a_user_with_the_right_is_accepted_and_asked_about_once() {
        let (auth, mut apiserver) = auth();
        let asked = async {
            let user = json!({"username": "prometheus", "groups": ["scrapers"], "extra": {"k": ["v"]}});
            let status = json!({"authenticated": true, "user": user});
            let body = answer(&mut apiserver, "/tokenreviews", status).await;
            assert_eq!(body["spec"]["token"], "t");
            let body = answer(&mut apiserver, "/subjectaccessreviews", json!({"allowed": true})).await;
            assert_eq!(body["spec"]["user"], "prometheus");
            assert_eq!(body["spec"]["groups"], json!(["scrapers"]));
            assert_eq!(body["spec"]["extra"], json!({"k": ["v"]}));
            assert_eq!(body["spec"]["nonResourceAttributes"], json!({"path": "/metrics", "verb": "get"}));
        };
        let (result, ()) = tokio::join!(auth.check(Some("t")), asked);
        assert_eq!(result, Ok(()));
        // Nobody answers a second call.
        assert_eq!(auth.check(Some("t")).await, Ok(()));
    }

    #[tokio::test]
    async fn an_unknown_token_and_a_user_without_the_right_are_refused() {
        let (auth, mut apiserver) = auth();
        for token in [None, Some("")] {
            assert_eq!(auth.check(token).await, Err(MetricsDenial::Unauthenticated));
        }
        let unknown = answer(&mut apiserver, "/tokenreviews", json!({"authenticated": false}));
        let (result, _) = tokio::join!(auth.check(Some("forged")), unknown);
        assert_eq!(result, Err(MetricsDenial::Unauthenticated));
        let asked = async {
            let status = json!({"authenticated": true, "user": {"username": "tenant"}});
            answer(&mut apiserver, "/tokenreviews", status).await;
            answer(&mut apiserver, "/subjectaccessreviews", json!({"allowed": false})).await;
        };
        let (result, ()) = tokio::join!(auth.check(Some("tenant")), asked);
        assert_eq!(result, Err(MetricsDenial::Forbidden("tenant".to_owned())));
        assert_eq!(auth.check(Some("tenant")).await, result, "remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_waits_for_its_turn() {
        let (auth, mut apiserver) = auth();
        let made_up = async {
            let tokens = ["a", "b", "c", "d"];
            futures::future::join_all(tokens.map(|token| auth.check(Some(token)))).await
        };
        let scrape = async {
            tokio::time::sleep(CHECK_WAIT / 3).await;
            auth.check(Some("prometheus")).await
        };
        let answers = async {
            tokio::time::sleep(CHECK_WAIT).await;
            for _ in 0..5 {
                answer(&mut apiserver, "/tokenreviews", json!({"authenticated": false})).await;
            }
        };
        let (_, scraped, ()) = tokio::join!(made_up, scrape, answers);
        assert_eq!(scraped, Err(MetricsDenial::Unauthenticated), "it was checked");
    }

    #[test]
    fn made_up_tokens_do_not_displace_accepted_ones() {
        let (service, _handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let auth = TokenMetricsAuth::new(Client::new(service, "default"));
        let digest = |n: usize| -> TokenDigest { Sha256::digest(n.to_string().as_bytes()).into() };
        auth.remember(digest(0), Ok(()));
        for n in 1..3 * MAX_TOKENS {
            auth.remember(digest(n), Err(MetricsDenial::Unauthenticated));
            assert!(auth.answers.lock().len() <= MAX_TOKENS);
        }
        assert_eq!(auth.remembered(&digest(0)), Some(Ok(())));
    }
}
