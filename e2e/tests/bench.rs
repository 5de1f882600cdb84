//! The benchmarks run and produce all tables. Speed is not tested.

use std::path::Path;
use std::time::Duration;

use job_handler_e2e::bench::harvest::{self, HarvestSizes, fault_isolation, receiver_down};
use job_handler_e2e::bench::limits::{self, LimitMethod, LimitsEffort};
use job_handler_e2e::bench::prune::{self, PruneSizes};
use job_handler_e2e::bench::reviews::Size;
use job_handler_e2e::bench::server::{BenchServer, Handler};
use job_handler_e2e::bench::variants::Variant;
use job_handler_e2e::bench::webhook_only::{self, CONNECTIONS, HANDLERS, LoadEffort};
use job_handler_e2e::bench::{creates, handler_calls};
use job_handler_e2e::cluster::E2E_KUBECONFIG;
use tokio::sync::Mutex;

/// One measurement after the other: four clusters at once would exceed the timeouts of a machine with two cores.
static MEASURING: Mutex<()> = Mutex::const_new(());

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bench-all"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_alone_answers_correctly_under_every_load() {
    let _turn = MEASURING.lock().await;
    // A wrong answer fails the measurement.
    let effort = LoadEffort { rounds: 1, time: Duration::from_millis(20) };
    let table = webhook_only::measure(program(), effort).await.unwrap();
    let mut rows = table.rows.iter();
    for size in Size::ALL {
        for connections in CONNECTIONS {
            for handler in HANDLERS {
                let row = rows.next().unwrap();
                assert_eq!(row[0], format!("{}, {connections}, {}", size.name(), handler.name()));
                assert_eq!(row.len(), table.columns.len());
                for (name, cell) in table.columns.iter().zip(row).skip(1) {
                    let figure: f64 = cell.parse().unwrap();
                    assert!(
                        figure.is_finite() && (figure > 0.0 || name.starts_with("CPU")),
                        "{name}: {row:?}"
                    );
                }
            }
        }
    }
    assert!(rows.next().is_none());
    assert_eq!(table.aims.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creates_pass_through_every_variant() {
    if std::env::var_os(E2E_KUBECONFIG).is_some() {
        eprintln!("skipped: the benchmark pauses components, which needs a cluster of its own");
        return;
    }
    let _turn = MEASURING.lock().await;
    // A wrong stamp or a webhook that is not called fails the measurement.
    let effort = LoadEffort { rounds: 1, time: Duration::from_millis(50) };
    let table = creates::measure(program(), effort, &[1, 4]).await.unwrap();
    let names: Vec<&str> = table.rows.iter().map(|row| row[0].as_str()).collect();
    let expected = [1, 4].iter().flat_map(|n| Variant::ALL.map(|variant| format!("{n}, {}", variant.name())));
    assert_eq!(names, expected.collect::<Vec<_>>());
    assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn harvests_are_compared_with_a_loop() {
    if std::env::var_os(E2E_KUBECONFIG).is_some() {
        eprintln!("skipped: the benchmark pauses components, which needs a cluster of its own");
        return;
    }
    let _turn = MEASURING.lock().await;
    // A missing result fails the measurement.
    let mut tables = harvest::measure(HarvestSizes::QUICK).await.unwrap();
    tables.push(fault_isolation::measure(fault_isolation::FaultIsolationSizes::QUICK).await.unwrap());
    tables.push(receiver_down::measure(20).await.unwrap());
    let names: Vec<&str> = tables[0].rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, ["loop", "sink"]);
    for row in tables.iter().flat_map(|table| &table.rows) {
        let figures = row.iter().skip(1).filter_map(|cell| cell.parse::<f64>().ok());
        assert!(figures.clone().count() > 0 && figures.clone().all(f64::is_finite), "{row:?}");
    }
    assert_eq!(tables.iter().map(|table| table.aims.len()).collect::<Vec<_>>(), [1, 2, 1, 1, 1]);
    assert_eq!(tables[2].rows.len(), 3, "{:?}", tables[2]);
    assert_eq!(tables[3].rows[0][0], "all of them at once");
    for title in ["lag", "peak memory", "one log", "idle", "apiserver restarted", "sink restarted"] {
        assert!(tables[1].rows.iter().any(|row| row[0].contains(title)), "{title}: {:?}", tables[1].rows);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prunes_are_compared_with_a_script_and_the_ttl_controller() {
    if std::env::var_os(E2E_KUBECONFIG).is_some() {
        eprintln!("skipped: the benchmark pauses components, which needs a cluster of its own");
        return;
    }
    let _turn = MEASURING.lock().await;
    // A wrong number of remaining Jobs fails the measurement.
    let table = prune::measure(program(), PruneSizes::QUICK).await.unwrap();
    let names: Vec<&str> = table.rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(
        names,
        [
            "list-and-delete script, 40 Jobs",
            "prune command, 40 Jobs",
            "TTL controller, 20 Jobs",
            "prune command, 20 Jobs"
        ]
    );
    assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
}

#[test]
fn handlers_are_measured_without_a_server() {
    let table = handler_calls::measure(1, Duration::from_millis(5)).unwrap();
    assert_eq!(table.rows.len(), Size::ALL.len() * HANDLERS.len());
}

#[tokio::test]
async fn the_null_handler_copies_the_uid_without_parsing() {
    let _turn = MEASURING.lock().await;
    let null = BenchServer::start(program(), Handler::Null, "ci").unwrap();
    let client = null.client().unwrap();
    let answer = client.post("/mutate", Size::Small.review().unwrap()).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("f0788041-4bd9-418c-bf80-66a505cca913"), "{answer:?}");
    let answer = client.post("/mutate", "not a review").await.unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_compared_with_quotas() {
    if std::env::var_os(E2E_KUBECONFIG).is_some() {
        eprintln!("skipped: the benchmark pauses components, which needs a cluster of its own");
        return;
    }
    let _turn = MEASURING.lock().await;
    // A wrong admission or refusal fails the measurement.
    let (effort, mut tables) = (LimitsEffort::quick(), Vec::new());
    limits::measure(program(), &effort, |table| tables.push(table)).await.unwrap();
    let [creates, times, overlap, refusals, drain, memory] = tables.as_slice() else {
        panic!("{} tables", tables.len())
    };
    let expected = effort.namespaces.iter().flat_map(|namespaces| {
        effort.clients.iter().flat_map(move |clients| {
            LimitMethod::ALL.map(|method| format!("{clients} into {namespaces}, {}", method.name()))
        })
    });
    let names: Vec<&str> = creates.rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, expected.collect::<Vec<_>>());
    assert_eq!(times.rows.len(), names.len());
    assert_eq!([overlap.rows.len(), refusals.rows.len(), drain.rows.len(), memory.rows.len()], [9, 7, 1, 3]);
    // The maximum of active Jobs: all slots were used.
    assert_eq!(drain.rows[0].last().unwrap(), "10");
    for table in &tables {
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()), "{}", table.text());
    }
}
