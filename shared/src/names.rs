//! Deterministic object names and label values.
//!
//! The same input always gives the same name, so that a retry after a crash does not create an object twice: it gets a 409.

use sha2::{Digest, Sha256};

use crate::keys;

/// Maximum length of a label value (`k8s.io/apimachinery/pkg/util/validation`).
pub(crate) const LABEL_VALUE_MAX: usize = 63;
/// Maximum length of the name of a ConfigMap, Secret or Event (a DNS subdomain).
pub const OBJECT_NAME_MAX: usize = 253;

/// Hex digits of the hash in shortened names.
const HASH_LEN: usize = 10;
/// Hex digits of the hash in label values. Groups are told apart by them, and their authors choose the texts: 128 bits, so
/// that nobody finds two that collide.
const LABEL_HASH_LEN: usize = 32;

/// The first [`HASH_LEN`] hex digits of the SHA-256 of `parts`, each prefixed by its length, so that
/// ("ab", "c") and ("a", "bc") differ.
pub fn short_hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    hash(parts, HASH_LEN)
}

fn hash<'a>(parts: impl IntoIterator<Item = &'a str>, digits: usize) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut text = format!("{:x}", hasher.finalize());
    text.truncate(digits);
    text
}

/// Whether `value` is a valid label value: empty, or at most 63 of `[A-Za-z0-9._-]` with an
/// alphanumeric at both ends.
pub fn is_label_value(value: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.is_empty()
        || (bytes.len() <= LABEL_VALUE_MAX
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')))
}

/// Whether `name` is a DNS subdomain, as the names of namespaces and of most other objects are
/// (`k8s.io/apimachinery/pkg/util/validation`, `IsDNS1123Subdomain`). Such a name is safe in the path of a call.
pub fn is_object_name(name: &str) -> bool {
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(inner)
            && bytes.last().is_some_and(inner)
            && bytes.iter().all(|b| inner(b) || *b == b'-')
    };
    name.len() <= OBJECT_NAME_MAX && name.split('.').all(is_label)
}

/// Whether `key` is a valid label key: a name of at most 63 characters as in a label value, after a DNS subdomain of at most
/// 253 and a slash if there is one (`k8s.io/apimachinery/pkg/util/validation`, `IsQualifiedName`).
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').unwrap_or(("a", key));
    is_object_name(prefix) && !name.is_empty() && is_label_value(name)
}

/// Returns `value` if it is a valid label value, else a readable prefix with a hash of the full value.
pub fn label_value(value: &str) -> String {
    if is_label_value(value) && !value.is_empty() {
        value.to_owned()
    } else {
        hashed_label_value(value, [value])
    }
}

/// A label value: a readable prefix of `readable` and a hash over `identity`.
pub(crate) fn hashed_label_value<'a>(readable: &str, identity: impl IntoIterator<Item = &'a str>) -> String {
    let hash = hash(identity, LABEL_HASH_LEN);
    let head: String = readable
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(LABEL_VALUE_MAX - LABEL_HASH_LEN - 1)
        .collect();
    let head = head.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    if head.is_empty() { hash } else { format!("{head}-{hash}") }
}

/// `base` + `suffix` as an object name; a base that is too long is cut and gets a hash of the full base.
pub fn object_name(base: &str, suffix: &str) -> String {
    if base.len() + suffix.len() <= OBJECT_NAME_MAX {
        return format!("{base}{suffix}");
    }
    // Object names are ASCII; the loop protects against splitting a character of any other text.
    let mut cut = OBJECT_NAME_MAX.saturating_sub(suffix.len() + HASH_LEN + 1).min(base.len());
    while !base.is_char_boundary(cut) {
        cut -= 1;
    }
    let head = base[..cut].trim_end_matches(['-', '.']);
    format!("{head}-{}{suffix}", short_hash([base]))
}

/// Name of a Job's result: `<job>-results`.
pub fn result_name(job: &str) -> String {
    object_name(job, "-results")
}

/// Name of the result of the Job with this uid: `<job>-results-<uid8>`. Used for an older run, or if another object has
/// the name [`result_name`].
pub fn result_name_with_uid(job: &str, uid: &str) -> String {
    object_name(job, &format!("-results-{}", uid8(uid)))
}

/// Name of shard `n` of a result: `<job>-results-<uid8>-<n>`.
pub fn shard_name(job: &str, uid: &str, n: usize) -> String {
    object_name(job, &format!("-results-{}-{n}", uid8(uid)))
}

/// Name of an Event that must exist once per Job and reason.
pub fn event_name(job: &str, uid: &str, reason: &str) -> String {
    object_name(job, &format!(".{}.{}", uid8(uid), reason.to_ascii_lowercase()))
}

/// Name of a ValidatingWebhookConfiguration of the limits, by its number from 0 to [`keys::LIMITS_CONFIGURATIONS`].
pub fn limits_configuration(number: usize) -> String {
    match number {
        0 => keys::LIMITS_CONFIGURATION.to_owned(),
        n => format!("{}-{n}", keys::LIMITS_CONFIGURATION),
    }
}

/// The first eight characters of a uid.
pub fn uid8(uid: &str) -> &str {
    uid.get(..8).unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn valid_label_values_are_kept() {
        for value in ["a", "parser-7", "A.b_c-9"] {
            assert_eq!(label_value(value), value);
        }
    }

    #[test]
    fn label_keys_have_an_optional_prefix() {
        for key in ["app", "A.b_c-9", "example.com/app", &format!("{}/{}", "p".repeat(253), "n".repeat(63))] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "/app", "a/", "a/b/c", "A.com/app", "a..b/app", "-app", &"n".repeat(64)] {
            assert!(!is_label_key(key), "{key}");
        }
    }

    #[test]
    fn object_names_are_dns_subdomains() {
        for name in ["a", "0", "build-1", "a.b-c.9"] {
            assert!(is_object_name(name), "{name}");
        }
        let long = "a".repeat(OBJECT_NAME_MAX + 1);
        for name in ["", "-a", "a-", "a..b", ".a", "a.", "A", "a_b", "a/b", "a?b", "a%2fb", "..", "ä", &long]
        {
            assert!(!is_object_name(name), "{name}");
        }
    }

    #[test]
    fn shortened_names_differ() {
        let (a, b) = ("x".repeat(300), "x".repeat(301));
        assert_ne!(result_name(&a), result_name(&b));
        assert_ne!(label_value(&a), label_value(&b));
        assert_eq!(result_name("build-1"), "build-1-results");
        assert_eq!(shard_name("build-1", "0123456789", 2), "build-1-results-01234567-2");
    }

    proptest! {
        #[test]
        fn any_text_becomes_a_label_value(text in ".{0,300}") {
            let value = label_value(&text);
            prop_assert!(!value.is_empty() && is_label_value(&value), "{text:?} -> {value:?}");
        }

        #[test]
        fn object_names_fit(base in "[a-z0-9]([a-z0-9.-]{0,300}[a-z0-9])?") {
            let name = shard_name(&base, "0123456789abcdef", 12);
            prop_assert!(name.len() <= OBJECT_NAME_MAX);
            prop_assert!(name.ends_with("-results-01234567-12"));
        }
    }
}
