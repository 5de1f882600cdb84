//! Scenarios on a real Kubernetes with the pair installed. All that do not disturb each other share one cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod backoff;
mod cleanup;
mod cloudevents;
mod deletion_safety;
mod events;
mod fixtures;
mod hanging_node_logs;
mod harvest;
mod hostile;
mod installation;
mod kubectl_plugin;
mod ledgers;
mod limit_changes;
mod limit_counting;
mod limit_refusals;
mod log_capture;
mod log_content;
mod malformed_reviews;
mod missed_watch_events;
mod object_store;
mod orphaned_pods;
mod other_webhooks;
mod outages;
mod policies;
mod prune_command;
mod readiness;
mod repair;
mod resources;
mod results_in_secrets;
mod retention;
mod stamping;
mod user_edits;
mod verdicts;
mod warn_mode;
