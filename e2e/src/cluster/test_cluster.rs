//! The cluster: starts the components, and gives access to them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::sync::OnceCell;

use crate::build::{ClusterPrograms, cluster_programs, node_binary, run_cancellable};
use crate::cluster::component_handle::ComponentHandle;
use crate::cluster::components::{Component, Layout, Ports, START_TIMEOUT};
use crate::cluster::options::{AuditLevel, ClusterOptions, E2E_KUBECONFIG};
use crate::cluster::{external, nodes};
use crate::harness::error::{Error, Result};
use crate::harness::ports;
use crate::harness::process::{Process, TempFolder};
use crate::harness::wait::wait_for;
use crate::real_node::RealNode;

/// A Kubernetes cluster: the real control plane as processes on loopback, with nodes simulated by KWOK. It ends when it
/// is dropped, and with the process that started it.
pub struct Cluster {
    // Dropped in this order: first the processes, then their folder.
    pub(super) processes: HashMap<Component, Process>,
    pub(super) layout: Option<Layout>,
    pub(super) kubeconfig: PathBuf,
    pub(super) kubectl: PathBuf,
    pub(super) config: kube::Config,
    pub(super) folder: TempFolder,
}

impl Cluster {
    /// Starts a cluster and waits until Jobs can run on it, or connects to the one that [`E2E_KUBECONFIG`] names. The
    /// first start builds Kubernetes, which takes minutes.
    ///
    /// # Errors
    /// If a program is missing, the requested port is in use, or a component does not start.
    pub async fn start(options: ClusterOptions) -> Result<Self> {
        install_crypto();
        if let Some(path) = std::env::var_os(E2E_KUBECONFIG).filter(|value| !value.is_empty()) {
            return external::connect(Path::new(&path)).await;
        }
        let programs = run_cancellable(cluster_programs).await?;
        let mut tries = 0;
        loop {
            tries += 1;
            let started = Self::boot(&options, programs.clone()).await;
            match started {
                // Another process took one of the ports before the component started.
                Err(Error::ProcessExited { tail, .. })
                    if tail.contains("address already in use") && tries < 5 =>
                {
                    if let Some(port) = options.port.filter(|port| !ports::is_free(*port)) {
                        return Err(Error::PortInUse(port));
                    }
                }
                started => return started,
            }
        }
    }

    /// The cluster that the tests of a binary share. It is started on first use and ends with the process.
    ///
    /// # Errors
    /// As [`Cluster::start`]. A failure is stored, so that the other tests fail at once.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Result<Cluster, String>> = OnceCell::const_new();
        let start = async || Self::start(ClusterOptions::default()).await.map_err(|error| error.to_string());
        SHARED.get_or_init(start).await.as_ref().map_err(|why| Error::Invalid(why.clone()))
    }

    /// A new client with admin rights and its own name in the audit log. A client belongs to the runtime on which it
    /// was created, and each test has its own.
    pub fn client(&self) -> kube::Client {
        #[expect(clippy::expect_used, reason = "start() created a client from the same configuration")]
        kube::Client::try_from(self.config.clone())
            .expect("start() created a client from the same configuration")
    }

    /// The client configuration with admin rights.
    pub fn config(&self) -> &kube::Config {
        &self.config
    }

    /// Client configurations with admin rights, one for each API server.
    pub fn apiserver_configs(&self) -> Vec<kube::Config> {
        let servers = self.layout.as_ref().map(Layout::servers).unwrap_or_default();
        let others = servers.iter().skip(1).filter_map(|server| {
            let mut config = self.config.clone();
            config.cluster_url = server.parse().ok()?;
            Some(config)
        });
        std::iter::once(self.config.clone()).chain(others).collect()
    }

    /// The path of a kubeconfig with admin rights.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The path of a `kubectl` of the cluster's version.
    pub fn kubectl_path(&self) -> &Path {
        &self.kubectl
    }

    /// The cluster's folder; `logs/` has a file per process.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// The path of the audit log, one JSON object per line.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an existing cluster.
    pub fn audit_log(&self) -> Result<PathBuf> {
        Ok(self.layout("the audit log")?.audit_log())
    }

    /// etcd's client address, without TLS.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an existing cluster.
    pub fn etcd(&self) -> Result<SocketAddr> {
        let layout = self.layout("etcd's address")?;
        Ok((Ipv4Addr::LOCALHOST, layout.ports.etcd).into())
    }

    /// Whether the cluster was started by us, not named by [`E2E_KUBECONFIG`].
    pub fn is_own(&self) -> bool {
        self.layout.is_some()
    }

    /// The process of a component.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on an existing cluster.
    pub fn component(&self, component: Component) -> Result<ComponentHandle<'_>> {
        let process = self.processes.get(&component).ok_or(Error::Unsupported("a component's process"))?;
        Ok(ComponentHandle { cluster: self, component, process })
    }

    /// Waits until every API server is ready.
    ///
    /// # Errors
    /// [`Error::Timeout`], or [`Error::ProcessExited`] if a component has exited.
    pub async fn wait_ready(&self, within: Duration) -> Result<()> {
        let clients = self.apiserver_configs().into_iter().map(kube::Client::try_from);
        let clients: Vec<kube::Client> =
            clients.collect::<Result<_, _>>().map_err(Error::api("creating a client"))?;
        wait_for(within, "the API servers to be ready", || async {
            for process in self.processes.values() {
                if process.exit_status().is_some() {
                    // Reported below, with its log.
                    return Ok(());
                }
            }
            futures::future::try_join_all(clients.iter().map(readyz)).await.map(drop)
        })
        .await?;
        self.processes.values().try_for_each(Process::ensure_running)
    }

    async fn boot(options: &ClusterOptions, programs: ClusterPrograms) -> Result<Self> {
        let folder = TempFolder::new()?;
        let kubectl = link_kubectl(folder.path(), programs.command("kubectl").0)?;
        let level = match options.audit {
            AuditLevel::None => "None",
            AuditLevel::Metadata => "Metadata",
            AuditLevel::Request => "Request",
            AuditLevel::RequestResponse => "RequestResponse",
        };
        let ports = Ports::pick(options.port, options.apiservers)?;
        let logs = folder.path().join("logs");
        std::fs::create_dir_all(&logs).map_err(Error::io("creating the folder for logs"))?;
        let node = match options.real_node {
            true => {
                let binary = run_cancellable(node_binary).await?;
                Some(Box::new(RealNode::create(folder.path(), &logs, binary).await?))
            }
            false => None,
        };
        let arguments = options.apiserver_arguments.clone();
        let layout = Layout::create(folder.path(), ports, programs, level, arguments, node)?;
        let kubeconfig = folder.path().join("admin.kubeconfig");
        let config = load(&kubeconfig).await?;
        let mut cluster =
            Self { processes: HashMap::new(), layout: Some(layout), kubeconfig, kubectl, config, folder };
        cluster.launch(Component::Etcd)?;
        for component in Component::APISERVERS.into_iter().take(options.apiservers) {
            cluster.launch(component)?;
        }
        cluster.wait_ready(START_TIMEOUT).await?;
        let client = cluster.client();
        let nodes = cluster.prepare_nodes(&client, options).await?;
        for component in cluster.layout("starting components")?.components() {
            cluster.launch(*component)?;
        }
        wait_for(START_TIMEOUT, "the controllers and the nodes", || async {
            for process in cluster.processes.values() {
                if process.exit_status().is_some() {
                    return Ok(());
                }
            }
            nodes::all_ready(&client, nodes).await?;
            if let Some(layout) = cluster.layout.as_ref().filter(|layout| layout.node.is_none()) {
                let port = layout.ports.node_logs;
                let logs = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
                logs.map_err(|error| format!("the nodes' logs at port {port}: {error}"))?;
            }
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
            accounts.get("default").await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
        cluster.processes.values().try_for_each(Process::ensure_running)?;
        Ok(cluster)
    }

    /// Registers the simulated nodes, or prepares the real one, which registers itself. Returns their number.
    async fn prepare_nodes(&mut self, client: &kube::Client, options: &ClusterOptions) -> Result<usize> {
        if !options.real_node {
            nodes::register(client, options.nodes).await?;
            return Ok(options.nodes);
        }
        self.launch(Component::Containerd)?;
        self.real_node()?.import_basic_images().await?;
        Ok(1)
    }

    /// The real node of the cluster.
    pub(crate) fn real_node(&self) -> Result<&RealNode> {
        let node = self.layout("a real node")?.node.as_deref();
        node.ok_or_else(|| Error::Invalid("the cluster has simulated nodes, not a real one".to_owned()))
    }

    fn launch(&mut self, component: Component) -> Result<()> {
        let program = self.layout("starting a component")?.program(component);
        if let std::collections::hash_map::Entry::Vacant(entry) = self.processes.entry(component) {
            entry.insert(Process::start(program)?);
        }
        Ok(())
    }

    fn layout(&self, what: &'static str) -> Result<&Layout> {
        self.layout.as_ref().ok_or(Error::Unsupported(what))
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({})", self.config.cluster_url)
    }
}

async fn readyz(client: &kube::Client) -> Result<(), String> {
    let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
    client.request_text(request).await.map(drop).map_err(|error| error.to_string())
}

/// The client configuration of a kubeconfig, with our user agent.
pub(super) async fn load(kubeconfig: &Path) -> Result<kube::Config> {
    let broken = |error: kube::config::KubeconfigError| {
        Error::Invalid(format!("{} is not a usable kubeconfig: {error}", kubeconfig.display()))
    };
    let parsed = Kubeconfig::read_from(kubeconfig).map_err(broken)?;
    let mut config =
        kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await.map_err(broken)?;
    let agent = concat!("job-handler-e2e/", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
    // Fails here, where the error can name the file; see client().
    kube::Client::try_from(config.clone())
        .map_err(Error::api(format!("creating a client from {}", kubeconfig.display())))?;
    Ok(config)
}

/// Links `kubectl` to a kubectl, or to the combined binary, which acts as kubectl when it is called by that name.
pub(super) fn link_kubectl(folder: &Path, executable: &Path) -> Result<PathBuf> {
    let bin = folder.join("bin");
    let link = bin.join("kubectl");
    std::fs::create_dir_all(&bin)
        .and_then(|()| std::os::unix::fs::symlink(executable, &link))
        .map_err(Error::io("linking kubectl"))?;
    Ok(link)
}

/// rustls needs one provider per process. An error means that it is installed already.
fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
