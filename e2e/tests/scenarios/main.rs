//! Scenarios on a real Kubernetes with the pair installed: one cluster for all that take nothing away from others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod backoff;
mod capture;
mod capture_content;
mod changes;
mod cleanup;
mod cloudevents;
mod edited;
mod exact;
mod fairness;
mod harvesting;
mod heal;
mod input;
mod installed;
mod ledgers;
mod limiting;
mod missed;
mod neighbour;
mod nothing_lost;
mod objects;
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
mod told;
mod warn;
mod world;
