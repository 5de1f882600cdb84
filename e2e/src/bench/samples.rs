//! The figures of one variant under one load, one per round.

use std::time::Duration;

use crate::bench::load::Latencies;
use crate::bench::table::{figure, median, median_ratio};

/// The figures of all rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct LoadSamples {
    per_second: Vec<f64>,
    /// Microseconds.
    p50: Vec<f64>,
    p99: Vec<f64>,
    /// Processor time and requests of all rounds: the kernel counts processor time in steps of 10 ms.
    processor: Duration,
    requests: u64,
}

impl LoadSamples {
    /// Adds a round.
    pub(super) fn add(&mut self, latencies: &Latencies, elapsed: Duration) {
        self.per_second.push(latencies.count() as f64 / elapsed.as_secs_f64());
        self.p50.push(latencies.quantile(0.5));
        self.p99.push(latencies.quantile(0.99));
        self.requests += latencies.count();
    }

    /// Adds the processor time that a server spent on a round.
    pub(super) fn add_processor(&mut self, time: Duration) {
        self.processor += time;
    }

    pub(super) fn per_second(&self) -> f64 {
        median(self.per_second.iter().copied())
    }

    pub(super) fn p50_micros(&self) -> f64 {
        median(self.p50.iter().copied())
    }

    pub(super) fn p99_micros(&self) -> f64 {
        median(self.p99.iter().copied())
    }

    /// Requests per second, p50 and p99 in milliseconds, as a table shows them.
    pub(super) fn cells(&self) -> [String; 3] {
        let milliseconds = |micros: f64| format!("{:.2}", micros / 1e3);
        [figure(self.per_second()), milliseconds(self.p50_micros()), milliseconds(self.p99_micros())]
    }

    /// Microseconds of processor time per request.
    pub(super) fn processor_per_request(&self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / self.requests as f64
    }

    /// The throughput as a fraction of another.
    pub(super) fn per_second_ratio(&self, to: &Self) -> f64 {
        median_ratio(&self.per_second, &to.per_second)
    }

    /// The p50 as a multiple of another.
    pub(super) fn p50_ratio(&self, to: &Self) -> f64 {
        median_ratio(&self.p50, &to.p50)
    }

    /// The p99 as a multiple of another.
    pub(super) fn p99_ratio(&self, to: &Self) -> f64 {
        median_ratio(&self.p99, &to.p99)
    }
}
