//! Control over one component of a cluster.

use crate::cluster::components::START_TIMEOUT;
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

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// Pauses it (SIGSTOP).
    ///
    /// # Errors
    /// If it has exited.
    pub fn stop(&self) -> Result<()> {
        self.process.stop()
    }

    /// Continues it (SIGCONT).
    ///
    /// # Errors
    /// If it has exited.
    pub fn cont(&self) -> Result<()> {
        self.process.cont()?;
        self.refresh_nodes()
    }

    /// Restarts it with the same port and data, killing it first if it still runs. Returns once the API server is
    /// ready.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn restart(&self) -> Result<()> {
        self.process.restart()?;
        self.cluster.wait_ready(START_TIMEOUT).await?;
        self.refresh_nodes()
    }

    /// KWOK does not retry a step that failed because the API server was down. A new KWOK continues with every pod,
    /// because the stages use absolute times.
    fn refresh_nodes(&self) -> Result<()> {
        match self.cluster.processes.get(&Component::Kwok) {
            Some(kwok) if matches!(self.component, Component::Etcd | Component::Apiserver) => kwok.restart(),
            _ => Ok(()),
        }
    }
}
