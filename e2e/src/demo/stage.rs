//! Sets the stage: a cluster, the pair, namespaces, the sample policy; then tells all steps.

use std::time::{Duration, Instant, SystemTime};

use super::{Report, STEPS, Story, StoryOptions};
use crate::{
    Cluster, ClusterOptions, Error, Pair, PairOptions, Result,
    build::{beside, cluster_programs, pair_programs},
    cluster::E2E_KUBECONFIG,
};

/// Namespaces of the story, besides `ci` (which the sample brings).
const NAMESPACES: [&str; 3] = ["ci", "gitops", "legacy"];
/// The policy of the image builds.
const SAMPLE: &str = include_str!("../../../manifests/samples/builds.yaml");

/// Boots, installs, tells every step.
///
/// # Errors
/// Where the stage could not be set; a step that is not as told is in the report.
pub async fn run(patience: Duration) -> Result<Report> {
    println!("Building what is not built yet …");
    // What a first run builds is none of the demo's times. A cluster that somebody names needs no programs of ours.
    if std::env::var_os(E2E_KUBECONFIG).is_none_or(|path| path.is_empty()) {
        beside(cluster_programs).await?;
    }
    let sink = beside(pair_programs).await?.join("job-handler-sink");
    let begun = Instant::now();
    println!(
        "Booting a real Kubernetes (etcd, apiserver, controller-manager, scheduler; nodes played by KWOK) …"
    );
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let booted = begun.elapsed();
    println!("Installing job-handler from manifests/, under its own ServiceAccounts …");
    let installing = Instant::now();
    let _pair = Pair::install(&cluster, PairOptions::default()).await?;
    let installed = installing.elapsed();
    let options = StoryOptions { sink, patience, builds_run: until_minute(), quiet: false };
    let mut story = set_stage(&cluster, options).await?;
    story.time("booting Kubernetes", booted, None);
    story.time("installing the pair until it is ready", installed, None);
    for step in STEPS {
        story.tell(step).await;
    }
    story.time("the whole demo", begun.elapsed(), Some(120.0));
    Ok(story.into_report())
}

/// Namespaces and the sample policy on a cluster with the pair installed.
///
/// # Errors
/// Where they are refused, or the policy does not come into force.
pub async fn set_stage(cluster: &Cluster, options: StoryOptions) -> Result<Story<'_>> {
    for namespace in NAMESPACES {
        let made = cluster.try_kubectl(&["create", "namespace", namespace], b"").await?;
        if !made.success && !made.stderr.contains("AlreadyExists") {
            return Err(Error::Invalid(format!("namespace {namespace} could not be made: {}", made.stderr)));
        }
    }
    cluster.kubectl_with_input(&["apply", "-f", "-"], SAMPLE).await?;
    let ready = ["wait", "jobpolicy/builds", "-n", "ci", "--for=condition=Ready", "--timeout=30s"];
    cluster.kubectl(&ready).await?;
    Ok(Story::new(cluster, options))
}

/// How long the ten builds have to run so that the CronJob, which comes round at the full minute, finds them running.
fn until_minute() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let left = 60 - now.as_secs() % 60;
    // The steps before it need some seconds: if the minute is almost over, it is the next one.
    let left = if left < 25 { left + 60 } else { left };
    Duration::from_secs(left + 6)
}
