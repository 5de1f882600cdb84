//! What was captured of a Job's pods.

use std::collections::BTreeSet;

use job_handler_shared::result::{
    manifest::ObjectsFacts,
    pods::{LogFacts, PodFacts, WholeLog},
};
use tokio::time::Instant;

use crate::{
    harvest::log_buffer::Kept,
    object_store::{Objects, RunKey, Whole},
};

/// A pod, and what could be had of its logs.
#[derive(Clone, Debug, Default)]
pub struct CapturedPod {
    /// Its states; the facts about logs are in here, too.
    pub facts: PodFacts,
    /// Creation, for the order of sections.
    pub created: Option<jiff::Timestamp>,
    /// Contents, in the order of the containers' facts.
    pub logs: Vec<CapturedLog>,
}

/// All that could be had of a Job's pods.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// Its pods, those that explain most first.
    pub pods: Vec<CapturedPod>,
    /// Pods that were seen, and forgotten because there were too many.
    pub forgotten: usize,
    /// What of them is in the object store.
    pub objects: Option<ObjectsFacts>,
}

impl Captured {
    pub(crate) fn whole(&self) -> impl Iterator<Item = &WholeLog> {
        self.pods.iter().flat_map(|pod| &pod.logs).filter_map(|log| match &log.kept.whole {
            Whole::Stored(whole) => Some(whole),
            _ => None,
        })
    }

    /// Brings the facts about logs up to date with their contents, which are in the same order.
    pub(crate) fn tell(&mut self) {
        for pod in &mut self.pods {
            let told = pod.facts.containers.iter_mut().flat_map(|container| &mut container.logs);
            told.zip(&pod.logs).for_each(|(told, log)| *told = log.facts());
        }
    }

    /// The addresses of its objects.
    pub fn object_urls(&self) -> BTreeSet<String> {
        self.whole().map(|whole| whole.url.clone()).collect()
    }
}

/// One log's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapturedLog {
    /// Container.
    pub container: String,
    /// The run before the last restart.
    pub previous: bool,
    /// The runtime's name for the run.
    pub run: String,
    /// What was kept of it.
    pub kept: Kept,
    /// Why (a part of) it could not be had.
    pub lost: Option<String>,
    /// It is to be read later, without holding up others.
    pub put_off: bool,
}

impl CapturedLog {
    /// Puts what was spooled of it into the store, or tells why that failed.
    pub(crate) async fn upload(
        &mut self,
        objects: &Objects,
        job: (&str, &str),
        pod: &str,
        deadline: Instant,
    ) {
        let key = RunKey { pod, container: &self.container, previous: self.previous, run: &self.run };
        let stored = match &self.kept.whole {
            Whole::Spooled(spooled) => objects.put(job, key, spooled, deadline).await,
            Whole::Failed(why) => {
                objects.not_stored();
                Err(why.clone())
            }
            Whole::Nowhere | Whole::Stored(_) => return,
        };
        self.kept.whole = match stored {
            Ok(whole) => Whole::Stored(whole),
            Err(why) => {
                let failed = format!("the whole log could not be stored: {why}");
                let before = self.lost.take().map_or(String::new(), |lost| format!("{lost}; "));
                self.lost = Some(before + &failed);
                Whole::Failed(why)
            }
        };
    }

    pub(crate) fn facts(&self) -> LogFacts {
        LogFacts {
            previous: self.previous,
            length: self.kept.length,
            left_out: self.kept.left_out(),
            sha256: self.kept.sha256.clone(),
            lost: self.lost.clone(),
            whole: match &self.kept.whole {
                Whole::Stored(whole) => Some(whole.clone()),
                _ => None,
            },
            section: None,
        }
    }
}
