//! The stored results of finished builds, and the Events of failed ones.

use crate::demo::runner::{DemoRunner, StepError};
use crate::demo::steps::{expect, succeeded};

/// The builds end, one of them with a failure; both results are read back.
pub(in crate::demo) async fn results(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    let builds = &runner.builds;
    let (Some(good), Some(bad)) = (builds.running.first().cloned(), builds.running.get(9).cloned()) else {
        return Err("this step needs ten running builds: run the step `limit` first".into());
    };
    runner.print("   The builds end …\n");
    runner.end_builds().await?;
    let patience = runner.options.patience;
    for (name, status, line) in [(&good, "completed", "Pushed image"), (&bad, "failed", "undefined: Token")] {
        let result = format!("{name}-results");
        let get = ["get", "configmap", &result, "-n", "ci", "-o", "jsonpath={.data.status}"];
        let what = format!("configmap {result}");
        runner.wait_for_output(&what, patience, &get, |output| output.ok && output.stdout == status).await?;
        let fields = "jsonpath={.data.job-name}: {.data.status} at {.data.completion-time}\n{.data.logs}\n";
        let output =
            succeeded(runner.kubectl(&["get", "configmap", &result, "-n", "ci", "-o", fields]).await?)?;
        expect(
            output.stdout.starts_with(&format!("{name}: {status} at 2")),
            &format!("{name}: {status}"),
            &output,
        )?;
        expect(output.stdout.contains("=== Pod: "), "a log section", &output)?;
        expect(output.stdout.contains(line), &format!("the log line `{line}`"), &output)?;
        runner.fact(format!("{name} {status}: its outcome and its logs are in configmap {result}"));
    }
    let fields = "jsonpath={.metadata.annotations.job-handler/status} {.metadata.annotations.job-handler/results} \
                  {.spec.ttlSecondsAfterFinished}";
    let get = ["get", "job", &good, "-n", "ci", "-o", fields];
    let expected = format!("completed {good}-results 86400");
    let what = "the annotations of the finished Job";
    runner.wait_for_output(what, patience, &get, |output| output.stdout == expected).await?;
    runner.kubectl(&get).await?;
    runner.fact("the Job's annotations name its result, and its TTL is 86400 s again");
    Ok(())
}

/// The failed build shows up as a Warning Event.
pub(in crate::demo) async fn warnings(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    let Some(bad) = runner.builds.running.get(9).cloned() else {
        return Err("this step needs a failed build: run the step `results` first".into());
    };
    let list = ["get", "events", "-n", "ci", "--field-selector", "reason=JobProcessing,type=Warning"];
    let patience = runner.options.patience;
    let listed = runner
        .wait_for_output("the failed build's Event", patience, &list, |output| output.stdout.contains(&bad))
        .await;
    let output = runner.kubectl(&list).await?;
    listed?;
    expect(!output.stdout.contains("completed"), "failures only", &output)?;
    runner.fact(format!("one Event, about {bad}"));
    Ok(())
}
