//! The vocabulary that webhook and sink agree on.
//!
//! | module | holds |
//! | --- | --- |
//! | [`keys`] | labels, annotations, object names, ports, Event reasons |
//! | [`policy`] | the policy types, from which the CRDs are generated |
//! | [`status`] | what a policy's status tells |
//! | [`bytes`] | byte amounts as people write them (`64Mi`) |
//! | [`combine`], [`effective`] | which policies apply to a Job, and what they say together |
//! | [`job`] | a Job cut down to what both programs need, and its state |
//! | [`group`] | which Jobs are runs of the same thing, and their order |
//! | [`backoff`] | how a group has fared, and when its next try is allowed |
//! | [`names`] | deterministic object names and label values |
//! | [`ledger`] | the shared record of granted attempts, and its CRD |
//! | [`defaults`] | the policies of the base install, created once |
//! | [`scope`] | what a limit counts over, for one Job |
//! | [`bounds`], [`explain`] | a number under a default and a maximum; the account of what was stamped |
//! | [`stamped`] | the entry of `job-handler/stamped` that tells of a Job that waits |
//! | [`refusal`] | the record of a refusal that travels from webhook to sink |
//! | [`api`] | calls to the apiserver, bounded in time, their errors sorted |
//! | [`client`], [`telemetry`], [`admin`] | one builder of clients, of logs and metrics, of the admin endpoint |

pub mod job;
pub mod keys;
pub mod kube;
pub mod ledger;
pub mod names;
pub mod policy;
pub mod process;
pub mod result;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
