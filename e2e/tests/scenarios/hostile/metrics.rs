//! Metrics with `--metrics-auth`: who may read them.

use job_handler_e2e::{Member, PairOptions, pair::allow_metrics_auth};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};

use super::super::fixtures::{Fixture, exclusive_scenario_with_options};

async fn token(fixture: &Fixture, namespace: &str, account: &str) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(fixture.client(), namespace);
    let spec = TokenRequestSpec { expiration_seconds: Some(600), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token
}

/// Waits until the answer for this token has the status.
async fn wait_status(fixture: &Fixture, member: &Member, token: &str, expected: u16) -> String {
    fixture
        .wait(&format!("{} to answer {expected}", member.name()), || async {
            match member.get_with_token("/metrics", token).await {
                Ok((status, body)) if status == expected => Ok(body),
                other => Err(format!("{other:?}")),
            }
        })
        .await
}

#[test]
fn metrics_are_for_those_with_the_right_only() {
    let flag = || vec!["--metrics-auth".to_owned()];
    let options = PairOptions { webhook_arguments: flag(), sink_arguments: flag(), ..PairOptions::default() };
    exclusive_scenario_with_options(options, async |fixture| {
        let ns = fixture.cluster.namespace("scraper").await.unwrap();
        for account in ["prometheus", "tenant"] {
            fixture.cluster.kubectl(&["create", "serviceaccount", account, "-n", &ns]).await.unwrap();
        }
        let edit = ["create", "rolebinding", "tenant", "--clusterrole=edit", "-n", &ns];
        let account = format!("--serviceaccount={}:tenant", ns.name());
        fixture.cluster.kubectl(&[&edit[..], &[account.as_str()]].concat()).await.unwrap();
        let (prometheus, tenant) =
            (token(fixture, &ns, "prometheus").await, token(fixture, &ns, "tenant").await);
        let members = [fixture.pair.webhook(0), fixture.pair.sink()];
        for member in members {
            assert_eq!(member.get("/healthz").await.unwrap().0, 200, "probes present no token");
            assert_eq!(member.get("/readyz").await.unwrap().0, 200, "probes present no token");
            assert_eq!(member.get("/metrics").await.unwrap().0, 401);
            // Without the rights of the overlay nobody can be checked.
            let why = wait_status(fixture, member, &prometheus, 503).await;
            assert!(why.contains("TokenReview"), "{why}");
        }
        allow_metrics_auth(&fixture.cluster).await.unwrap();
        for member in members {
            wait_status(fixture, member, "forged", 401).await;
            let why = wait_status(fixture, member, &tenant, 403).await;
            assert!(why.contains(&format!("system:serviceaccount:{}:tenant", ns.name())), "{why}");
            wait_status(fixture, member, &prometheus, 403).await;
        }
        let reader = ["create", "clusterrolebinding", "scraper", "--clusterrole=job-handler-metrics-reader"];
        let account = format!("--serviceaccount={}:prometheus", ns.name());
        fixture.cluster.kubectl(&[&reader[..], &[account.as_str()]].concat()).await.unwrap();
        for member in members {
            let text = wait_status(fixture, member, &prometheus, 200).await;
            assert!(text.contains("job_handler_"), "{text}");
            wait_status(fixture, member, &tenant, 403).await;
        }
    });
}
