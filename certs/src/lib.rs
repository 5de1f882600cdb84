//! Certificates: issue, publish, reload.
//!
//! A CA in a Secret, made by whichever replica comes first and adopted by the others; each replica mints its own leaf
//! in memory and puts the CA into the MutatingWebhookConfiguration. [`start`] does all of it; the program
//! `job-handler-certs` does the first part by hand and shows how things stand.
//!
//! | module | holds |
//! | --- | --- |
//! | [`ca`] | the CA: made, read back from its Secret, checked |
//! | [`leaf`] | what the server shows in a handshake, and when it is renewed |
//! | [`source`] | where certificates come from: the Secret, or files that somebody else keeps |
//! | [`secret`] | making or adopting the Secret |
//! | [`publish`] | the `caBundle`: written by resourceVersion, read back |

pub mod ca;
pub mod leaf;
pub mod publish;
mod run;
pub mod secret;
mod serve;
pub mod source;

pub use run::{CertError, CertHandle, CertOptions, start, start_files};

/// `2026-11-21T13:10:32Z`, for people and logs; whole seconds, which is what certificates hold.
pub fn rfc3339(at: time::OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let (hour, minute, second) = at.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", at.date())
}
