//! The entries that each configuration should have, compared with those that are stored. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use k8s_openapi::api::admissionregistration::v1::{ValidatingWebhook, WebhookClientConfig};

use crate::enforce::{
    configurations::{Configurations, StoredEntry},
    placement::Placement,
    restored_entries::TamperedEntries,
    webhook_client::client_of,
    webhook_entries::{EntryDigest, EntryPair, digest},
};

/// The entries that were last seen or written correctly: their configuration and digest, by name.
pub(crate) type CorrectEntries = HashMap<String, (usize, EntryDigest)>;

/// The entries that each configuration should have.
pub(crate) struct WantedEntries<'a> {
    of_configuration: BTreeMap<usize, Vec<&'a EntryPair>>,
    /// The configuration of each entry, by name.
    place_of: HashMap<&'a str, usize>,
    /// Names of the entries of policies about which the apiserver has not decided: what stands of them stays. Only the
    /// webhook's address and CA are renewed, which no policy chooses: else whoever changes a policy again and again would
    /// keep an old secret in use.
    undecided: HashSet<String>,
    /// The client configuration of `/validate`.
    client: &'a WebhookClientConfig,
}

impl<'a> WantedEntries<'a> {
    /// The entries of `accepted` policies that have a place.
    pub(crate) fn new(
        accepted: &'a [EntryPair],
        placement: &Placement,
        undecided: HashSet<String>,
        client: &'a WebhookClientConfig,
    ) -> Self {
        let (of_configuration, place_of) = (BTreeMap::new(), HashMap::new());
        let mut wanted = Self { of_configuration, place_of, undecided, client };
        for pair in accepted {
            let Some(index) = placement.get(pair.uid()) else { continue };
            wanted.of_configuration.entry(index).or_default().push(pair);
            wanted.place_of.extend(pair.names().map(|(name, _)| (name, index)));
        }
        wanted
    }

    /// All policies, each with the number of its configuration.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (usize, &'a EntryPair)> {
        self.of_configuration.iter().flat_map(|(index, pairs)| pairs.iter().map(|pair| (*index, *pair)))
    }

    /// The entries of one configuration.
    pub(crate) fn entries(&self, index: usize) -> Vec<ValidatingWebhook> {
        self.of(index).iter().flat_map(|pair| pair.entries.iter().cloned()).collect()
    }

    /// The policies whose entries one configuration should have.
    pub(crate) fn uids(&self, index: usize) -> impl Iterator<Item = &'a str> {
        self.of(index).iter().map(|pair| pair.uid())
    }

    /// The configurations that have other entries than they should.
    pub(crate) fn dirty(&self, stored: &Configurations) -> Vec<usize> {
        let mut indexes: BTreeSet<usize> = stored.existing().collect();
        indexes.extend(self.of_configuration.keys());
        indexes.into_iter().filter(|index| !self.is_clean(*index, stored)).collect()
    }

    fn is_clean(&self, index: usize, stored: &Configurations) -> bool {
        let pairs = self.of(index);
        let Some(entries) = stored.entries(index) else { return pairs.is_empty() };
        let belongs = |(name, entry): (&String, &StoredEntry)| {
            let is_kept = || self.undecided.contains(name) && entry.client == digest(&self.client_of(name));
            self.place_of.get(name.as_str()) == Some(&index) || is_kept()
        };
        pairs.iter().all(|pair| stored.has(index, pair)) && entries.iter().all(belongs)
    }

    /// The client configuration of an entry, whichever policy it is of.
    pub(crate) fn client_of(&self, entry: &str) -> WebhookClientConfig {
        client_of(entry, self.client)
    }

    /// Names of further entries that a write of this configuration must not remove: undecided ones, and those that are
    /// moving to another configuration and are not there yet.
    pub(crate) fn kept(&self, index: usize, stored: &Configurations) -> HashSet<String> {
        let is_moving = |name: &str| {
            let place = self.place_of.get(name).filter(|place| **place != index);
            place.is_some_and(|place| stored.entries(*place).is_none_or(|there| !there.contains_key(name)))
        };
        let names = stored.entries(index).into_iter().flat_map(HashMap::keys);
        names.filter(|name| self.undecided.contains(*name) || is_moving(name)).cloned().collect()
    }

    /// The policies whose entries were correct, are still wanted, and are now missing or different: someone else changed
    /// them.
    pub(crate) fn tampered(&self, correct: &CorrectEntries, stored: &Configurations) -> Vec<TamperedEntries> {
        let is_tampered = |index: usize, pair: &EntryPair| {
            pair.names().any(|(name, digest)| {
                let was_correct = correct.get(name) == Some(&(index, digest));
                let now = stored.entries(index).and_then(|entries| entries.get(name));
                was_correct && now.is_none_or(|now| now.digest != digest)
            })
        };
        let tampered =
            self.pairs().filter(|(index, pair)| pair.policy.enforced() && is_tampered(*index, pair));
        tampered
            .map(|(configuration, pair)| TamperedEntries {
                policy: pair.policy.reference.clone(),
                configuration,
                deleted: stored.entries(configuration).is_none(),
            })
            .collect()
    }

    fn of(&self, index: usize) -> &[&'a EntryPair] {
        self.of_configuration.get(&index).map(Vec::as_slice).unwrap_or_default()
    }
}
