//! The digests in a manifest.

use sha2::{Digest, Sha256};

/// The SHA-256 digest of `bytes` in lowercase hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
