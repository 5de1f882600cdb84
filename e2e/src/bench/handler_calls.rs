//! The handlers without a server: the processor time of one call.

use std::time::{Duration, Instant};

use futures::executor::block_on;
use job_handler_shared::policy::reference::Labels;
use job_handler_webhook::admission::mutate::mutate;
use job_handler_webhook::admission::state::WebhookState;

use crate::bench::reviews::{self, NAMESPACE, Size};
use crate::bench::server::Handler;
use crate::bench::table::{Table, figure, median};
use crate::bench::webhook_only::HANDLERS;
use crate::bench::{handlers, machine};
use crate::harness::error::{Error, Result};

/// Calls between two readings of the clock.
const BATCH: u32 = 100;

/// Measures each handler with each size for `time` per round.
///
/// # Errors
/// If a handler fails.
pub fn measure(rounds: usize, time: Duration) -> Result<Table> {
    let mut table =
        Table::new("The handlers without a server", &["job, handler", "CPU µs/call", "body bytes"]);
    table.notes = vec![
        "One thread calls the handler's function on the review's bytes repeatedly: no TLS, no HTTP, warm caches. The \
         median over the rounds."
            .to_owned(),
    ];
    for size in Size::ALL {
        let review = size.review()?;
        let mut figures = [const { Vec::new() }; HANDLERS.len()];
        for _ in 0..rounds {
            for (handler, figures) in HANDLERS.into_iter().zip(&mut figures) {
                figures.push(call(handler, &review, time)?.as_secs_f64() * 1e6);
            }
        }
        for (handler, figures) in HANDLERS.into_iter().zip(figures) {
            let name = format!("{}, {}", size.name(), handler.name());
            table.rows.push(vec![name, figure(median(figures)), review.len().to_string()]);
        }
    }
    Ok(table)
}

/// Calls a handler for `time` and returns the mean processor time of a call.
///
/// # Errors
/// If the handler fails.
pub fn call(handler: Handler, review: &[u8], time: Duration) -> Result<Duration> {
    let policies = reviews::policies(NAMESPACE)?;
    let handle = match handler {
        Handler::Null => handlers::null(),
        Handler::Typed => handlers::typed(policies),
        Handler::Ours | Handler::SamePatch => {
            let state = WebhookState::fixed(policies, [(NAMESPACE.to_owned(), Labels::new())]);
            std::sync::Arc::new(move |body: &[u8]| Ok(block_on(mutate(body, &state)).body))
        }
    };
    let (begin, mut calls) = (Instant::now(), 0_u32);
    let before = machine::thread_time()?;
    while calls == 0 || begin.elapsed() < time {
        for _ in 0..BATCH {
            let answer = handle(std::hint::black_box(review));
            std::hint::black_box(answer.map_err(Error::Invalid)?);
        }
        calls += BATCH;
    }
    Ok((machine::thread_time()? - before) / calls.max(1))
}
