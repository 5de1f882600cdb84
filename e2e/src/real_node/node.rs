//! The node: its configuration, and the command lines of containerd, kubelet and kube-proxy.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::error::{Error, Result};
use crate::harness::process::Program;
use crate::harness::wait::wait_for;
use crate::real_node::image::Image;
use crate::real_node::namespaces::NodeNamespaces;
use crate::real_node::requirements::{cni_folder, missing_for_real_node, program};

/// The image with the machine's busybox, which every real node has.
pub const BUSYBOX_IMAGE: &str = "busybox:installed";
/// The image that holds the namespaces of each pod.
const PAUSE_IMAGE: &str = "pause:installed";
/// The addresses of Services, as the API server is started with.
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// Inside the node.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// The files with which the node's programs identify themselves.
#[derive(Debug)]
pub(crate) struct NodeCredentials {
    /// Of the user `system:node:NAME`.
    pub(crate) kubelet: PathBuf,
    /// Of the user `system:kube-proxy`.
    pub(crate) kube_proxy: PathBuf,
    /// The authority of all client certificates.
    pub(crate) client_ca: PathBuf,
    /// The certificate of the kubelet's server, for the node's address.
    pub(crate) certificate: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
}

/// A node with its namespaces. Its processes are started by the caller, from [`RealNode::program`].
#[derive(Debug)]
pub(crate) struct RealNode {
    namespaces: NodeNamespaces,
    /// The binary that is kubelet and kube-proxy.
    binary: PathBuf,
    folder: PathBuf,
    logs: PathBuf,
}

impl RealNode {
    /// The name of the node.
    pub(crate) const NAME: &str = "node-0";

    /// Creates the namespaces of a node, with its files in `folder`.
    pub(crate) async fn create(folder: &Path, logs: &Path, binary: PathBuf) -> Result<Self> {
        if let Some(missing) = missing_for_real_node() {
            return Err(Error::MissingTool(format!("a real node cannot run on this machine: {missing}")));
        }
        let folder = folder.join("node");
        std::fs::create_dir_all(&folder).map_err(Error::io("creating the folder for a node"))?;
        let namespaces = NodeNamespaces::create(&folder, logs).await?;
        Ok(Self { namespaces, binary, folder, logs: logs.to_owned() })
    }

    /// The address at which pods and node reach this machine.
    pub(crate) fn machine_address(&self) -> Ipv4Addr {
        self.namespaces.machine_address()
    }

    /// The address of the node.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.namespaces.node_address()
    }

    /// Writes the configuration of its programs.
    pub(crate) fn configure(&self, credentials: &NodeCredentials) -> Result<()> {
        let cni = cni_folder().ok_or_else(|| Error::MissingTool("the CNI plugins are gone".to_owned()))?;
        std::fs::create_dir_all(self.folder.join("cni")).map_err(Error::io("creating the folder for CNI"))?;
        self.write("containerd.toml", &self.containerd(&cni))?;
        self.write("cni/pods.conflist", &self.pod_network().to_string())?;
        // Pods ask nobody: there is no DNS server.
        self.write("resolv.conf", "")?;
        self.write("kubelet.yaml", &self.kubelet(credentials).to_string())?;
        self.write("kube-proxy.yaml", &self.kube_proxy(credentials).to_string())
    }

    /// The command line of `containerd`, `kubelet` or `kube-proxy`. `kubeconfig` is the kubelet's.
    pub(crate) fn program(&self, name: &str, credentials: &NodeCredentials) -> Program {
        let config = |file: &str| format!("--config={}", self.folder.join(file).display());
        let (executable, arguments) = match name {
            "containerd" => (program(name).unwrap_or_else(|| name.into()), vec![config("containerd.toml")]),
            "kubelet" => (
                self.binary.clone(),
                vec![
                    name.to_owned(),
                    config("kubelet.yaml"),
                    format!("--kubeconfig={}", credentials.kubelet.display()),
                    format!("--hostname-override={}", Self::NAME),
                    format!("--node-ip={}", self.address()),
                ],
            ),
            _ => (self.binary.clone(), vec![name.to_owned(), config("kube-proxy.yaml")]),
        };
        self.namespaces.inside(Program {
            name: name.to_owned(),
            executable,
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            log: self.logs.join(format!("{name}.log")),
        })
    }

    /// Waits until containerd answers, and imports the images that every node needs.
    pub(crate) async fn import_basic_images(&self) -> Result<()> {
        wait_for(Duration::from_secs(60), "containerd to answer", || async {
            self.namespaces.run_inside(&["ctr", "version"])
        })
        .await?;
        let busybox = program("busybox").unwrap_or_else(|| "/bin/busybox".into());
        let applets = std::process::Command::new(&busybox).arg("--list").output();
        let applets = applets.map_err(Error::io("listing the applets of busybox"))?;
        let applets = String::from_utf8_lossy(&applets.stdout).into_owned();
        let links = applets.lines().filter(|applet| *applet != "busybox");
        for (name, command) in
            [(BUSYBOX_IMAGE, &["sh"][..]), (PAUSE_IMAGE, &["/bin/busybox", "sleep", "2147483647"])]
        {
            self.import(&Image {
                name,
                programs: vec![(busybox.clone(), "/bin/busybox".to_owned())],
                links: links
                    .clone()
                    .map(|name| (format!("/bin/{name}"), "/bin/busybox".to_owned()))
                    .collect(),
                command,
                user: "0:0",
            })?;
        }
        Ok(())
    }

    /// Imports an image.
    pub(crate) fn import(&self, image: &Image<'_>) -> Result<()> {
        let folder = self.folder.join("images");
        let archive = image.write(&folder)?;
        let archive = archive.display().to_string();
        self.namespaces.run_inside(&["ctr", "--namespace=k8s.io", "images", "import", &archive])?;
        std::fs::remove_dir_all(&folder).map_err(Error::io(format!("removing {}", folder.display())))
    }

    fn containerd(&self, cni: &Path) -> String {
        let (folder, cni) = (self.folder.display(), cni.display());
        format!(
            "version = 2\n\
             root = '{folder}/containerd'\n\
             # Their file systems and tools are not needed.\n\
             disabled_plugins = ['io.containerd.snapshotter.v1.aufs', 'io.containerd.snapshotter.v1.btrfs', \
             'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.zfs']\n\
             [grpc]\naddress = '{CONTAINERD_SOCKET}'\n\
             [plugins.'io.containerd.grpc.v1.cri']\n\
             sandbox_image = '{PAUSE_IMAGE}'\n\
             # A machine that is a container itself may not lower its score.\n\
             restrict_oom_score_adj = true\n\
             [plugins.'io.containerd.grpc.v1.cri'.cni]\n\
             bin_dir = '{cni}'\nconf_dir = '{folder}/cni'\n"
        )
    }

    fn pod_network(&self) -> Value {
        json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{
            "type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": self.namespaces.pods()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }]})
    }

    fn kubelet(&self, credentials: &NodeCredentials) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": self.address(), "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": true},
                "x509": {"clientCAFile": credentials.client_ca},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": credentials.certificate, "tlsPrivateKeyFile": credentials.key,
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
            "cgroupDriver": "cgroupfs", "failCgroupV1": false,
            // Without a cgroup per pod, containers are in that of containerd, which is removed with the node.
            "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
            // The root file system may be one that the kubelet cannot measure.
            "localStorageCapacityIsolation": false,
            "resolvConf": self.folder.join("resolv.conf"),
            "makeIPTablesUtilChains": false, "failSwapOn": false,
            // A full disk of the machine is no business of the tests, and evicts no pod and removes no image.
            "evictionHard": {"memory.available": "50Mi"}, "imageGCHighThresholdPercent": 100,
        })
    }

    fn kube_proxy(&self, credentials: &NodeCredentials) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": credentials.kube_proxy},
            "hostnameOverride": Self::NAME, "mode": "nftables",
            "detectLocalMode": "ClusterCIDR", "clusterCIDR": self.namespaces.pods(),
            // Its limits are the machine's, not those of a network namespace.
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            },
        })
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        std::fs::write(&path, text).map_err(Error::io(format!("writing {}", path.display())))
    }
}
