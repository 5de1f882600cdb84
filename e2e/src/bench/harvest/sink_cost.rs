//! The cost of the sink: memory, processor time while idle, restarts.

use std::time::{Duration, Instant};

use crate::bench::harvest::cluster::{HarvestCluster, PATIENCE};
use crate::bench::harvest::measure::HarvestSizes;
use crate::bench::machine::{self, ProcessMemory};
use crate::bench::seed::{SeedJobs, complete, seed};
use crate::bench::table::{Aim, Table, figure, mib, to_mib};
use crate::cluster::Component;
use crate::harness::error::{Error, Result};

/// Rows about memory before and after all Jobs were created.
pub(super) fn memory(table: &mut Table, sizes: HarvestSizes, empty: ProcessMemory, full: ProcessMemory) {
    let total = sizes.total_jobs();
    let per_job = full.now.saturating_sub(empty.now) as f64 / 1024.0 / total as f64;
    add_row(table, "memory with no Job", mib(empty.now), "MiB");
    add_row(table, &format!("memory after {total} Jobs"), mib(full.now), "MiB");
    add_row(table, &format!("peak memory at {total} Jobs"), mib(full.peak), "MiB");
    add_row(table, "memory per Job", figure(per_job), "KiB");
    // The aim is defined for two numbers of Jobs, and interpolated and extrapolated linearly.
    let limit = if total <= 10_000 { 80.0 } else { 80.0 + 170.0 * (total as f64 - 10_000.0) / 40_000.0 };
    let peak = to_mib(full.peak);
    table.aims.push(Aim {
        what: format!("a peak below {} MiB with {total} Jobs (80 at 10000, 250 at 50000)", figure(limit)),
        found: figure(peak),
        met: peak < limit,
    });
    table.notes.push(
        "Memory is VmRSS and VmHWM of the sink's process with the Jobs of all rounds, those of the loop included, \
         because the sink watches every Job. Its cache has the fields of a Job that it needs, without the pod template, and \
         the name of each result."
            .to_owned(),
    );
}

/// One Job with a log that is too large to be held in memory.
pub(super) async fn large_log(
    bench: &HarvestCluster,
    namespace: &str,
    sizes: HarvestSizes,
    table: &mut Table,
) -> Result<()> {
    let sink = bench.sink();
    let large = SeedJobs { log_bytes: Some(sizes.large), ..SeedJobs::with_logs(namespace, "large", 1) };
    seed(&bench.cluster, &large).await?;
    machine::reset_peak(sink)?;
    let before = machine::memory(sink)?;
    let begin = Instant::now();
    complete(&bench.cluster.client(), namespace, &large.name(0)).await?;
    let manifest = bench.wait_result(namespace, &large.name(0)).await?;
    let (elapsed, after) = (begin.elapsed(), machine::memory(sink)?);
    let length = &manifest["pods"][0]["containers"][0]["logs"][0]["length"];
    if *length != sizes.large {
        return Err(Error::Invalid(format!("expected {} bytes of log, the sink read {length}", sizes.large)));
    }
    let what = format!("one log of {} MiB", sizes.large >> 20);
    add_row(table, &format!("{what}, stored after"), figure(elapsed.as_secs_f64()), "s");
    let more = after.peak.saturating_sub(before.now);
    add_row(table, &format!("{what}, additional memory"), mib(more), "MiB");
    Ok(())
}

/// The cost of an idle pair, of a restart of the apiserver, and of a restart of the sink.
pub(super) async fn idle_and_restarts(
    bench: &HarvestCluster,
    namespace: &str,
    sizes: HarvestSizes,
    table: &mut Table,
) -> Result<()> {
    let last = bench.seed(namespace, "last", 2, false).await?;
    let processes = [("sink", bench.sink()), ("webhook", bench.pair.webhook(0).process().id())];
    idle(processes, sizes.idle, table).await?;
    apiserver_restart(bench, processes, namespace, &last.name(0), table).await?;
    sink_restart(bench, namespace, &last.name(1), table).await?;
    table.notes.push(
        "After a kill the next leader waits until the Lease has expired (15 s), which is most of «next result after» a \
         restart of the sink. After a restart of the apiserver most of it is the start of the apiserver."
            .to_owned(),
    );
    Ok(())
}

async fn idle(processes: [(&str, u32); 2], time: Duration, table: &mut Table) -> Result<()> {
    let before = processor_times(processes)?;
    // The length of the measurement, not a wait for a condition.
    tokio::time::sleep(time).await;
    let after = processor_times(processes)?;
    for (n, (name, id)) in processes.into_iter().enumerate() {
        let share = (after[n] - before[n]).as_secs_f64() / time.as_secs_f64() * 100.0;
        add_row(table, &format!("{name}: CPU while idle for {time:?}"), figure(share), "% of a core");
        add_row(table, &format!("{name}: memory afterwards"), mib(machine::memory(id)?.now), "MiB");
    }
    Ok(())
}

async fn apiserver_restart(
    bench: &HarvestCluster,
    processes: [(&str, u32); 2],
    namespace: &str,
    job: &str,
    table: &mut Table,
) -> Result<()> {
    const RESTART: &str = "apiserver restarted";
    for (_, id) in processes {
        machine::reset_peak(id)?;
    }
    let (begin, before) = (Instant::now(), processor_times(processes)?);
    bench.cluster.component(Component::Apiserver)?.restart().await?;
    complete(&bench.cluster.client(), namespace, job).await?;
    bench.wait_result(namespace, job).await?;
    let elapsed = begin.elapsed().as_secs_f64();
    add_row(table, &format!("{RESTART}: next result after"), figure(elapsed), "s");
    let after = processor_times(processes)?;
    for (n, (name, id)) in processes.into_iter().enumerate() {
        let used = (after[n] - before[n]).as_secs_f64() * 1e3;
        add_row(table, &format!("{RESTART}: CPU of the {name}"), figure(used), "ms");
        add_row(
            table,
            &format!("{RESTART}: peak memory of the {name}"),
            mib(machine::memory(id)?.peak),
            "MiB",
        );
    }
    Ok(())
}

async fn sink_restart(bench: &HarvestCluster, namespace: &str, job: &str, table: &mut Table) -> Result<()> {
    const RESTART: &str = "sink restarted";
    let begin = Instant::now();
    bench.pair.sink().restart()?;
    bench.pair.sink().wait_ready(PATIENCE).await?;
    add_row(table, &format!("{RESTART}: ready after"), figure(begin.elapsed().as_secs_f64()), "s");
    complete(&bench.cluster.client(), namespace, job).await?;
    bench.wait_result(namespace, job).await?;
    add_row(table, &format!("{RESTART}: next result after"), figure(begin.elapsed().as_secs_f64()), "s");
    let used = machine::processor_time(bench.sink())?.as_secs_f64() * 1e3;
    add_row(table, &format!("{RESTART}: CPU"), figure(used), "ms");
    add_row(table, &format!("{RESTART}: peak memory"), mib(machine::memory(bench.sink())?.peak), "MiB");
    Ok(())
}

fn processor_times(processes: [(&str, u32); 2]) -> Result<Vec<Duration>> {
    processes.iter().map(|(_, id)| machine::processor_time(*id)).collect()
}

fn add_row(table: &mut Table, what: &str, figure: String, unit: &str) {
    table.rows.push(vec![what.to_owned(), figure, unit.to_owned()]);
}
