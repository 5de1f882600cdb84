//! The command lines of the cluster's components.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::build::ClusterPrograms;
use crate::cluster::nodes;
use crate::cluster::options::E2E_AUDIT_FOLDER;
use crate::cluster::pki::Pki;
use crate::harness::error::{Error, Result};
use crate::harness::kubeconfig::write_private;
use crate::harness::ports;
use crate::harness::process::Program;
use crate::real_node::{NodeCredentials, RealNode};

/// The longest time for components to be ready: other builds and clusters may keep the machine busy.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(180);

/// A component of the cluster, which is one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Component {
    /// etcd.
    Etcd,
    /// The API server; the first, if there are several.
    Apiserver,
    /// The second API server of [`ClusterOptions::apiservers`](crate::ClusterOptions::apiservers).
    SecondApiserver,
    /// The third.
    ThirdApiserver,
    /// The controllers: Jobs, CronJobs, TTL, garbage collection, …
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// KWOK, which simulates the kubelets' updates of pod status.
    Kwok,
    /// Answers the API server's log requests in place of the kubelets.
    NodeLogs,
    /// containerd on a real node.
    Containerd,
    /// The kubelet of a real node.
    Kubelet,
    /// kube-proxy of a real node.
    KubeProxy,
}

impl Component {
    /// The components of a cluster with simulated nodes and one API server, in the order in which they are started.
    pub const SIMULATED: [Self; 6] =
        [Self::Etcd, Self::Apiserver, Self::ControllerManager, Self::Scheduler, Self::NodeLogs, Self::Kwok];
    /// The components of a cluster with a real node, in the order in which they are started.
    pub const REAL: [Self; 7] = [
        Self::Etcd,
        Self::Apiserver,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Containerd,
        Self::Kubelet,
        Self::KubeProxy,
    ];

    /// The API servers.
    pub const APISERVERS: [Self; 3] = [Self::Apiserver, Self::SecondApiserver, Self::ThirdApiserver];

    /// The name of its process and log file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::SecondApiserver => "kube-apiserver-2",
            Self::ThirdApiserver => "kube-apiserver-3",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kwok => "kwok",
            Self::NodeLogs => "node-logs",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }

    /// The name of its program.
    fn program(self) -> &'static str {
        if Self::APISERVERS.contains(&self) { Self::Apiserver.name() } else { self.name() }
    }
}

/// The ports of one cluster, all on 127.0.0.1.
#[derive(Clone, Debug)]
pub(super) struct Ports {
    pub(super) etcd: u16,
    pub(super) etcd_peer: u16,
    /// At least one.
    pub(super) apiservers: Vec<u16>,
    pub(super) node_logs: u16,
    pub(super) kwok: u16,
}

impl Ports {
    pub(super) fn pick(apiserver: Option<u16>, apiservers: usize) -> Result<Self> {
        if !(1..=Component::APISERVERS.len()).contains(&apiservers) {
            return Err(Error::Invalid(format!("1 to 3 API servers can be started, not {apiservers}")));
        }
        if let Some(port) = apiserver.filter(|port| !ports::is_free(*port)) {
            return Err(Error::PortInUse(port));
        }
        Ok(Self {
            etcd: ports::free()?,
            etcd_peer: ports::free()?,
            apiservers: std::iter::once(apiserver)
                .chain(std::iter::repeat_n(None, apiservers - 1))
                .map(|port| port.map_or_else(ports::free, Ok))
                .collect::<Result<_>>()?,
            node_logs: ports::free()?,
            kwok: ports::free()?,
        })
    }
}

/// The files that the components need, and how each component is started.
pub(super) struct Layout {
    pub(super) folder: PathBuf,
    pub(super) ports: Ports,
    programs: ClusterPrograms,
    pki: Pki,
    audit_level: &'static str,
    apiserver_arguments: Vec<String>,
    /// Absent where nodes are simulated. Dropped after the components.
    pub(super) node: Option<Box<RealNode>>,
}

impl Layout {
    pub(super) fn create(
        folder: &Path,
        ports: Ports,
        programs: ClusterPrograms,
        audit_level: &'static str,
        apiserver_arguments: Vec<String>,
        node: Option<Box<RealNode>>,
    ) -> Result<Self> {
        let pki = Pki::create(&folder.join("pki"))?;
        let folder = folder.to_owned();
        let layout = Self { folder, ports, programs, pki, audit_level, apiserver_arguments, node };
        layout.write_files()?;
        Ok(layout)
    }

    fn write_files(&self) -> Result<()> {
        let dns = ["localhost", "kubernetes.default.svc", "kubernetes.default", "kubernetes"];
        // The Service's address is for programs inside the cluster.
        let addresses = [Ipv4Addr::LOCALHOST, self.address(), Ipv4Addr::new(10, 96, 0, 1)];
        self.pki.server("apiserver", "kube-apiserver", &addresses, &dns)?;
        let server = self.servers().swap_remove(0);
        for (file, user, group) in [
            ("admin.kubeconfig", "e2e-admin", Some("system:masters")),
            ("controller-manager.kubeconfig", "system:kube-controller-manager", None),
            ("scheduler.kubeconfig", "system:kube-scheduler", None),
            // Not a node's user, because it simulates many; not the admin, so that the audit log distinguishes them.
            ("kwok.kubeconfig", "e2e-nodes", Some("system:masters")),
        ] {
            self.pki.kubeconfig(&self.folder.join(file), &server, user, group)?;
        }
        write_private(&self.folder.join("audit-policy.yaml"), &audit_policy(self.audit_level))?;
        write_private(&self.folder.join("scheduler.yaml"), &scheduler_configuration(&self.folder))?;
        match &self.node {
            None => nodes::write_stages(&self.folder.join("kwok")),
            Some(node) => self.write_node_files(node),
        }
    }

    /// The credentials of a real node, with the rights that any other node has.
    fn write_node_files(&self, node: &RealNode) -> Result<()> {
        let credentials = self.node_credentials();
        let (server, user) = (self.servers().swap_remove(0), format!("system:node:{}", RealNode::NAME));
        self.pki.kubeconfig(&credentials.kubelet, &server, &user, Some("system:nodes"))?;
        self.pki.kubeconfig(&credentials.kube_proxy, &server, "system:kube-proxy", None)?;
        self.pki.server("kubelet", &user, &[node.address()], &[])?;
        self.pki.client("apiserver-kubelet", "kube-apiserver-kubelet-client", Some("system:masters"))?;
        node.configure(&credentials)
    }

    fn node_credentials(&self) -> NodeCredentials {
        NodeCredentials {
            kubelet: self.folder.join("kubelet.kubeconfig"),
            kube_proxy: self.folder.join("kube-proxy.kubeconfig"),
            client_ca: self.pki.path("ca.crt"),
            certificate: self.pki.path("kubelet.crt"),
            key: self.pki.path("kubelet.key"),
        }
    }

    /// The components of this cluster, in the order in which they are started.
    pub(super) fn components(&self) -> &'static [Component] {
        if self.node.is_some() { &Component::REAL } else { &Component::SIMULATED }
    }

    /// Where the API server listens: on loopback, or where pods reach it.
    fn address(&self) -> Ipv4Addr {
        self.node.as_ref().map_or(Ipv4Addr::LOCALHOST, |node| node.machine_address())
    }

    /// The URLs of the API servers.
    pub(super) fn servers(&self) -> Vec<String> {
        self.ports.apiservers.iter().map(|port| format!("https://{}:{port}", self.address())).collect()
    }

    /// In [`E2E_AUDIT_FOLDER`] it outlives the cluster.
    pub(super) fn audit_log(&self) -> PathBuf {
        let kept = std::env::var_os(E2E_AUDIT_FOLDER).filter(|folder| !folder.is_empty());
        match (kept, self.folder.file_name()) {
            (Some(folder), Some(cluster)) => Path::new(&folder).join(cluster).with_extension("log"),
            _ => self.folder.join("logs/audit.log"),
        }
    }

    /// The command line of a component.
    pub(super) fn program(&self, component: Component) -> Program {
        let of_node = matches!(component, Component::Containerd | Component::Kubelet | Component::KubeProxy);
        if let Some(node) = self.node.as_ref().filter(|_| of_node) {
            return node.program(component.name(), &self.node_credentials());
        }
        let (executable, first) = self.programs.command(component.program());
        let mut arguments: Vec<OsString> = first.into_iter().map(OsString::from).collect();
        arguments.extend(self.arguments(component).into_iter().map(OsString::from));
        Program {
            name: component.name().to_owned(),
            executable: executable.to_owned(),
            arguments,
            environment: Vec::new(),
            log: self.folder.join("logs").join(format!("{}.log", component.name())),
        }
    }

    fn arguments(&self, component: Component) -> Vec<String> {
        match component {
            Component::Etcd => self.etcd(),
            Component::Apiserver => self.apiserver(0),
            Component::SecondApiserver => self.apiserver(1),
            Component::ThirdApiserver => self.apiserver(2),
            Component::ControllerManager => self.controller_manager(),
            Component::Scheduler => {
                vec![self.file("--config", "scheduler.yaml"), "--secure-port=0".to_owned()]
            }
            Component::Kwok => self.kwok(),
            Component::NodeLogs => vec![
                self.file("--kubeconfig", "kwok.kubeconfig"),
                format!("--listen=127.0.0.1:{}", self.ports.node_logs),
            ],
            // Above, with the node.
            Component::Containerd | Component::Kubelet | Component::KubeProxy => Vec::new(),
        }
    }

    /// A cluster of one member.
    fn etcd(&self) -> Vec<String> {
        let (client, peer) = (self.ports.etcd, self.ports.etcd_peer);
        vec![
            "--name=e2e".to_owned(),
            self.file("--data-dir", "etcd"),
            format!("--listen-client-urls=http://127.0.0.1:{client}"),
            format!("--advertise-client-urls=http://127.0.0.1:{client}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster=e2e=http://127.0.0.1:{peer}"),
            // The data need not survive a crash of the machine; after a SIGKILL of etcd, its writes are in the page
            // cache.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--quota-backend-bytes={}", 8_u64 << 30),
            "--auto-compaction-mode=periodic".to_owned(),
            "--auto-compaction-retention=5m".to_owned(),
        ]
    }

    fn apiserver(&self, index: usize) -> Vec<String> {
        let port = self.ports.apiservers.get(index).copied().unwrap_or_default();
        let mut arguments = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd),
            format!("--bind-address={}", self.address()),
            format!("--advertise-address={}", self.address()),
            format!("--secure-port={port}"),
            self.pki_file("--tls-cert-file", "apiserver.crt"),
            self.pki_file("--tls-private-key-file", "apiserver.key"),
            self.pki_file("--client-ca-file", "ca.crt"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            self.pki_file("--service-account-key-file", "service-accounts.pub"),
            self.pki_file("--service-account-signing-key-file", "service-accounts.key"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            // Webhooks behind Services are called at their endpoints, because this machine has no kube-proxy.
            "--enable-aggregator-routing=true".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--profiling=false".to_owned(),
        ];
        if self.node.is_some() {
            arguments.extend([
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                self.pki_file("--kubelet-certificate-authority", "ca.crt"),
                self.pki_file("--kubelet-client-certificate", "apiserver-kubelet.crt"),
                self.pki_file("--kubelet-client-key", "apiserver-kubelet.key"),
            ]);
        } else {
            // The default publishes the address in Endpoints, where loopback is not allowed.
            arguments.push("--endpoint-reconciler-type=none".to_owned());
        }
        // Two processes cannot write one log.
        if self.audit_level != "None" && index == 0 {
            arguments.push(self.file("--audit-policy-file", "audit-policy.yaml"));
            arguments.push(format!("--audit-log-path={}", self.audit_log().display()));
        }
        arguments.extend(self.apiserver_arguments.iter().cloned());
        arguments
    }

    fn controller_manager(&self) -> Vec<String> {
        vec![
            self.file("--kubeconfig", "controller-manager.kubeconfig"),
            self.pki_file("--service-account-private-key-file", "service-accounts.key"),
            self.pki_file("--root-ca-file", "ca.crt"),
            // Each controller has its own name in the audit log and its own rights.
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            // With the default of 20 requests per second, bursts of Jobs would wait for the controller.
            "--kube-api-qps=500".to_owned(),
            "--kube-api-burst=1000".to_owned(),
            "--profiling=false".to_owned(),
        ]
    }

    fn kwok(&self) -> Vec<String> {
        vec![
            self.file("--kubeconfig", "kwok.kubeconfig"),
            self.file("--config", "kwok/kwok.yaml"),
            "--manage-all-nodes=true".to_owned(),
            "--node-ip=127.0.0.1".to_owned(),
            format!("--node-port={}", self.ports.node_logs),
            // By default it listens on the node port, on all addresses.
            format!("--server-address=127.0.0.1:{}", self.ports.kwok),
            "--cidr=10.244.0.0/16".to_owned(),
        ]
    }

    fn file(&self, flag: &str, file: &str) -> String {
        format!("{flag}={}", self.folder.join(file).display())
    }

    fn pki_file(&self, flag: &str, file: &str) -> String {
        format!("{flag}={}", self.pki.path(file).display())
    }
}

fn audit_policy(level: &str) -> String {
    format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
         # Probes would outnumber everything else.\n\
         - {{level: None, nonResourceURLs: ['/healthz*', '/livez*', '/readyz*', '/openapi*', '/version']}}\n\
         - {{level: {level}}}\n"
    )
}

fn scheduler_configuration(folder: &Path) -> String {
    // A configuration file, because there is no flag for the client's rate.
    format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
         leaderElection: {{leaderElect: false}}\n\
         clientConnection: {{kubeconfig: '{}', qps: 500, burst: 1000}}\n",
        folder.join("scheduler.kubeconfig").display()
    )
}
