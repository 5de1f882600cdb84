//! Creates the policies of the base install, once, from a ConfigMap.
//!
//! `kubectl apply` looks up every kind before it applies the first object, so that a policy fails next to its own CRD. The
//! base therefore carries the policies in ConfigMap [`keys::DEFAULTS`], and the leader of the sinks creates them. An
//! annotation records which ones were created, so that a policy that a user deletes does not come back.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    keys,
    kube::error::{ApiError, call},
    policy::spec::ClusterJobPolicy,
};

/// A default policy that could not be created.
#[derive(Debug, thiserror::Error)]
pub enum DefaultsError {
    /// A call to the apiserver failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The ConfigMap contains something else than policies.
    #[error(
        "ConfigMap {namespace}/{name}: {key} is not a ClusterJobPolicy: {source}; correct or remove it",
        name = keys::DEFAULTS
    )]
    NoPolicy {
        /// Namespace of the ConfigMap.
        namespace: String,
        /// Key in its data.
        key: String,
        /// Error of the YAML parser.
        source: serde_norway::Error,
    },
}

/// Creates the policies of ConfigMap [`keys::DEFAULTS`] that were not created before, and returns their names. Does nothing
/// without the ConfigMap. Can run concurrently, and again after a failure.
///
/// # Errors
/// Fails if the ConfigMap contains anything else or a call fails; policies created until then stay.
pub async fn create_once(client: &Client, namespace: &str) -> Result<Vec<String>, DefaultsError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let what = format!("read ConfigMap {namespace}/{}", keys::DEFAULTS);
    let Some(map) = call(&what, maps.get_opt(keys::DEFAULTS)).await? else {
        return Ok(Vec::new());
    };
    let before: BTreeSet<String> = map
        .annotations()
        .get(keys::DEFAULTS_CREATED)
        .map(|names| names.split(',').map(str::to_owned).collect())
        .unwrap_or_default();

    let policies: Api<ClusterJobPolicy> = Api::all(client.clone());
    let (mut known, mut created) = (before.clone(), Vec::new());
    for (key, text) in map.data.iter().flatten() {
        let policy: ClusterJobPolicy = serde_norway::from_str(text).map_err(|source| {
            DefaultsError::NoPolicy { namespace: namespace.to_owned(), key: key.clone(), source }
        })?;
        let name = policy.name_any();
        if known.contains(&name) {
            continue;
        }
        let what = format!("create ClusterJobPolicy {name}");
        match call(&what, policies.create(&PostParams::default(), &policy)).await {
            Ok(_) => created.push(name.clone()),
            // Somebody else created it; leave it as it is.
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
        known.insert(name);
    }
    if known != before {
        let names = known.into_iter().collect::<Vec<_>>().join(",");
        let patch = json!({"metadata": {"annotations": {keys::DEFAULTS_CREATED: names}}});
        let what = format!("annotate ConfigMap {namespace}/{}", keys::DEFAULTS);
        call(&what, maps.patch(keys::DEFAULTS, &PatchParams::default(), &Patch::Merge(patch))).await?;
    }
    Ok(created)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    const POLICY: &str = "apiVersion: job-handler.io/v1alpha1\nkind: ClusterJobPolicy\nmetadata: {name: one}\nspec: {results: {}}\n";

    fn map(created: Option<&str>, text: &str) -> Value {
        let annotations = created.map(|names| json!({keys::DEFAULTS_CREATED: names}));
        json!({"metadata": {"name": keys::DEFAULTS, "annotations": annotations}, "data": {"one.yaml": text}})
    }

    /// Runs `create_once` against these responses; returns its result and the calls it made.
    async fn run_against(
        answers: impl IntoIterator<Item = (u16, Value)>,
    ) -> (Result<Vec<String>, DefaultsError>, Vec<String>) {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let mut answers: VecDeque<_> = answers.into_iter().collect();
        let server = tokio::spawn(async move {
            let mut calls = Vec::new();
            while let Some((request, send)) = handle.next_request().await {
                calls.push(format!("{} {}", request.method(), request.uri().path()));
                let (code, body) = answers.pop_front().expect("one more call than expected");
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                send.send_response(Response::builder().status(code).body(body).unwrap());
            }
            calls
        });
        let client = Client::new(service, "default");
        let result = create_once(&client, "ns").await;
        drop(client);
        (result, server.await.unwrap())
    }

    fn status(code: u16, reason: &str) -> (u16, Value) {
        (
            code,
            json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}),
        )
    }

    fn policy() -> (u16, Value) {
        (201, json!({"metadata": {"name": "one"}, "spec": {}}))
    }

    const GET: &str = "GET /api/v1/namespaces/ns/configmaps/job-handler-defaults";
    const CREATE: &str = "POST /apis/job-handler.io/v1alpha1/clusterjobpolicies";
    const MARK: &str = "PATCH /api/v1/namespaces/ns/configmaps/job-handler-defaults";

    #[tokio::test]
    async fn policies_are_created_once_and_recorded() {
        let (result, calls) =
            run_against([(200, map(None, POLICY)), policy(), (200, map(Some("one"), POLICY))]).await;
        assert_eq!(result.unwrap(), ["one"]);
        assert_eq!(calls, [GET, CREATE, MARK]);
    }

    #[tokio::test]
    async fn a_recorded_policy_is_not_created_again() {
        let (result, calls) = run_against([(200, map(Some("one"), POLICY))]).await;
        assert!(result.unwrap().is_empty());
        assert_eq!(calls, [GET]);
    }

    #[tokio::test]
    async fn an_existing_policy_is_kept_and_recorded() {
        let answers =
            [(200, map(None, POLICY)), status(409, "AlreadyExists"), (200, map(Some("one"), POLICY))];
        let (result, calls) = run_against(answers).await;
        assert!(result.unwrap().is_empty());
        assert_eq!(calls, [GET, CREATE, MARK]);
    }

    #[tokio::test]
    async fn no_config_map_means_no_default_policies() {
        let (result, calls) = run_against([status(404, "NotFound")]).await;
        assert!(result.unwrap().is_empty());
        assert_eq!(calls, [GET]);
    }

    #[tokio::test]
    async fn errors_name_the_object() {
        let (result, _) = run_against([(200, map(None, "metadata: 7"))]).await;
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains("ConfigMap ns/job-handler-defaults: one.yaml is not a ClusterJobPolicy"),
            "{error}"
        );
        let (result, calls) = run_against([(200, map(None, POLICY)), status(403, "Forbidden")]).await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains("cannot create ClusterJobPolicy one"), "{error}");
        assert_eq!(calls, [GET, CREATE], "not remembered, so that it is tried again");
    }
}
