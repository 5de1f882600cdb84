//! The secret in the path of every review. Only administrators may read the webhook configurations, so that a caller who
//! knows it is the apiserver.
//!
//! A secret has a number, the oldest number that the webhook still accepts once this secret is published, and an HMAC of
//! both with a key derived from the CA's private key. Every replica can check every secret: none has to be told a new one
//! before the apiserver uses it.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use ring::hmac::{self, HMAC_SHA256};
use tokio::{sync::Notify, time::Instant};

/// Separates this use of the CA's private key from others.
const PURPOSE: &[u8] = b"job-handler: secret in the path of reviews";
/// Keys that are accepted: the current one, and the previous one until no configuration has a path of it.
const MAX_KEYS: usize = 2;
/// How long a secret is still accepted after another one took it out of use. The sink may have written the last entry just
/// before, and an apiserver calls with the secret that it knows until its watch delivers that.
const TAKEN_UP_AFTER: Duration = Duration::from_secs(5);

/// The numbers of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathNumbers {
    /// Grows with each secret; not below the time of its creation, in seconds since 1970.
    pub(crate) number: u64,
    /// The lowest number that is accepted while this secret is published.
    pub(crate) oldest: u64,
}

/// Creates and checks secrets.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PathKey(Vec<u8>);

impl fmt::Debug for PathKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PathKey(…)")
    }
}

impl PathKey {
    /// The key that belongs to a private key.
    pub(crate) fn derived_from(private_key: &[u8]) -> Self {
        let derived = hmac::sign(&hmac::Key::new(HMAC_SHA256, private_key), PURPOSE);
        Self(derived.as_ref().to_vec())
    }

    /// The secret with these numbers, in the form that `job_handler_shared::webhook_address` describes.
    pub(crate) fn secret(&self, numbers: PathNumbers) -> String {
        let text = format!("{:x}-{:x}", numbers.number, numbers.oldest);
        let tag = hmac::sign(&self.hmac_key(), text.as_bytes());
        let tag: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{text}-{tag}")
    }

    /// The numbers of a secret that this key created.
    pub(crate) fn read(&self, secret: &str) -> Option<PathNumbers> {
        let (text, tag) = secret.rsplit_once('-')?;
        hmac::verify(&self.hmac_key(), text.as_bytes(), &bytes(tag)?).ok()?;
        let (number, oldest) = text.split_once('-')?;
        let value = |text| u64::from_str_radix(text, 16).ok();
        Some(PathNumbers { number: value(number)?, oldest: value(oldest)? })
    }

    fn hmac_key(&self) -> hmac::Key {
        hmac::Key::new(HMAC_SHA256, &self.0)
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// A sign that somebody else may know the current secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeakSign {
    /// An apiserver got no answer in time: it prints the URL, with the secret, in the error that a user sees.
    NoAnswer,
    /// A review with a valid secret came from a new address.
    NewCaller,
    /// Admitted creates did not store their Jobs: their reviews may be forged. A tenant can cause this without the secret.
    OverdueAttempts,
    /// A connection of a known caller had to make room for others: a review on it may have failed. Whoever opens many
    /// connections can cause this.
    LostConnection,
}

impl fmt::Display for LeakSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "a review was not answered in time",
            Self::NewCaller => "reviews come from a new address",
            Self::OverdueAttempts => "many admitted creates stored no Job",
            Self::LostConnection => "a known caller lost its connection to others",
        })
    }
}

/// Tells which paths of reviews are valid. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct ReviewPaths(Arc<PathState>);

#[derive(Debug, Default)]
struct PathState {
    accepted: ArcSwap<AcceptedPaths>,
    /// Signs of a leak that nobody has looked at yet.
    signs: Mutex<BTreeSet<LeakSign>>,
    suspicion: Notify,
    /// When the published secret should be replaced.
    wanted_at: ArcSwapOption<Instant>,
}

#[derive(Clone, Debug, Default)]
struct AcceptedPaths {
    /// The current key first.
    keys: Vec<PathKey>,
    /// Until when the others are accepted, once no configuration has a path of them.
    older_until: Option<Instant>,
    /// None until a path is published: nothing is accepted.
    oldest: Option<u64>,
    /// The lower bound that was valid before, and until when it still is.
    before: Option<(u64, Instant)>,
}

impl AcceptedPaths {
    fn oldest(&self) -> Option<u64> {
        let before = self.before.filter(|(_, until)| Instant::now() < *until);
        before.map(|(oldest, _)| oldest).or(self.oldest)
    }

    fn keys(&self) -> &[PathKey] {
        match (self.older_until, self.keys.as_slice()) {
            (Some(until), [current, ..]) if Instant::now() >= until => std::slice::from_ref(current),
            (_, all) => all,
        }
    }
}

impl ReviewPaths {
    /// Whether the apiserver can know this secret.
    pub fn accepts(&self, secret: &str) -> bool {
        let accepted = self.0.accepted.load();
        let Some(oldest) = accepted.oldest() else { return false };
        let number = accepted.keys().iter().find_map(|key| key.read(secret)).map(|numbers| numbers.number);
        number.is_some_and(|number| number >= oldest)
    }

    /// Reports that somebody else may know the current secret: it is replaced soon.
    pub fn suspect_leak(&self, sign: LeakSign) {
        self.0.signs.lock().insert(sign);
        self.0.suspicion.notify_one();
    }

    /// Waits for the next reports; those that came before are not lost. Each is returned once: to the manager of the
    /// certificates, if one runs.
    pub async fn suspected(&self) -> BTreeSet<LeakSign> {
        self.0.suspicion.notified().await;
        std::mem::take(&mut *self.0.signs.lock())
    }

    /// For how long the published secret should have been replaced already; none if none is published, or it never is.
    pub fn overdue(&self) -> Option<Duration> {
        self.0.wanted_at.load().as_deref().map(Instant::elapsed)
    }

    pub(crate) fn set_wanted_at(&self, at: Option<Instant>) {
        self.0.wanted_at.store(at.map(Arc::new));
    }

    /// Accepts secrets of `key`, and still those of the key before, until [`ReviewPaths::retire_older_keys`].
    pub(crate) fn use_key(&self, key: &PathKey) {
        let accepted = self.0.accepted.load();
        if accepted.keys.first() != Some(key) {
            let others = accepted.keys().iter().filter(|other| *other != key).cloned();
            let keys = std::iter::once(key.clone()).chain(others).take(MAX_KEYS).collect();
            let changed = AcceptedPaths { keys, older_until: None, ..AcceptedPaths::clone(&accepted) };
            self.0.accepted.store(Arc::new(changed));
        }
    }

    /// No configuration has a secret of an older key any more: such ones are accepted for [`TAKEN_UP_AFTER`] more. Whoever
    /// has the key of a previous CA could make new ones for ever.
    pub(crate) fn retire_older_keys(&self) {
        let accepted = self.0.accepted.load();
        if accepted.keys.len() > 1 && accepted.older_until.is_none() {
            let older_until = Some(Instant::now() + TAKEN_UP_AFTER);
            let changed = AcceptedPaths { older_until, ..AcceptedPaths::clone(&accepted) };
            self.0.accepted.store(Arc::new(changed));
        }
    }

    /// Accepts secrets with this number and higher ones; those that were accepted until now for [`TAKEN_UP_AFTER`] more.
    pub(crate) fn accept_since(&self, oldest: u64) {
        let accepted = self.0.accepted.load();
        if accepted.oldest == Some(oldest) {
            return;
        }
        let before = accepted.oldest.filter(|before| *before < oldest);
        let before = before.map(|before| (before, Instant::now() + TAKEN_UP_AFTER));
        self.0.accepted.store(Arc::new(AcceptedPaths {
            oldest: Some(oldest),
            before,
            ..AcceptedPaths::clone(&accepted)
        }));
    }

    /// The accepted keys, the current one first.
    pub(crate) fn keys(&self) -> Vec<PathKey> {
        self.0.accepted.load().keys().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::webhook_address;

    use super::*;

    fn secret(key: &PathKey, number: u64) -> String {
        key.secret(PathNumbers { number, oldest: number - 1 })
    }

    #[test]
    fn a_secret_is_read_back_with_its_own_key_only() {
        let (ours, other) = (PathKey::derived_from(b"ours"), PathKey::derived_from(b"other"));
        let numbers = PathNumbers { number: 1_790_000_300, oldest: 1_790_000_000 };
        let secret = ours.secret(numbers);
        assert_eq!(ours.read(&secret), Some(numbers));
        assert_eq!(other.read(&secret), None);
        assert_eq!(webhook_address::secret(&format!("/{secret}/mutate")), Some(&*secret), "{secret}");
        for n in 0..secret.len() {
            let mut forged = secret.clone().into_bytes();
            forged[n] = if forged[n] == b'0' { b'1' } else { b'0' };
            let forged = String::from_utf8(forged).unwrap();
            assert_eq!(ours.read(&forged), None, "{forged}");
        }
        for forged in ["", "-", "--", "mutate", "1-0-", "1-0-zz", "1-0-é", &secret[1..]] {
            assert_eq!(ours.read(forged), None, "{forged}");
        }
    }

    #[test]
    fn nothing_is_accepted_before_a_path_is_published_and_old_ones_are_not_any_more() {
        let key = PathKey::derived_from(b"ca");
        let paths = ReviewPaths::default();
        assert!(!paths.accepts(&secret(&key, 5)));
        paths.use_key(&key);
        assert!(!paths.accepts(&secret(&key, 5)));
        paths.accept_since(4);
        let accepted: Vec<u64> = (1..8).filter(|n| paths.accepts(&secret(&key, *n))).collect();
        assert_eq!(accepted, [4, 5, 6, 7], "another replica may publish the next one first");
    }

    /// An apiserver may not have taken up what the sink wrote last, just before the replacement.
    #[tokio::test(start_paused = true)]
    async fn a_secret_that_is_out_of_use_is_accepted_for_some_seconds_more() {
        let key = PathKey::derived_from(b"ca");
        let paths = ReviewPaths::default();
        paths.use_key(&key);
        let accepted = || (1..9).find(|n| paths.accepts(&secret(&key, *n)));
        paths.accept_since(3);
        assert_eq!(accepted(), Some(3), "nothing was accepted before");
        paths.accept_since(4);
        for _ in 0..4 {
            tokio::time::advance(Duration::from_secs(1)).await;
            // What is known already does not prolong it.
            paths.accept_since(4);
            paths.use_key(&key);
            assert_eq!(accepted(), Some(3));
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(accepted(), Some(4));
        paths.accept_since(6);
        paths.accept_since(2);
        assert_eq!(accepted(), Some(2), "somebody restored an older one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_replacement_is_overdue_from_when_it_is_wanted() {
        let paths = ReviewPaths::default();
        assert_eq!(paths.overdue(), None);
        paths.set_wanted_at(Some(Instant::now() + Duration::from_secs(10)));
        for overdue in [0, 0, 10] {
            assert_eq!(paths.overdue(), Some(Duration::from_secs(overdue)));
            tokio::time::advance(Duration::from_secs(10)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn secrets_of_the_previous_ca_are_accepted_until_they_are_out_of_use_or_the_next_change() {
        let keys = [b"a", b"b", b"c"].map(|name| PathKey::derived_from(name));
        let paths = ReviewPaths::default();
        let accepted = || keys.each_ref().map(|key| paths.accepts(&secret(key, 3)));
        for key in &keys {
            paths.use_key(key);
            paths.use_key(key);
            paths.accept_since(1);
        }
        assert_eq!(accepted(), [false, true, true]);
        for _ in 0..5 {
            // What is known already does not prolong it.
            paths.retire_older_keys();
            assert_eq!(accepted(), [false, true, true]);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(accepted(), [false, false, true]);
        assert_eq!(paths.keys(), [keys[2].clone()]);
        // The CA before is restored.
        paths.use_key(&keys[1]);
        assert_eq!(accepted(), [false, true, true]);
    }
}
