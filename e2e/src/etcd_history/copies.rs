//! Copies of a stored object, written past the API server, which takes seconds for a large one.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::cluster::Cluster;
use crate::etcd_history::etcd;
use crate::harness::error::{Error, Result};

/// Tries of a write.
const ATTEMPTS: usize = 10;

/// Writes a copy of a Job for each pair of a name and a uid, which must be as long as those of the original: its length
/// precedes a text in etcd.
///
/// # Errors
/// [`Error::Unsupported`] on an existing cluster; or if a text has another length, or etcd does not answer.
pub async fn copy_job(
    cluster: &Cluster,
    namespace: &str,
    original: (&str, &str),
    copies: impl IntoIterator<Item = (String, String)>,
) -> Result<()> {
    let address = cluster.etcd()?;
    let key = |name: &str| STANDARD.encode(format!("/registry/jobs/{namespace}/{name}"));
    let mut copy = etcd::value(address, &key(original.0)).await?;
    let (names, uids) = (places(&copy, original.0), places(&copy, original.1));
    for (name, uid) in copies {
        if (name.len(), uid.len()) != (original.0.len(), original.1.len()) {
            return Err(Error::Invalid(format!("{name} and {uid} are not as long as {original:?}")));
        }
        for (places, text) in [(&names, &name), (&uids, &uid)] {
            places.iter().for_each(|at| copy[*at..at + text.len()].copy_from_slice(text.as_bytes()));
        }
        let pair = json!({"key": key(&name), "value": STANDARD.encode(&copy)});
        // Where etcd is busy with others, it gives up some of many large writes.
        let mut attempts = 0;
        while let Err(error) = etcd::put(address, &pair).await {
            attempts += 1;
            if attempts == ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    Ok(())
}

/// Where a text stands.
fn places(bytes: &[u8], text: &str) -> Vec<usize> {
    (0..bytes.len()).filter(|at| bytes[*at..].starts_with(text.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::places;

    #[test]
    fn every_place_of_a_text_is_found() {
        assert_eq!(places(b"job-01 x job-01", "job-01"), [0, 9]);
        assert!(places(b"job-0", "job-01").is_empty());
    }
}
