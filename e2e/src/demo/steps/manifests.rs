//! The manifests of the demo, with names filled in.

use std::time::Duration;

const BUILD: &str = include_str!("../../../demo/build.yaml");
const NIGHTLY: &str = include_str!("../../../demo/nightly.yaml");
const HOOK: &str = include_str!("../../../demo/hook.yaml");
/// The policy for the hook Jobs.
pub(super) const HOOKS_POLICY: &str = include_str!("../../../demo/hooks-policy.yaml");

/// How the simulated node runs a pod: for how long, with which exit code and log.
#[derive(Clone, Debug)]
pub(super) struct SimulatedRun {
    duration: Duration,
    exit_code: i32,
    logs: String,
}

impl SimulatedRun {
    pub(super) fn new(duration: Duration, exit_code: i32, logs: &str) -> Self {
        Self { duration, exit_code, logs: logs.to_owned() }
    }

    fn annotations(&self) -> String {
        format!(
            "\"e2e.job-handler.io/run\": \"{}ms\", \"e2e.job-handler.io/exit-code\": \"{}\", \"e2e.job-handler.io/log\": {}",
            self.duration.as_millis(),
            self.exit_code,
            serde_json::Value::from(self.logs.as_str()),
        )
    }
}

pub(super) fn build(name: &str, parser: &str, run: &SimulatedRun) -> String {
    fill(BUILD, &[("$NAME", name), ("$PARSER", parser), ("$RUN", &run.annotations())])
}

pub(super) fn nightly(name: &str, parser: &str, run: &SimulatedRun) -> String {
    fill(NIGHTLY, &[("$NAME", name), ("$PARSER", parser), ("$RUN", &run.annotations())])
}

pub(super) fn hook(name: &str, namespace: &str, instance: &str, run: &SimulatedRun) -> String {
    fill(
        HOOK,
        &[("$NAMESPACE", namespace), ("$NAME", name), ("$INSTANCE", instance), ("$RUN", &run.annotations())],
    )
}

/// Fills in the placeholders, which the leading comment explains.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let body = template.lines().skip_while(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n");
    values.iter().fold(body, |text, (key, value)| text.replace(key, value))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::{CronJob, Job};

    use super::*;

    #[test]
    fn every_manifest_parses_as_its_kind() {
        let run = SimulatedRun::new(Duration::from_secs(2), 0, "a \"quoted\" line\n");
        let job: Job = serde_norway::from_str(&build("b-1", "p-1", &run)).unwrap();
        assert_eq!(job.metadata.name.as_deref(), Some("b-1"));
        let template = job.spec.unwrap().template.metadata.unwrap().annotations.unwrap();
        assert_eq!(template["e2e.job-handler.io/log"], "a \"quoted\" line\n");
        let _: Job = serde_norway::from_str(&hook("h-1", "gitops", "shop", &run)).unwrap();
        let _: CronJob = serde_norway::from_str(&nightly("n-1", "p-1", &run)).unwrap();
    }
}
