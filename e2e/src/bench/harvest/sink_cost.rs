//! What the sink costs: memory, processor time at rest, restarts.

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
    let present = sizes.present();
    let slope = full.now.saturating_sub(empty.now) as f64 / 1024.0 / present as f64;
    add_row(table, "memory with no Job", mib(empty.now), "MiB");
    add_row(table, &format!("memory after {present} Jobs"), mib(full.now), "MiB");
    add_row(table, &format!("peak memory at {present} Jobs"), mib(full.peak), "MiB");
    add_row(table, "memory per Job", figure(slope), "KiB");
    // The aim is set for two numbers of Jobs; between and beyond them it follows a line.
    let limit = if present <= 10_000 { 80.0 } else { 80.0 + 170.0 * (present as f64 - 10_000.0) / 40_000.0 };
    let peak = to_mib(full.peak);
    table.aims.push(Aim {
        what: format!(
            "less than {} MiB at the peak with {present} Jobs (80 at 10000, 250 at 50000)",
            figure(limit)
        ),
        found: figure(peak),
        met: peak < limit,
    });
    table.notes.push(
        "Memory is VmRSS and VmHWM of the sink's process with the Jobs of all rounds present, those of the loop included: \
         the sink watches every Job. Per Job it keeps what limits, plans and order need, not the template; per result its \
         name."
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
    add_row(table, &format!("{what}, memory on top"), mib(more), "MiB");
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
         restart of the sink. After a restart of the apiserver it is the apiserver's own start."
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
        add_row(table, &format!("{name}: processor while idle for {time:?}"), figure(share), "% of a core");
        add_row(table, &format!("{name}: memory after that"), mib(machine::memory(id)?.now), "MiB");
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
    const WHAT: &str = "apiserver restarted";
    for (_, id) in processes {
        machine::reset_peak(id)?;
    }
    let (begin, before) = (Instant::now(), processor_times(processes)?);
    bench.cluster.component(Component::Apiserver)?.restart().await?;
    complete(&bench.cluster.client(), namespace, job).await?;
    bench.wait_result(namespace, job).await?;
    let elapsed = begin.elapsed().as_secs_f64();
    add_row(table, &format!("{WHAT}: next result after"), figure(elapsed), "s");
    let after = processor_times(processes)?;
    for (n, (name, id)) in processes.into_iter().enumerate() {
        let used = (after[n] - before[n]).as_secs_f64() * 1e3;
        add_row(table, &format!("{WHAT}: processor of the {name}"), figure(used), "ms");
        add_row(table, &format!("{WHAT}: peak memory of the {name}"), mib(machine::memory(id)?.peak), "MiB");
    }
    Ok(())
}

async fn sink_restart(bench: &HarvestCluster, namespace: &str, job: &str, table: &mut Table) -> Result<()> {
    const WHAT: &str = "sink restarted";
    let begin = Instant::now();
    bench.pair.sink().restart()?;
    bench.pair.sink().wait_ready(PATIENCE).await?;
    add_row(table, &format!("{WHAT}: ready after"), figure(begin.elapsed().as_secs_f64()), "s");
    complete(&bench.cluster.client(), namespace, job).await?;
    bench.wait_result(namespace, job).await?;
    add_row(table, &format!("{WHAT}: next result after"), figure(begin.elapsed().as_secs_f64()), "s");
    let used = machine::processor_time(bench.sink())?.as_secs_f64() * 1e3;
    add_row(table, &format!("{WHAT}: processor"), figure(used), "ms");
    add_row(table, &format!("{WHAT}: peak memory"), mib(machine::memory(bench.sink())?.peak), "MiB");
    Ok(())
}

fn processor_times(processes: [(&str, u32); 2]) -> Result<Vec<Duration>> {
    processes.iter().map(|(_, id)| machine::processor_time(*id)).collect()
}

fn add_row(table: &mut Table, what: &str, figure: String, unit: &str) {
    table.rows.push(vec![what.to_owned(), figure, unit.to_owned()]);
}
