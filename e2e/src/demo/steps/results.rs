//! What is kept of a success and of a failure.

use std::time::{Duration, Instant};

use super::{expect, succeeded};
use crate::demo::runner::{Problem, Story};

/// The builds end; one of them badly.
pub(in super::super) async fn results(story: &mut Story<'_>) -> Result<(), Problem> {
    let builds = &story.builds;
    let (Some(good), Some(bad)) = (builds.running.first().cloned(), builds.running.get(9).cloned()) else {
        return Err("ten builds have to run: the step «limit» comes first".into());
    };
    let still = builds.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
    story.say(&format!("   The builds end in {} s …\n", still.as_secs()));
    let patience = still + story.options.patience;
    for (name, status, line) in [(&good, "completed", "Pushed image"), (&bad, "failed", "undefined: Token")] {
        let result = format!("{name}-results");
        let get = ["get", "configmap", &result, "-n", "ci", "-o", "jsonpath={.data.status}"];
        story
            .until(&format!("configmap {result}"), patience, || async {
                let ran = story.look(&get).await?;
                Ok(if ran.ok && ran.stdout == status { Ok(()) } else { Err(ran.screen()) })
            })
            .await?;
        let told = "jsonpath={.data.job-name}: {.data.status} at {.data.completion-time}\n{.data.logs}\n";
        let ran = succeeded(story.kubectl(&["get", "configmap", &result, "-n", "ci", "-o", told]).await?)?;
        expect(
            ran.stdout.starts_with(&format!("{name}: {status} at 2")),
            &format!("{name}: {status}"),
            &ran,
        )?;
        expect(ran.stdout.contains("=== Pod: "), "a log section", &ran)?;
        expect(ran.stdout.contains(line), &format!("the log line `{line}`"), &ran)?;
        story.fact(format!("{name} {status}: outcome and logs are in configmap {result}"));
    }
    let marks = "jsonpath={.metadata.annotations.job-handler/status} {.metadata.annotations.job-handler/results} \
                 {.spec.ttlSecondsAfterFinished}";
    let get = ["get", "job", &good, "-n", "ci", "-o", marks];
    let told = format!("completed {good}-results 86400");
    story
        .until("the Job's marks", story.options.patience, || async {
            let ran = story.look(&get).await?;
            Ok(if ran.stdout == told { Ok(()) } else { Err(ran.screen()) })
        })
        .await?;
    story.kubectl(&get).await?;
    story.fact("the Job is marked, and its own TTL of 86400 s has begun");
    Ok(())
}

/// Failures as Events.
pub(in super::super) async fn warnings(story: &mut Story<'_>) -> Result<(), Problem> {
    let Some(bad) = story.builds.running.get(9).cloned() else {
        return Err("a build has to fail: the step «results» comes first".into());
    };
    let list = ["get", "events", "-n", "ci", "--field-selector", "reason=JobProcessing,type=Warning"];
    let listed = story
        .until("the failed build's Event", story.options.patience, || async {
            let ran = story.look(&list).await?;
            Ok(if ran.stdout.contains(&bad) { Ok(()) } else { Err(ran.screen()) })
        })
        .await;
    let ran = story.kubectl(&list).await?;
    listed?;
    expect(!ran.stdout.contains("completed"), "failures only", &ran)?;
    story.fact(format!("one line, for {bad}"));
    Ok(())
}
