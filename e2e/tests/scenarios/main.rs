//! Scenarios on a real Kubernetes with the pair installed: one cluster for all that take nothing away from others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod backoff;
mod capture;
mod capture_content;
mod changes;
mod cleanup;
mod cloudevents;
mod events;
mod exact;
mod fairness;
mod fixtures;
mod harvesting;
mod heal;
mod input;
mod installed;
mod ledgers;
mod limiting;
mod missed_watch_events;
mod nothing_lost;
mod objects;
mod other_webhooks;
mod outages;
mod peers;
mod policies;
mod reading;
mod ready;
mod resources;
mod retention;
mod secrets;
mod stamping;
mod sweeping;
mod user_edits;
mod warn;
