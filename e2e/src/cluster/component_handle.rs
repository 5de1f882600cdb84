//! Control over one component of a cluster.

use std::time::Duration;

use crate::cluster::{Cluster, Component};
use crate::harness::error::Result;
use crate::harness::process::Process;

/// Control over one component of a [`Cluster`].
#[derive(Debug, Clone, Copy)]
pub struct ComponentHandle<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) component: Component,
    pub(super) process: &'a Process,
}

impl ComponentHandle<'_> {
    /// The process itself.
    pub fn process(&self) -> &Process {
        self.process
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Pauses it (SIGSTOP).
    ///
    /// # Errors
    /// If it has ended.
    pub fn stop(&self) -> Result<()> {
        self.process.stop()
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// If it has ended.
    pub fn cont(&self) -> Result<()> {
        self.process.cont()?;
        self.refresh_nodes()
    }

    /// Starts it again, on the same port and data, killing it first if it still runs; returns once the
    /// cluster answers again.
    ///
    /// # Errors
    /// If it does not come up again.
    pub async fn restart(&self) -> Result<()> {
        self.process.restart()?;
        self.cluster.wait_ready(Duration::from_secs(60)).await?;
        self.refresh_nodes()
    }

    /// KWOK does not repeat a step that failed because the API server was away. A fresh one takes every
    /// pod up as it is, and the stages go by absolute times.
    fn refresh_nodes(&self) -> Result<()> {
        match self.cluster.processes.get(&Component::Kwok) {
            Some(kwok) if matches!(self.component, Component::Etcd | Component::Apiserver) => kwok.restart(),
            _ => Ok(()),
        }
    }
}
