//! The Jobs as they are written out there, with names filled in.

use std::time::Duration;

const BUILD: &str = include_str!("../../../demo/build.yaml");
const NIGHTLY: &str = include_str!("../../../demo/nightly.yaml");
const HOOK: &str = include_str!("../../../demo/hook.yaml");
/// The policy of the hooks.
pub(super) const HOOKS_POLICY: &str = include_str!("../../../demo/hooks-policy.yaml");

/// What the simulated node plays for a pod: how long it runs, how it ends, what it logs.
#[derive(Clone, Debug)]
pub(super) struct Play {
    pub run: Duration,
    pub exit: i32,
    pub logs: String,
}

impl Play {
    fn annotations(&self) -> String {
        format!(
            "\"e2e.job-handler.io/run\": \"{}ms\", \"e2e.job-handler.io/exit-code\": \"{}\", \"e2e.job-handler.io/log\": {}",
            self.run.as_millis(),
            self.exit,
            serde_json::Value::from(self.logs.as_str()),
        )
    }
}

pub(super) fn build(name: &str, parser: &str, play: &Play) -> String {
    fill(BUILD, &[("$NAME", name), ("$PARSER", parser), ("$PLAY", &play.annotations())])
}

pub(super) fn nightly(name: &str, parser: &str, play: &Play) -> String {
    fill(NIGHTLY, &[("$NAME", name), ("$PARSER", parser), ("$PLAY", &play.annotations())])
}

pub(super) fn hook(name: &str, namespace: &str, instance: &str, play: &Play) -> String {
    fill(
        HOOK,
        &[
            ("$NAMESPACE", namespace),
            ("$NAME", name),
            ("$INSTANCE", instance),
            ("$PLAY", &play.annotations()),
        ],
    )
}

/// Fills in all but the leading comment, which explains the placeholders.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let body = template.lines().skip_while(|line| line.starts_with('#')).collect::<Vec<_>>().join("\n");
    values.iter().fold(body, |text, (key, value)| text.replace(key, value))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::{CronJob, Job};

    use super::*;

    #[test]
    fn every_manifest_is_what_it_says() {
        let play = Play { run: Duration::from_secs(2), exit: 0, logs: "a \"quoted\" line\n".into() };
        let job: Job = serde_norway::from_str(&build("b-1", "p-1", &play)).unwrap();
        assert_eq!(job.metadata.name.as_deref(), Some("b-1"));
        let template = job.spec.unwrap().template.metadata.unwrap().annotations.unwrap();
        assert_eq!(template["e2e.job-handler.io/log"], "a \"quoted\" line\n");
        let _: Job = serde_norway::from_str(&hook("h-1", "gitops", "shop", &play)).unwrap();
        let _: CronJob = serde_norway::from_str(&nightly("n-1", "p-1", &play)).unwrap();
    }
}
