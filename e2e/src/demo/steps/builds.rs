//! Image builds under `samples/builds.yaml`: stamps, the limit, duplicates, and why a Job was refused.

use std::time::{Duration, Instant};

use crate::demo::runner::{DemoRunner, StepError};
use crate::demo::steps::manifests::{self, SimulatedRun};
use crate::demo::steps::{expect, refused_with, succeeded};

/// The limit in the sample policy.
const SLOTS: usize = 10;
/// The reason in every refusal by that limit.
const REASON: &str = "concurrent job limit reached: 10 active jobs, max allowed: 10";

/// How a build runs: until the step `results` lets it end.
fn build_run(fails: bool) -> SimulatedRun {
    let last = if fails { "error building image: parser.go:42: undefined: Token" } else { "Pushed image" };
    let logs =
        format!("INFO[0000] Retrieving image manifest golang:1.26\nINFO[0003] RUN go build ./...\n{last}\n");
    SimulatedRun::new(Duration::from_secs(3600), i32::from(fails), &logs)
}

/// A build without settings gets a TTL, a deadline, a backoff limit, labels and a group.
pub(in crate::demo) async fn stamp(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    let (name, parser) = (runner.unique_name("build-1"), runner.unique_name("parser-1"));
    let run = build_run(false);
    let manifest = manifests::build(&name, &parser, &run);
    runner.print("   The manifest has no TTL, no deadline and no retry limit:\n");
    // Without the lines that only the simulated node reads.
    let for_node = |line: &&str| line.contains("e2e.") || *line == "    metadata:";
    for line in manifest.lines().filter(|line| !for_node(line)).take(14) {
        runner.print(&format!("     {line}\n"));
    }
    let begun = Instant::now();
    let created = runner.kubectl_file("create", "build-1.yaml", &manifest).await?;
    let took = begun.elapsed();
    succeeded(created)?;
    runner.record_time("kubectl create of a build", took, Some(2.0));
    let stamped = check_stamps(runner, &name, &format!("4711.{parser}")).await;
    if stamped.is_ok() {
        runner.builds.running.push(name);
    } else {
        delete_unexpected(runner, &name).await?;
    }
    stamped
}

async fn check_stamps(runner: &mut DemoRunner<'_>, name: &str, group: &str) -> Result<(), StepError> {
    let fields = "jsonpath={.spec.activeDeadlineSeconds} {.spec.backoffLimit} {.spec.ttlSecondsAfterFinished} \
                  {.metadata.annotations.job-handler/ttl-seconds-after-finished} \
                  {.metadata.labels.job-handler/group} \
                  {.spec.template.metadata.labels.job-handler/group}\n\
                  {.metadata.annotations.job-handler/stamped}\n";
    let job = runner.kubectl(&["get", "job", name, "-n", "ci", "-o", fields]).await?;
    let expected = format!("1800 0 604800 86400 {group} {group}\n");
    expect(job.stdout.starts_with(&expected), &format!("the stamps `{}`", expected.trim_end()), &job)?;
    runner.fact("the deadline is 1800 s, there are no retries");
    runner.fact(
        "the TTL is 604800 s until the result is stored, so that Kubernetes cannot delete the Job before; then 86400 s",
    );
    runner.fact(format!("the Job and its pods have the label job-handler/group: {group}"));
    let explained = job.stdout.lines().nth(1).is_some_and(|line| line.contains("JobPolicy ci/builds"));
    expect(explained, "an explanation that names JobPolicy ci/builds", &job)?;
    runner.fact("the annotation job-handler/stamped lists what was set, and by which policy");
    Ok(())
}

/// Deletes a Job that should not exist or is not as expected, so that the next steps are not disturbed.
async fn delete_unexpected(runner: &mut DemoRunner<'_>, name: &str) -> Result<(), StepError> {
    runner.kubectl_quietly(&["delete", "job", name, "-n", "ci", "--wait=true"]).await.map(drop)
}

/// Ten builds are admitted, the eleventh is refused.
pub(in crate::demo) async fn limit(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    while runner.builds.running.len() < SLOTS {
        let n = runner.builds.running.len() + 1;
        let (name, parser) =
            (runner.unique_name(&format!("build-{n}")), runner.unique_name(&format!("parser-{n}")));
        let run = build_run(n == SLOTS);
        let manifest = manifests::build(&name, &parser, &run);
        succeeded(runner.kubectl_file("create", &format!("build-{n}.yaml"), &manifest).await?)?;
        runner.builds.running.push(name);
    }
    runner.fact("ten builds were admitted");
    let name = runner.unique_name("build-11");
    let run = build_run(false);
    let manifest = manifests::build(&name, &runner.unique_name("parser-11"), &run);
    let begun = Instant::now();
    let eleventh = runner.kubectl_file("create", "build-11.yaml", &manifest).await?;
    let took = begun.elapsed();
    if eleventh.ok {
        delete_unexpected(runner, &name).await?;
    }
    refused_with(&eleventh, REASON)?;
    runner.record_time("refusing the eleventh build", took, Some(2.0));
    runner.builds.refused = Some(name);
    runner.fact("the eleventh was refused, and the message says why");
    Ok(())
}

/// A second Job of a group that has an active one is refused.
pub(in crate::demo) async fn duplicate(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    // Both limits are full. The refusal has to come from the more specific one, which helps the author more.
    let Some(running) = runner.builds.running.first().cloned() else {
        return Err("this step needs a running build: run the step `stamp` first".into());
    };
    let parser = running.replacen("build", "parser", 1);
    let name = runner.unique_name("build-1-once-more");
    let run = SimulatedRun::new(Duration::from_secs(1), 0, "");
    let manifest = manifests::build(&name, &parser, &run);
    let again = runner.kubectl_file("create", "build-1-once-more.yaml", &manifest).await?;
    if again.ok {
        delete_unexpected(runner, &name).await?;
    }
    refused_with(&again, "one-per-parser")?;
    expect(again.stderr.contains(&running), &format!("a refusal that names {running}"), &again)?;
    runner.fact(format!("refused by the limit one-per-parser, because {running} is still active"));
    Ok(())
}

/// The Events of the refused name, of the policy and of the CronJob show why Jobs were refused.
pub(in crate::demo) async fn reasons(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    let name = runner.unique_name("nightly");
    let run = SimulatedRun::new(Duration::from_secs(1), 0, "");
    let manifest = manifests::nightly(&name, "nightly", &run);
    succeeded(runner.kubectl_file("create", "nightly.yaml", &manifest).await?)?;
    let refused =
        runner.builds.refused.clone().ok_or("this step needs a refused build: run the step `limit` first")?;
    let patience = runner.options.patience;

    let events_for = format!("job/{refused}");
    let for_job = ["events", "-n", "ci", "--for", events_for.as_str()];
    runner
        .wait_for_output("the Event about the refused name", patience, &for_job, |output| {
            output.stdout.contains(REASON)
        })
        .await?;
    let output = runner.kubectl(&for_job).await?;
    expect(output.stdout.contains(REASON), REASON, &output)?;
    runner.fact(format!("kubectl events --for job/{refused} shows the reason"));

    let describe_policy = ["describe", "jobpolicy", "builds", "-n", "ci"];
    runner
        .wait_for_output("the policy's Event", patience, &describe_policy, |output| {
            output.stdout.contains(REASON)
        })
        .await?;
    let output = runner.kubectl(&describe_policy).await?;
    expect(output.stdout.contains("JobRefused"), "an Event JobRefused", &output)?;
    runner.fact("kubectl describe jobpolicy builds shows it");
    cron_job_reason(runner, &name).await
}

async fn cron_job_reason(runner: &mut DemoRunner<'_>, name: &str) -> Result<(), StepError> {
    runner.print("   Waiting for the CronJob's next run, at the full minute …\n");
    let describe = ["describe", "cronjob", name, "-n", "ci"];
    let patience = runner.options.patience + Duration::from_secs(60);
    let waited = runner
        .wait_for_output("the CronJob's Event", patience, &describe, |output| {
            let events = output.stdout.split("\nEvents:").nth(1).unwrap_or_default();
            events.contains("JobRefused") && events.contains(REASON)
        })
        .await;
    let output = runner.kubectl(&describe).await?;
    // Otherwise it would create a Job every minute during the next steps.
    runner.kubectl_quietly(&["delete", "cronjob", name, "-n", "ci", "--wait=false"]).await?;
    waited?;
    expect(output.stdout.contains("JobRefused"), "an Event JobRefused", &output)?;
    runner.fact("kubectl describe cronjob shows it too: users need not know about job-handler");
    Ok(())
}
