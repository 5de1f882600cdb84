//! The Jobs and reviews that the benchmarks send, the policies that apply to them, and the expected stamps.

use std::sync::Arc;

use job_handler_shared::keys;
use job_handler_shared::policy::spec::{ClusterJobPolicy, JobPolicy};
use job_handler_shared::policy::{parsed::Policy, set::PolicySet};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::error::{Error, Result};

/// A review that apiserver 1.36 sent for the Job of [`job`], with defaults, `managedFields` and `userInfo`.
const REVIEW: &str = include_str!("review.json");
/// The policy for the image builds.
const BUILDS: &str = include_str!("../../../manifests/samples/builds.yaml");
/// The policy of the base install.
const DEFAULT: &str = include_str!("../../../manifests/base/policies/job-handler-default.yaml");
/// The namespace of the review.
pub const NAMESPACE: &str = "ci";
/// Bytes of the large Job as JSON.
const LARGE: usize = 60 << 10;

/// The size of a Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A usual image build.
    Small,
    /// 60 KiB: a script, many variables, and a copy of both in kubectl's annotation.
    Large,
}

impl Size {
    /// All sizes.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "60 KiB",
        }
    }

    /// A review of the creation of a Job of this size in [`NAMESPACE`].
    ///
    /// # Errors
    /// Never, as long as `review.json` is a review.
    pub fn review(self) -> Result<Vec<u8>> {
        match self {
            Self::Small => Ok(REVIEW.trim_end().as_bytes().to_vec()),
            Self::Large => large(),
        }
    }
}

/// A review as the apiserver sends it for the Job of [`job`] in another namespace.
pub fn review_in(namespace: &str) -> Vec<u8> {
    let namespaced = |namespace: &str| format!(r#""namespace":"{namespace}""#);
    REVIEW.trim_end().replace(&namespaced(NAMESPACE), &namespaced(namespace)).into_bytes()
}

/// The image build that the benchmarks create: Kaniko, two ids as labels, neither TTL nor deadline.
pub fn job(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                "app": "image-build",
                "build.notifi.network/third-party-id": "4711",
                "build.notifi.network/parser-id": "parser-12",
            },
        },
        "spec": {"template": {"spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "kaniko",
                "image": "gcr.io/kaniko-project/executor:v1.23.2",
                "args": [
                    "--context=git://git.example.com/parsers/parser-12.git",
                    "--destination=registry.example.com/parsers/parser-12:latest",
                    "--cache=true",
                ],
                "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
                "volumeMounts": [{"name": "docker-config", "mountPath": "/kaniko/.docker"}],
            }],
            "volumes": [{"name": "docker-config", "emptyDir": {}}],
        }}},
    })
}

/// The sample policy for the image builds, in `namespace`.
///
/// # Errors
/// If the sample has no JobPolicy.
pub fn builds(namespace: &str) -> Result<JobPolicy> {
    let documents: Vec<Value> = serde_norway::Deserializer::from_str(BUILDS)
        .map(Value::deserialize)
        .collect::<Result<_, _>>()
        .map_err(wrong("samples/builds.yaml"))?;
    let policy = documents.into_iter().find(|document| document["kind"] == "JobPolicy").unwrap_or_default();
    let mut policy: JobPolicy = serde_json::from_value(policy).map_err(wrong("samples/builds.yaml"))?;
    policy.metadata.namespace = Some(namespace.to_owned());
    Ok(policy)
}

/// The sample policy in `namespace` and the default policy of the base install.
///
/// # Errors
/// If one of them cannot be read.
pub fn policies(namespace: &str) -> Result<PolicySet> {
    let mut builds = builds(namespace)?;
    builds.metadata.uid = Some("7e3a1d52-5a0e-4c6e-9a43-0c1f5d6b7a10".to_owned());
    builds.metadata.generation = Some(1);
    let mut default: ClusterJobPolicy =
        serde_norway::from_str(DEFAULT).map_err(wrong("job-handler-default.yaml"))?;
    default.metadata.uid = Some("b1c3f0aa-2f64-4f53-8d8f-2f1f0f3f7a11".to_owned());
    default.metadata.generation = Some(1);
    let builds = Policy::namespaced(&builds).map_err(wrong("samples/builds.yaml"))?;
    let default = Policy::cluster(&default).map_err(wrong("job-handler-default.yaml"))?;
    Ok(PolicySet::new([Arc::new(builds), Arc::new(default)]))
}

/// Checks that a Job has the stamps of the sample policy.
///
/// # Errors
/// The first field that differs.
pub fn ensure_stamped(job: &Value) -> Result<()> {
    let annotations = &job["metadata"]["annotations"];
    let pods = &job["spec"]["template"]["metadata"]["labels"];
    let labels = &job["metadata"]["labels"];
    let table = [
        ("spec.ttlSecondsAfterFinished", &job["spec"]["ttlSecondsAfterFinished"], json!(604_800)),
        ("spec.activeDeadlineSeconds", &job["spec"]["activeDeadlineSeconds"], json!(1800)),
        ("spec.backoffLimit", &job["spec"]["backoffLimit"], json!(0)),
        ("the TTL annotation", &annotations[keys::TTL], json!("86400")),
        ("the label team", &labels["team"], json!("build")),
        ("the pods' label team", &pods["team"], json!("build")),
        ("the group", &labels[keys::GROUP], json!("4711.parser-12")),
        ("the pods' group", &pods[keys::GROUP], json!("4711.parser-12")),
    ];
    for (field, found, wanted) in table {
        if *found != wanted {
            return Err(Error::Invalid(format!("{field}: expected {wanted}, found {found} in {job}")));
        }
    }
    match annotations[keys::STAMPED].as_str() {
        Some(_) => Ok(()),
        None => Err(Error::Invalid(format!("no annotation {} in {job}", keys::STAMPED))),
    }
}

/// The object of a review.
///
/// # Errors
/// If it is not JSON.
pub fn object(review: &[u8]) -> Result<Value> {
    let mut review: Value = serde_json::from_slice(review).map_err(wrong("a review"))?;
    Ok(review["request"]["object"].take())
}

fn large() -> Result<Vec<u8>> {
    let mut review: Value = serde_json::from_str(REVIEW).map_err(wrong("review.json"))?;
    let object = &mut review["request"]["object"];
    let variables: Vec<Value> = (0..150)
        .map(|n| json!({"name": format!("BUILD_PARAMETER_{n:03}"), "value": format!("registry.example.com/team/{n}/cache")}))
        .collect();
    let main = &mut object["spec"]["template"]["spec"]["containers"][0];
    main["env"] = variables.into();
    let line = "echo \"step $STEP of $STEPS\" && ./build.sh --target \"$TARGET\" || exit 1\n";
    main["command"] = json!(["/bin/sh", "-c", line.repeat(160)]);
    // `kubectl apply` stores the manifest in this annotation. It is padded to the wanted size.
    let mut applied = object["spec"].to_string();
    let size = object.to_string().len() + json!(applied).to_string().len();
    applied.push_str(&" ".repeat(LARGE.saturating_sub(size + 80)));
    object["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": applied});
    // Head and tail are kept as the apiserver wrote them, because serde_json sorts keys.
    let text = REVIEW.trim_end();
    let (head, _) = text.split_once(r#""object":{"#).ok_or_else(|| Error::Invalid("no object".to_owned()))?;
    let tail = r#","oldObject":null,"dryRun":false,"options":{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}}}"#;
    Ok(format!(r#"{head}"object":{object}{tail}"#).into_bytes())
}

fn wrong<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Error {
    move |error| Error::Invalid(format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_have_the_wanted_sizes() {
        let small = Size::Small.review().unwrap();
        assert!((1_500..6_000).contains(&small.len()), "{}", small.len());
        let large = Size::Large.review().unwrap();
        let job = object(&large).unwrap().to_string().len();
        assert!(job.abs_diff(LARGE) < 512, "{job}");
        assert!(large.starts_with(
            br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":""#
        ));
    }

    #[test]
    fn the_review_is_about_the_job() {
        let object = object(&Size::Small.review().unwrap()).unwrap();
        let job = job("ci", "build-1");
        assert_eq!(object["metadata"]["labels"], job["metadata"]["labels"]);
        let (container, written) = (
            &object["spec"]["template"]["spec"]["containers"][0],
            &job["spec"]["template"]["spec"]["containers"][0],
        );
        for field in ["name", "image", "args", "resources", "volumeMounts"] {
            assert_eq!(container[field], written[field], "{field}");
        }
        assert!(ensure_stamped(&object).unwrap_err().to_string().contains("ttlSecondsAfterFinished"));
    }

    #[test]
    fn the_sample_policy_selects_the_job() {
        let policies = policies("ci").unwrap();
        assert_eq!(policies.iter().count(), 2);
        let labels = serde_json::from_value(job("ci", "a")["metadata"]["labels"].clone()).unwrap();
        let matching = policies.matching("ci", &Default::default(), &labels);
        assert_eq!(matching.len(), 1);
        assert_eq!(matching[0].reference.to_string(), "JobPolicy ci/builds");
    }
}
