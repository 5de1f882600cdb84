//! One process of the pair: a webhook replica or a sink.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use job_handler_shared::keys::{NAMESPACE, SINK_ACCOUNT, WEBHOOK_ACCOUNT};

use crate::cluster::Cluster;
use crate::harness::error::{Error, Result};
use crate::harness::kubeconfig::write_private;
use crate::harness::process::{KillHandle, Process, Program};
use crate::harness::wait::wait_for;
use crate::net::fault_proxy::FaultProxy;
use crate::pair::PairOptions;
use crate::pair::install::Installation;
use crate::{harness::ports, net::http_probe};

/// What all members share.
pub(super) struct PairSetup<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) programs: &'a Path,
    pub(super) installed: &'a Installation,
    pub(super) options: &'a PairOptions,
}

/// A webhook replica or a sink.
#[derive(Debug)]
pub struct Member {
    // Dropped first, because it uses the proxy.
    process: Process,
    proxy: Option<FaultProxy>,
    port: u16,
    admin: u16,
}

impl PairSetup<'_> {
    pub(super) fn webhook(&self, index: usize, sink: usize, names: &[&str]) -> Result<Member> {
        let (port, admin) = (ports::free()?, ports::free()?);
        let replica = format!("webhook-{index}");
        let mut arguments = vec![format!("--listen=127.0.0.1:{port}")];
        arguments.extend(self.common(&replica, admin, sink)?);
        arguments.extend(names.iter().map(|name| format!("--dns-name={name}")));
        arguments.extend(self.options.webhook_arguments.iter().cloned());
        let direct = self.spread(&replica, index, self.installed.kubeconfig(WEBHOOK_ACCOUNT))?;
        let (kubeconfig, proxy) = self.proxied(&replica, direct, self.options.webhook_proxy)?;
        Ok(Member {
            proxy,
            process: self.start("job-handler-webhook", &replica, arguments, &kubeconfig, &[])?,
            port,
            admin,
        })
    }

    pub(super) fn sink(&self, index: usize) -> Result<Member> {
        let admin = ports::free()?;
        let replica = format!("sink-{index}");
        let mut arguments = vec!["run".to_owned()];
        arguments.extend(self.common(&replica, admin, index)?);
        if let Some(text) = &self.options.sink_configuration {
            let file = self.installed.folder().join("sink.yaml");
            std::fs::write(&file, text).map_err(Error::io("writing the sinks' configuration"))?;
            arguments.push(format!("--config={}", file.display()));
        }
        arguments.extend(self.options.sink_arguments.iter().cloned());
        let direct = self.spread(&replica, index, self.installed.kubeconfig(SINK_ACCOUNT))?;
        let (kubeconfig, proxy) = self.proxied(&replica, direct, self.options.sink_proxy)?;
        Ok(Member {
            proxy,
            process: {
                let more = &self.options.sink_environment;
                self.start("job-handler-sink", &replica, arguments, &kubeconfig, more)?
            },
            port: admin,
            admin,
        })
    }

    /// The kubeconfig of a program: with several API servers, the replicas use them in turn.
    fn spread(&self, replica: &str, index: usize, first: PathBuf) -> Result<PathBuf> {
        let configs = self.cluster.apiserver_configs();
        let server = index % configs.len();
        let (Some(config), true) = (configs.get(server), server > 0) else { return Ok(first) };
        let text =
            std::fs::read_to_string(&first).map_err(Error::io(format!("reading {}", first.display())))?;
        let url = |config: &kube::Config| config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let path = self.installed.folder().join(format!("{replica}.kubeconfig"));
        write_private(&path, &text.replace(&url(self.cluster.config()), &url(config)))?;
        Ok(path)
    }

    /// The kubeconfig of a program: the given one, or a copy that goes through a new proxy.
    fn proxied(&self, replica: &str, direct: PathBuf, wanted: bool) -> Result<(PathBuf, Option<FaultProxy>)> {
        if !wanted {
            return Ok((direct, None));
        }
        let text =
            std::fs::read_to_string(&direct).map_err(Error::io(format!("reading {}", direct.display())))?;
        let proxy = FaultProxy::start(self.cluster.config())?;
        let path = self.installed.folder().join(format!("{replica}-proxied.kubeconfig"));
        write_private(&path, &proxy.kubeconfig(&text)?)?;
        Ok((path, Some(proxy)))
    }

    fn common(&self, replica: &str, admin: u16, socket: usize) -> Result<Vec<String>> {
        Ok(vec![
            format!("--admin-listen=127.0.0.1:{admin}"),
            format!("--namespace={NAMESPACE}"),
            format!("--replica={replica}"),
            format!("--refusal-socket={}", self.socket(socket)?.display()),
            "--log-format=text".to_owned(),
        ])
    }

    fn socket(&self, index: usize) -> Result<PathBuf> {
        let path = self.installed.folder().join(format!("{index}.sock"));
        // sun_path of unix(7) has 108 bytes, the last one is NUL.
        if path.as_os_str().len() > 107 {
            return Err(Error::Invalid(format!(
                "{} is too long for a socket: set a shorter TMPDIR",
                path.display()
            )));
        }
        Ok(path)
    }

    fn start(
        &self,
        program: &str,
        replica: &str,
        arguments: Vec<String>,
        kubeconfig: &Path,
        more: &[(String, String)],
    ) -> Result<Process> {
        let more = more.iter().map(|(name, value)| (name.into(), value.into()));
        let log = std::env::var_os("RUST_LOG").unwrap_or_else(|| self.options.log.clone().into());
        Process::start(Program {
            name: replica.to_owned(),
            executable: self.programs.join(program),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: [
                ("KUBECONFIG".into(), kubeconfig.into()),
                ("RUST_LOG".into(), log),
                ("RUST_BACKTRACE".into(), "1".into()),
                ("NO_COLOR".into(), "1".into()),
            ]
            .into_iter()
            .chain(more)
            .collect(),
            log: self.cluster.dir().join("logs").join(format!("{replica}.log")),
        })
    }
}

impl Member {
    /// Its name, `webhook-0` or `sink-0`.
    pub fn name(&self) -> String {
        self.process.name()
    }

    /// The process itself, with its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its proxy to the API server.
    ///
    /// # Panics
    /// If the pair was installed without [`PairOptions::webhook_proxy`] or [`PairOptions::sink_proxy`].
    #[expect(clippy::expect_used, reason = "a test that calls this has set the option")]
    pub fn proxy(&self) -> &FaultProxy {
        self.proxy.as_ref().expect("PairOptions enable the proxy")
    }

    /// The port for reviews; for a sink its admin port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of `/healthz`, `/readyz` and `/metrics`.
    pub fn admin_port(&self) -> u16 {
        self.admin
    }

    /// Requests a path of its admin endpoint; returns the status code and the body.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        http_probe::get(self.admin_address(), path)
            .await
            .map_err(Error::io(format!("requesting {path} from {}", self.name())))
    }

    /// The same with a bearer token.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn get_with_token(&self, path: &str, token: &str) -> Result<(u16, String)> {
        http_probe::get_with_token(self.admin_address(), path, Some(token))
            .await
            .map_err(Error::io(format!("requesting {path} from {}", self.name())))
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn kill(&self) -> Result<()> {
        self.process.kill()
    }

    /// A handle that kills it (SIGKILL) from another thread.
    pub fn kill_handle(&self) -> KillHandle {
        self.process.kill_handle()
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
        self.process.cont()
    }

    /// Restarts it on the same ports, killing it first if it still runs. Does not wait until it is ready.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&self) -> Result<()> {
        self.process.restart()
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// [`Error::ProcessExited`] if it exits, [`Error::Timeout`] with its last answer.
    pub async fn wait_ready(&self, within: Duration) -> Result<()> {
        let waited = wait_for(within, &format!("{} to be ready", self.name()), || async {
            if self.process.exit_status().is_some() {
                // Reported below, with its log.
                return Ok(());
            }
            match http_probe::get(self.admin_address(), "/readyz").await {
                Ok((200, _)) => Ok(()),
                Ok((code, body)) => Err(format!("/readyz answers {code}: {}", body.trim())),
                Err(error) => Err(format!("/readyz: {error}")),
            }
        })
        .await;
        self.process.ensure_running()?;
        waited.map_err(|error| match error {
            Error::Timeout { what, waited, last } => {
                let log = crate::harness::process::tail(&self.process.log_since_start(), 15);
                Error::Timeout { what, waited, last: format!("{last}; the end of its log:\n{log}") }
            }
            other => other,
        })
    }

    fn admin_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.admin).into()
    }
}
