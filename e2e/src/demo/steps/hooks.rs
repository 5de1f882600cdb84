//! GitOps hooks: the policy deletes older and failed Jobs; the `prune` command does so without a policy.

use std::time::{Duration, Instant};

use crate::demo::runner::{DemoRunner, StepError};
use crate::demo::steps::manifests::{self, HOOKS_POLICY, SimulatedRun};
use crate::demo::steps::{expect, succeeded};

const NAMESPACE: &str = "gitops";
const LEGACY: &str = "legacy";

/// Two syncs of an application that succeed, and one of another that fails.
pub(in crate::demo) async fn prune(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    succeeded(runner.kubectl_file("apply", "hooks-policy.yaml", HOOKS_POLICY).await?)?;
    let ready = ["wait", "jobpolicy/hooks", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=20s"];
    succeeded(runner.kubectl(&ready).await?)?;
    prune_older(runner).await?;
    delete_failed(runner).await
}

async fn prune_older(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    let instance = runner.unique_name("shop");
    let selector = format!("argocd.argoproj.io/instance={instance}");
    let quick = SimulatedRun::new(Duration::from_millis(500), 0, "migrated to 42\n");
    let patience = runner.options.patience;
    for sync in ["one", "two"] {
        let name = runner.unique_name(&format!("migrate-{sync}"));
        let hook = manifests::hook(&name, NAMESPACE, &instance, &quick);
        succeeded(runner.kubectl_file("create", &format!("hook-{sync}.yaml"), &hook).await?)?;
        let result = ["get", "configmap", &format!("{name}-results"), "-n", NAMESPACE, "-o", "name"];
        runner.wait_for_output("its result", patience, &result, |output| output.ok).await?;
    }
    let list = ["get", "jobs", "-n", NAMESPACE, "-l", &selector, "-o", "name"];
    let newest = format!("job.batch/{}", runner.unique_name("migrate-two"));
    let begun = Instant::now();
    let pruned = runner
        .wait_for_output("the older hook Job to be deleted", patience, &list, |output| {
            output.stdout.trim() == newest
        })
        .await;
    runner.record_time("pruning the older hook Job", begun.elapsed(), Some(5.0));
    runner.kubectl(&["get", "jobs", "-n", NAMESPACE, "-l", &selector]).await?;
    pruned?;
    runner.fact("after two syncs only the newest Job exists; both results are stored");
    Ok(())
}

async fn delete_failed(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    let name = runner.unique_name("migrate-broken");
    let fails = SimulatedRun::new(Duration::from_millis(500), 3, "relation \"orders\" is locked\n");
    let hook = manifests::hook(&name, NAMESPACE, &runner.unique_name("broken"), &fails);
    succeeded(runner.kubectl_file("create", "hook-broken.yaml", &hook).await?)?;
    let patience = runner.options.patience;
    let result =
        ["get", "configmap", &format!("{name}-results"), "-n", NAMESPACE, "-o", "jsonpath={.data.logs}"];
    runner.wait_for_output("its result", patience, &result, |output| output.ok).await?;
    let stored = Instant::now();
    let job = ["get", "job", &name, "-n", NAMESPACE, "-o", "name"];
    runner
        .wait_for_output("the failed hook Job to be deleted", patience, &job, |output| {
            output.stderr.contains("NotFound")
        })
        .await?;
    runner.record_time("deleting a failed Job after its result is stored", stored.elapsed(), Some(5.0));
    let logs = runner.kubectl(&result).await?;
    expect(logs.stdout.contains("relation \"orders\" is locked"), "the failed hook's log", &logs)?;
    runner.fact("the failed hook Job is deleted, its log is stored");
    Ok(())
}

/// `job-handler-sink prune --dry-run=client` on Jobs that no policy selects.
pub(in crate::demo) async fn prune_command(runner: &mut DemoRunner<'_>) -> Result<(), StepError> {
    let instance = runner.unique_name("legacy-shop");
    let quick = SimulatedRun::new(Duration::from_millis(200), 0, "");
    let names = ["a", "b", "c"].map(|n| runner.unique_name(&format!("hook-{n}")));
    for name in &names {
        let hook = manifests::hook(name, LEGACY, &instance, &quick);
        succeeded(runner.kubectl_file("create", &format!("{name}.yaml"), &hook).await?)?;
    }
    let all = names.clone().map(|name| format!("job/{name}"));
    let mut wait = vec!["wait", "-n", LEGACY, "--for=condition=Complete", "--timeout=20s"];
    wait.extend(all.iter().map(String::as_str));
    succeeded(runner.kubectl(&wait).await?)?;

    let args =
        ["prune", "--group-label", "argocd.argoproj.io/instance", "--namespace", LEGACY, "--dry-run=client"];
    let output = succeeded(runner.sink(&args).await?)?;
    let lines = |verb: &str| {
        output.stdout.lines().filter(|line| line.contains(verb) && line.contains(&instance)).count()
    };
    expect((lines("SKIP"), lines("PURGE")) == (1, 2), "one SKIP and two PURGE lines", &output)?;
    let left = runner.kubectl_quietly(&["get", "jobs", "-n", LEGACY, "-o", "name"]).await?;
    expect(names.iter().all(|n| left.stdout.contains(n.as_str())), "a dry run that deletes nothing", &left)?;
    runner.fact("it would keep the newest Job and delete two; as a dry run it deleted nothing");
    Ok(())
}
