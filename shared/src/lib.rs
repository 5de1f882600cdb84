//! What the webhook, the sink and the kubectl plugin share. Start reading at [`keys`] and [`policy`]; `README.md`
//! explains the concepts.
//!
//! | room | holds |
//! | --- | --- |
//! | [`keys`], [`names`], [`text`] | public names; deterministic object names; amounts and durations as text |
//! | [`webhook_address`] | addresses of the webhook's endpoints, with the secret in their path |
//! | [`kube`], [`process`] | clients, errors and watches of the apiserver; admin endpoint, supervisor, logs, metrics |
//! | [`policy`] | the CRDs of policies, which policies apply to a Job, and what they say together |
//! | [`job`] | a Job cut down to what both programs need: state, group, scopes, annotations |
//! | [`ledger`] | the JobLedger CRD, failure streaks, refusals |
//! | [`result`] | the format of a result |
//! | `testing` | what tests of several crates need: an in-memory apiserver, objects (feature `testing`) |

pub mod job;
pub mod keys;
pub mod kube;
pub mod ledger;
pub mod names;
pub mod policy;
pub mod process;
pub mod result;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod webhook_address;
