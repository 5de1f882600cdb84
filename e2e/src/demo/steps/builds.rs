//! Image builds under `samples/builds.yaml`: stamps, the limit, duplicates, and why a Job was refused.

use std::time::{Duration, Instant};

use super::{
    expect,
    manifests::{self, Play},
    refused_with, succeeded,
};
use crate::demo::runner::{Problem, Story};

/// The limit of the sample.
const SLOTS: usize = 10;
/// What everyone who is refused reads.
const REASON: &str = "concurrent job limit reached: 10 active jobs, max allowed: 10";

/// The builds that were created so far.
#[derive(Debug, Default)]
pub(in super::super) struct Builds {
    /// Names of the running ones; the last one of the first ten fails.
    pub(super) running: Vec<String>,
    /// The last one that was refused.
    refused: Option<String>,
    /// When the first one ends at the earliest.
    pub(super) until: Option<Instant>,
}

impl Builds {
    fn play(&mut self, story_run: Duration, fails: bool) -> Play {
        let until = *self.until.get_or_insert_with(|| Instant::now() + story_run);
        let run = until.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let last =
            if fails { "error building image: parser.go:42: undefined: Token" } else { "Pushed image" };
        Play {
            run,
            exit: i32::from(fails),
            logs: format!(
                "INFO[0000] Retrieving image manifest golang:1.26\nINFO[0003] RUN go build ./...\n{last}\n"
            ),
        }
    }
}

/// TTL, deadline, backoff limit, labels and group.
pub(in super::super) async fn stamp(story: &mut Story<'_>) -> Result<(), Problem> {
    let name = story.name("build-1");
    let parser = story.name("parser-1");
    let run = story.options.builds_run;
    let play = story.builds.play(run, false);
    let manifest = manifests::build(&name, &parser, &play);
    story.say("   Its author wrote no TTL, no deadline and no retry limit:\n");
    // Without what only the simulated node reads.
    let node_reads = |line: &&str| line.contains("e2e.") || *line == "    metadata:";
    for line in manifest.lines().filter(|line| !node_reads(line)).take(14) {
        story.say(&format!("     {line}\n"));
    }
    let begun = Instant::now();
    let created = story.apply("create", "build-1.yaml", &manifest).await?;
    let took = begun.elapsed();
    succeeded(created)?;
    story.time("creating a build, as kubectl sees it", took, Some(2.0));
    let stamped = stamps(story, &name, &format!("4711.{parser}")).await;
    if stamped.is_ok() {
        story.builds.running.push(name);
    } else {
        take_back(story, &name).await?;
    }
    stamped
}

async fn stamps(story: &mut Story<'_>, name: &str, group: &str) -> Result<(), Problem> {
    let fields = "jsonpath={.spec.activeDeadlineSeconds} {.spec.backoffLimit} {.spec.ttlSecondsAfterFinished} \
                  {.metadata.annotations.job-handler/ttl-seconds-after-finished} \
                  {.metadata.labels.job-handler/group} \
                  {.spec.template.metadata.labels.job-handler/group}\n\
                  {.metadata.annotations.job-handler/stamped}\n";
    let after = story.kubectl(&["get", "job", name, "-n", "ci", "-o", fields]).await?;
    let told = format!("1800 0 604800 86400 {group} {group}\n");
    expect(after.stdout.starts_with(&told), &format!("the stamps `{}`", told.trim_end()), &after)?;
    story.fact("deadline 1800 s, no retries");
    story.fact("its TTL of 86400 s begins once the result is stored (until then 604800 s guard the harvest)");
    story.fact(format!("it is a run of group {group}, pods included"));
    let explained = after.stdout.lines().nth(1).is_some_and(|line| line.contains("JobPolicy ci/builds"));
    expect(explained, "an explanation that names JobPolicy ci/builds", &after)?;
    story.fact("the annotation job-handler/stamped says what was set, and by which policy");
    Ok(())
}

/// Deletes what was created but not as told, so that the story can go on.
async fn take_back(story: &mut Story<'_>, name: &str) -> Result<(), Problem> {
    story.look(&["delete", "job", name, "-n", "ci", "--wait=true"]).await.map(drop)
}

/// Ten are admitted, the eleventh is not.
pub(in super::super) async fn limit(story: &mut Story<'_>) -> Result<(), Problem> {
    while story.builds.running.len() < SLOTS {
        let n = story.builds.running.len() + 1;
        let (name, parser) = (story.name(&format!("build-{n}")), story.name(&format!("parser-{n}")));
        let run = story.options.builds_run;
        let play = story.builds.play(run, n == SLOTS);
        let file = format!("build-{n}.yaml");
        let created = story.apply("create", &file, &manifests::build(&name, &parser, &play)).await?;
        succeeded(created)?;
        story.builds.running.push(name);
    }
    story.fact("ten builds were admitted");
    let name = story.name("build-11");
    let run = story.options.builds_run;
    let play = story.builds.play(run, false);
    let manifest = manifests::build(&name, &story.name("parser-11"), &play);
    let begun = Instant::now();
    let eleventh = story.apply("create", "build-11.yaml", &manifest).await?;
    let took = begun.elapsed();
    if eleventh.ok {
        take_back(story, &name).await?;
    }
    refused_with(&eleventh, REASON)?;
    story.time("refusing the eleventh", took, Some(2.0));
    story.builds.refused = Some(name);
    story.fact("the eleventh was refused, and its author reads why");
    Ok(())
}

/// A second run of a group that is active.
pub(in super::super) async fn duplicate(story: &mut Story<'_>) -> Result<(), Problem> {
    // Both limits are full now; the more specific one has to answer, for it tells the author more.
    let Some(running) = story.builds.running.first().cloned() else {
        return Err("no build runs: the step «stamp» comes first".into());
    };
    let parser = running.replacen("build", "parser", 1);
    let name = story.name("build-1-once-more");
    let play = Play { run: Duration::from_secs(1), exit: 0, logs: String::new() };
    let again =
        story.apply("create", "build-1-once-more.yaml", &manifests::build(&name, &parser, &play)).await?;
    if again.ok {
        take_back(story, &name).await?;
    }
    refused_with(&again, "one-per-parser")?;
    expect(again.stderr.contains(&running), &format!("the refusal to name {running}"), &again)?;
    story.fact(format!("refused by the limit one-per-parser: {running} is active"));
    Ok(())
}

/// The CronJob is refused at the full minute; policy, owner and name answer why.
pub(in super::super) async fn reasons(story: &mut Story<'_>) -> Result<(), Problem> {
    let name = story.name("nightly");
    let play = Play { run: Duration::from_secs(1), exit: 0, logs: String::new() };
    let manifest = manifests::nightly(&name, "nightly", &play);
    succeeded(story.apply("create", "nightly.yaml", &manifest).await?)?;
    let refused = story.builds.refused.clone().ok_or("nothing was refused: the step «limit» comes first")?;

    let events_for = format!("job/{refused}");
    let for_job = ["events", "-n", "ci", "--for", events_for.as_str()];
    let patience = story.options.patience;
    story.until("the refused name's Event", patience, || has(story, &for_job, REASON)).await?;
    let ran = story.kubectl(&for_job).await?;
    expect(ran.stdout.contains(REASON), REASON, &ran)?;
    story.fact(format!("kubectl events --for job/{refused} answers"));

    let describe_policy = ["describe", "jobpolicy", "builds", "-n", "ci"];
    story.until("the policy's Event", patience, || has(story, &describe_policy, REASON)).await?;
    let ran = story.kubectl(&["describe", "jobpolicy", "builds", "-n", "ci"]).await?;
    expect(ran.stdout.contains("JobRefused"), "an Event JobRefused", &ran)?;
    story.fact("kubectl describe jobpolicy builds answers");

    story.say("   The CronJob comes round at the full minute …\n");
    let describe = ["describe", "cronjob", name.as_str(), "-n", "ci"];
    let patience = patience + Duration::from_secs(60);
    let told = ["JobRefused", REASON];
    let waited = story
        .until("the CronJob's Event", patience, || async {
            let ran = story.look(&describe).await?;
            let events = ran.stdout.split("\nEvents:").nth(1).unwrap_or_default().to_owned();
            Ok(if told.iter().all(|text| events.contains(text)) { Ok(()) } else { Err(events) })
        })
        .await;
    let shown = story.kubectl(&describe).await?;
    // It would go on every minute; the story is done with it.
    story.look(&["delete", "cronjob", &name, "-n", "ci", "--wait=false"]).await?;
    waited?;
    expect(shown.stdout.contains("JobRefused"), "an Event JobRefused", &shown)?;
    story.fact("kubectl describe cronjob answers too: nobody has to know that job-handler exists");
    Ok(())
}

async fn has(story: &Story<'_>, args: &[&str], text: &str) -> Result<Result<(), String>, Problem> {
    let ran = story.look(args).await?;
    Ok(if ran.stdout.contains(text) { Ok(()) } else { Err(ran.screen()) })
}
