//! The webhook without an apiserver: requests over TLS 1.3 on keep-alive connections, our handler compared with one
//! that does nothing and one with typed objects.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use serde_json::Value;

use crate::bench::load;
use crate::bench::machine::{self, ProcessMemory};
use crate::bench::reviews::{self, NAMESPACE, Size};
use crate::bench::samples::LoadSamples;
use crate::bench::server::{BenchServer, Handler};
use crate::bench::table::{Aim, Table, figure, mib, to_mib};
use crate::harness::error::{Error, Result};
use crate::net::https_client::{HttpAnswer, HttpsClient};

/// The path of reviews.
const PATH: &str = "/mutate";
/// Numbers of connections.
pub const CONNECTIONS: [usize; 3] = [1, 16, 64];
/// The handlers that are compared in each round.
pub const HANDLERS: [Handler; 3] = [Handler::Null, Handler::Ours, Handler::Typed];

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct LoadEffort {
    /// Rounds. Each runs all compared variants once, under the same load.
    pub rounds: usize,
    /// The time of each variant per round.
    pub time: Duration,
}

/// A server under load.
struct ServerUnderTest {
    handler: Handler,
    server: BenchServer,
    client: HttpsClient,
}

/// Measures, with servers of `program` (`bench-all` itself).
///
/// # Errors
/// If a server does not start, or an answer is wrong.
pub async fn measure(program: &Path, effort: LoadEffort) -> Result<Table> {
    let mut servers = Vec::new();
    for handler in HANDLERS {
        let server = BenchServer::start(program, handler, NAMESPACE)?;
        let client = server.client()?;
        servers.push(ServerUnderTest { handler, server, client });
    }
    let mut table = table(effort);
    for size in Size::ALL {
        let body = Bytes::from(size.review()?);
        let mut expected = Vec::new();
        for server in &servers {
            expected.push(Arc::new(checked_answer(server, &body).await?));
        }
        let mut memory: Vec<ProcessMemory> = Vec::new();
        let mut measured: Vec<[LoadSamples; 3]> = Vec::new();
        for connections in CONNECTIONS {
            let mut cells: [LoadSamples; 3] = Default::default();
            // The first round warms up.
            for round in 0..=effort.rounds {
                for turn in 0..HANDLERS.len() {
                    // Each round begins with another handler, so that the order does not favour one.
                    let n = (round + turn) % HANDLERS.len();
                    let (server, expected) = (&servers[n], &expected[n]);
                    let process = server.server.process();
                    let before = machine::processor_time(process)?;
                    let figures =
                        load::round(&server.client, PATH, &body, expected, connections, effort.time).await?;
                    let used = machine::processor_time(process)? - before;
                    if round > 0 {
                        cells[n].add(&figures.latencies, figures.elapsed);
                        cells[n].add_processor(used);
                    }
                }
            }
            measured.push(cells);
        }
        for server in &servers {
            memory.push(machine::memory(server.server.process())?);
        }
        for (connections, cells) in CONNECTIONS.into_iter().zip(&measured) {
            for (n, handler) in HANDLERS.into_iter().enumerate() {
                let row = row(size, connections, handler, &cells[n], &cells[0], memory[n]);
                table.rows.push(row);
            }
        }
        if size == Size::Small {
            aims(&mut table, &measured);
        }
        if size == Size::Large {
            table.aims.push(memory_aim(memory[1]));
        }
    }
    Ok(table)
}

/// Sends the review once and checks the answer field by field. Under load every answer must equal this one.
async fn checked_answer(server: &ServerUnderTest, body: &Bytes) -> Result<HttpAnswer> {
    let answer = server.client.post(PATH, body.clone()).await?;
    let wrong = |reason: String| {
        Error::Invalid(format!("the answer of {} is wrong: {reason}: {answer:?}", server.handler.name()))
    };
    let review: Value = serde_json::from_str(&answer.body).map_err(|error| wrong(error.to_string()))?;
    let request: Value = serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))?;
    let response = &review["response"];
    if answer.status != 200 || response["allowed"] != true || response["uid"] != request["request"]["uid"] {
        return Err(wrong("expected status 200, allowed, the request's uid".to_owned()));
    }
    if server.handler != Handler::Null {
        let patch = response["patch"].as_str().unwrap_or_default();
        let patch = STANDARD.decode(patch).map_err(|error| wrong(error.to_string()))?;
        let patch: json_patch::Patch =
            serde_json::from_slice(&patch).map_err(|error| wrong(error.to_string()))?;
        let mut job = reviews::object(body)?;
        json_patch::patch(&mut job, &patch).map_err(|error| wrong(error.to_string()))?;
        reviews::ensure_stamped(&job).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(answer)
}

fn table(effort: LoadEffort) -> Table {
    let columns = [
        "job, connections, handler",
        "requests/s",
        "vs. null",
        "p50 µs",
        "p99 µs",
        "p99 vs. null",
        "CPU µs/request",
        "MiB resident",
        "MiB peak",
    ];
    let mut table = Table::new("The webhook alone", &columns);
    let LoadEffort { rounds, time } = effort;
    table.notes = vec![
        format!(
            "TLS 1.3, HTTP/1.1, keep-alive, closed loop; {rounds} rounds (after a warm-up round) of {time:?} per \
             handler; each round runs all handlers. Each figure is the median over the rounds; «vs. null» is \
             the median of the ratios to the null handler within each round."
        ),
        "All three run in the webhook's HTTP server (same TLS, same workers), each in its own process; every answer is \
         compared byte for byte with one whose patch was applied and checked field by field."
            .to_owned(),
        "The client shares the cores with the server, so that requests/s and latencies depend on both. CPU µs/request is that \
         of the server process only (/proc/<pid>/stat)."
            .to_owned(),
        "Bottleneck of ours: the handler itself (next table), because the server around it is cheap (TLS and HTTP only). Of the \
         handler's instructions (callgrind, small Job) parsing the JSON is about 41 %, the decision and its explanation \
         24 %, writing the answer 19 %, creating the patch 7 %."
            .to_owned(),
        "Memory is VmRSS after, and VmHWM until, the last round of that size; the small Job is measured first. \
         The process also contains the benchmark's code."
            .to_owned(),
    ];
    table
}

fn row(
    size: Size,
    connections: usize,
    handler: Handler,
    samples: &LoadSamples,
    null: &LoadSamples,
    memory: ProcessMemory,
) -> Vec<String> {
    vec![
        format!("{}, {connections}, {}", size.name(), handler.name()),
        figure(samples.per_second()),
        figure(samples.per_second_ratio(null)),
        figure(samples.p50_micros()),
        figure(samples.p99_micros()),
        figure(samples.p99_ratio(null)),
        figure(samples.processor_per_request()),
        mib(memory.now),
        mib(memory.peak),
    ]
}

fn aims(table: &mut Table, measured: &[[LoadSamples; 3]]) {
    let each = |ratio: fn(&LoadSamples, &LoadSamples) -> f64| -> Vec<f64> {
        measured.iter().map(|[null, ours, _]| ratio(ours, null)).collect()
    };
    let at = |ratios: &[f64]| {
        let found = CONNECTIONS.iter().zip(ratios).map(|(c, ratio)| format!("{} at c = {c}", figure(*ratio)));
        found.collect::<Vec<_>>().join(", ")
    };
    let (throughput, p99) = (each(LoadSamples::per_second_ratio), each(LoadSamples::p99_ratio));
    table.aims.push(Aim {
        what: "on the small Job at least 0.80 of the null handler's requests/s".to_owned(),
        found: at(&throughput),
        met: throughput.iter().all(|ratio| *ratio >= 0.8),
    });
    table.aims.push(Aim {
        what: "on the small Job a p99 of at most 1.5 times the null handler's".to_owned(),
        found: at(&p99),
        met: p99.iter().all(|ratio| *ratio <= 1.5),
    });
}

fn memory_aim(memory: ProcessMemory) -> Aim {
    let peak = to_mib(memory.peak);
    Aim {
        what: "ours stays below 30 MiB".to_owned(),
        found: format!("{} MiB at its peak", figure(peak)),
        met: peak < 30.0,
    }
}
