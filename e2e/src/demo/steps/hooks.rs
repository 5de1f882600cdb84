//! GitOps hooks: pruned to the newest, failed ones gone at once; and the one-shot cleaner.

use std::time::{Duration, Instant};

use super::{
    expect,
    manifests::{self, HOOKS_POLICY, Play},
    succeeded,
};
use crate::demo::runner::{Problem, Story};

const NAMESPACE: &str = "gitops";
const LEGACY: &str = "legacy";

/// Three syncs of an application, one of them fails.
pub(in super::super) async fn prune(story: &mut Story<'_>) -> Result<(), Problem> {
    succeeded(story.apply("apply", "hooks-policy.yaml", HOOKS_POLICY).await?)?;
    let ready = ["wait", "jobpolicy/hooks", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=20s"];
    succeeded(story.kubectl(&ready).await?)?;

    let instance = story.name("shop");
    let selector = format!("argocd.argoproj.io/instance={instance}");
    let quick = Play { run: Duration::from_millis(500), exit: 0, logs: "migrated to 42\n".into() };
    let patience = story.options.patience;
    for sync in ["one", "two"] {
        let name = story.name(&format!("migrate-{sync}"));
        let hook = manifests::hook(&name, NAMESPACE, &instance, &quick);
        succeeded(story.apply("create", &format!("hook-{sync}.yaml"), &hook).await?)?;
        let harvested = ["get", "configmap", &format!("{name}-results"), "-n", NAMESPACE, "-o", "name"];
        story
            .until("its result", patience, || async {
                let ran = story.look(&harvested).await?;
                Ok(if ran.ok { Ok(()) } else { Err(ran.screen()) })
            })
            .await?;
    }
    let list = ["get", "jobs", "-n", NAMESPACE, "-l", &selector, "-o", "name"];
    let newest = format!("job.batch/{}", story.name("migrate-two"));
    let begun = Instant::now();
    let only_newest = story
        .until("only the newest hook", patience, || async {
            let ran = story.look(&list).await?;
            Ok(if ran.stdout.trim() == newest { Ok(()) } else { Err(ran.screen()) })
        })
        .await;
    story.time("pruning the older hook", begun.elapsed(), Some(5.0));
    story.kubectl(&["get", "jobs", "-n", NAMESPACE, "-l", &selector]).await?;
    only_newest?;
    story.fact("two syncs ran, the newest Job is left, both results are kept");

    let name = story.name("migrate-broken");
    let fails =
        Play { run: Duration::from_millis(500), exit: 3, logs: "relation \"orders\" is locked\n".into() };
    let hook = manifests::hook(&name, NAMESPACE, &story.name("broken"), &fails);
    succeeded(story.apply("create", "hook-broken.yaml", &hook).await?)?;
    let result =
        ["get", "configmap", &format!("{name}-results"), "-n", NAMESPACE, "-o", "jsonpath={.data.logs}"];
    story
        .until("its result", patience, || async {
            let ran = story.look(&result).await?;
            Ok(if ran.ok { Ok(()) } else { Err(ran.screen()) })
        })
        .await?;
    let harvested = Instant::now();
    let job = ["get", "job", &name, "-n", NAMESPACE, "-o", "name"];
    story
        .until("the failed hook to go", patience, || async {
            let ran = story.look(&job).await?;
            Ok(if ran.stderr.contains("NotFound") { Ok(()) } else { Err(ran.screen()) })
        })
        .await?;
    story.time("failed-Job cleanup after the harvest", harvested.elapsed(), Some(5.0));
    let logs = story.kubectl(&result).await?;
    expect(logs.stdout.contains("relation \"orders\" is locked"), "the failed hook's log", &logs)?;
    story.fact("the failed hook is gone, its log is not");
    Ok(())
}

/// Jobs under no policy: a dry run tells what would go.
pub(in super::super) async fn sweep(story: &mut Story<'_>) -> Result<(), Problem> {
    let instance = story.name("legacy-shop");
    let quick = Play { run: Duration::from_millis(200), exit: 0, logs: String::new() };
    let names = ["a", "b", "c"].map(|n| story.name(&format!("hook-{n}")));
    for name in &names {
        let hook = manifests::hook(name, LEGACY, &instance, &quick);
        succeeded(story.apply("create", &format!("{name}.yaml"), &hook).await?)?;
    }
    let all = names.clone().map(|name| format!("job/{name}"));
    let mut wait = vec!["wait", "-n", LEGACY, "--for=condition=Complete", "--timeout=20s"];
    wait.extend(all.iter().map(String::as_str));
    succeeded(story.kubectl(&wait).await?)?;

    let args =
        ["prune", "--group-label", "argocd.argoproj.io/instance", "--namespace", LEGACY, "--dry-run=client"];
    let ran = story.program(&format!("job-handler-sink {}", args.join(" ")), &args).await?;
    let ran = succeeded(ran)?;
    let lines = |verb: &str| ran.stdout.lines().filter(|l| l.contains(verb) && l.contains(&instance)).count();
    expect((lines("SKIP"), lines("PURGE")) == (1, 2), "one SKIP and two PURGE lines", &ran)?;
    let left = story.look(&["get", "jobs", "-n", LEGACY, "-o", "name"]).await?;
    expect(names.iter().all(|n| left.stdout.contains(n.as_str())), "nothing deleted by a dry run", &left)?;
    story.fact("one stays, two would go, and nothing went: it was a dry run");
    Ok(())
}
