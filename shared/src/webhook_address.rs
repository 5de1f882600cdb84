//! Addresses of the webhook's endpoints: `<base>/<secret>/<endpoint>`, as the path behind a Service or as a URL.
//!
//! The secret is `<number>-<oldest>-<tag>`, in lower-case hexadecimal digits: the apiserver wants each segment of a
//! Service's path to be a DNS subdomain (`ValidateWebhookService` in `k8s.io/apiserver/pkg/util/webhook`).
//! `certs/README.md` says what the parts mean.

use crate::keys;

/// Digits of the tag, which has 32 bytes.
const TAG_DIGITS: usize = 64;

/// The secret of an address, if it has one.
pub fn secret(address: &str) -> Option<&str> {
    let base = without_endpoint(address);
    let last = base.rsplit_once('/').map_or(base, |(_, last)| last);
    is_secret(last).then_some(last)
}

/// The address with another endpoint, such as [`keys::VALIDATE_PATH`].
pub fn with_endpoint(address: &str, endpoint: &str) -> String {
    format!("{}{endpoint}", without_endpoint(address))
}

/// The address of `endpoint` with another secret.
pub fn with_secret(address: &str, secret: &str, endpoint: &str) -> String {
    let base = without_endpoint(address);
    let base = match base.rsplit_once('/') {
        Some((base, last)) if is_secret(last) => base,
        _ => base,
    };
    format!("{base}/{secret}{endpoint}")
}

fn without_endpoint(address: &str) -> &str {
    let endpoints = [keys::MUTATE_PATH, keys::VALIDATE_PATH, keys::WARN_PATH];
    let base = endpoints.iter().find_map(|endpoint| address.strip_suffix(endpoint));
    base.unwrap_or(address.trim_end_matches('/'))
}

/// Whether a segment has the form of a secret; only the webhook can check its tag.
fn is_secret(segment: &str) -> bool {
    let is_hex =
        |text: &str| !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let parts: Vec<&str> = segment.split('-').collect();
    matches!(parts[..], [number, oldest, tag]
        if is_hex(number) && is_hex(oldest) && is_hex(tag) && tag.len() == TAG_DIGITS)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", "/S/mutate")]
    #[case("/mutate", "/S/mutate")]
    #[case("/OLD/mutate", "/S/mutate")]
    #[case("/proxied/OLD/mutate", "/proxied/S/mutate")]
    #[case("https://a:8443", "https://a:8443/S/mutate")]
    #[case("https://a:8443/mutate", "https://a:8443/S/mutate")]
    #[case("https://a/OLD/mutate", "https://a/S/mutate")]
    fn a_secret_is_added_or_replaced(#[case] address: &str, #[case] expected: &str) {
        let secret_of = |digit: &str| format!("1f-1e-{}", digit.repeat(TAG_DIGITS));
        let (old, new) = (secret_of("0"), secret_of("a"));
        let address = address.replace("OLD", &old);
        assert_eq!(secret(&address).is_some(), address.contains(&old));
        let changed = with_secret(&address, &new, keys::MUTATE_PATH);
        assert_eq!(changed, expected.replace('S', &new));
        assert_eq!(secret(&changed), Some(&*new));
        let validate = with_endpoint(&changed, keys::VALIDATE_PATH);
        assert_eq!(validate, changed.replace("/mutate", "/validate"));
        assert_eq!(secret(&validate), Some(&*new));
        assert_eq!(with_endpoint(&validate, keys::WARN_PATH), changed.replace("/mutate", "/warn"));
    }

    #[test]
    fn other_segments_are_no_secrets() {
        let tag = "0".repeat(TAG_DIGITS);
        for segment in
            ["", "mutate", "1-2-3", &tag, &format!("1-{tag}"), &format!("1-2-3-{tag}"), &format!("G-1-{tag}")]
        {
            assert_eq!(secret(&format!("/{segment}/mutate")), None, "{segment}");
        }
    }
}
