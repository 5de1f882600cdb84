//! Names of objects below a Job's folder.

use sha2::{Digest, Sha256};

/// One run of one container of a Job's pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogKey<'a> {
    pub(crate) pod: &'a str,
    pub(crate) container: &'a str,
    /// It is the run before the last restart.
    pub(crate) previous: bool,
    /// The container runtime's ID of the run.
    pub(crate) run_id: &'a str,
}

impl LogKey<'_> {
    /// Folder and file: readable, and unique per run. A digest identifies the run, because the restart count of a run
    /// changes while its container waits to be started again.
    pub(crate) fn parts(&self) -> [String; 2] {
        let digest = Sha256::digest(format!("{} {}", self.run_id, self.previous));
        let run: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        [self.pod.to_owned(), format!("{}-{run}.log.gz", self.container)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// No two runs share an object, and none is outside of its Job's folder.
        #[test]
        fn each_run_has_its_own_object(
            one in ("[a-z0-9.-]{1,9}", "[a-z0-9-]{1,5}", any::<bool>(), "[a-z:/0-9]{0,9}"),
            two in ("[a-z0-9.-]{1,9}", "[a-z0-9-]{1,5}", any::<bool>(), "[a-z:/0-9]{0,9}"),
        ) {
            let key = |(pod, container, previous, run): &(String, String, bool, String)| {
                LogKey { pod, container, previous: *previous, run_id: run }.parts()
            };
            prop_assert_eq!(key(&one) == key(&two), one == two);
            prop_assert!(key(&one).iter().all(|part| !part.contains('/')));
        }
    }
}
