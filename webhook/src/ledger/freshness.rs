//! Which known versions of a ledger a round may decide by.

/// Limits the versions that may be the newest, by what earlier writes of the actor revealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Any known version may be the newest.
    #[default]
    Any,
    /// A write based on this version conflicted, so the newest version is a later one.
    NewerThan(u64),
    /// The outcome of a write is unknown: only a read shows which version is the newest.
    Unknown,
}

impl Freshness {
    /// Whether a known version may be the newest.
    pub(crate) fn accepts(self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::NewerThan(outdated) => version > outdated,
            Self::Unknown => false,
        }
    }
}

/// How this process learned of a version of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LedgerOrigin {
    /// By its watch or an own write: a newer version may be stored.
    Known,
    /// By a quorum read for the round at hand.
    Read,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing_is_known_against_it(Freshness::Any, 0, true)]
    #[case::the_version_that_conflicted(Freshness::NewerThan(7), 7, false)]
    #[case::an_older_version(Freshness::NewerThan(7), 6, false)]
    #[case::the_version_that_won(Freshness::NewerThan(7), 8, true)]
    #[case::after_a_write_whose_answer_was_lost(Freshness::Unknown, u64::MAX - 1, false)]
    fn a_version_is_accepted_while_it_may_be_the_newest(
        #[case] freshness: Freshness,
        #[case] version: u64,
        #[case] expected: bool,
    ) {
        assert_eq!(freshness.accepts(version), expected);
    }
}
