//! The namespaces of a node, and the network between them and the machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::error::{Error, Result};
use crate::harness::process::{Process, Program};
use crate::harness::wait::wait_for;
use crate::real_node::cgroups::{self, NodeCgroup};

const INIT: &str = include_str!("init.sh");
const ENTER: &str = include_str!("enter.sh");
/// The namespaces besides that of processes, which needs a fork.
const NAMESPACES: [&str; 4] = ["--mount", "--net", "--uts", "--ipc"];
/// More nodes than a machine runs at a time.
const MOST_NODES: u8 = 32;

/// The namespaces of one node. When this value is dropped, or the process that made it ends, the kernel kills all
/// processes in them; mounts, interfaces, routes and packet rules end with the namespaces.
#[derive(Debug)]
pub(super) struct NodeNamespaces {
    // Dropped in this order: a cgroup can be removed when its processes have ended.
    init: Process,
    _cgroup: NodeCgroup,
    folder: PathBuf,
    /// The init process, as the machine counts.
    id: u32,
    number: u8,
}

impl NodeNamespaces {
    /// Creates the namespaces; the files that they need are in `folder`, logs in `logs`.
    pub(super) async fn create(folder: &Path, logs: &Path) -> Result<Self> {
        for (file, text) in [("init.sh", INIT), ("enter.sh", ENTER)] {
            std::fs::write(folder.join(file), text).map_err(Error::io(format!("writing {file}")))?;
        }
        cgroups::remove_abandoned();
        let cgroup = NodeCgroup::create()?;
        let mut arguments = vec!["--fork", "--kill-child", "--pid", "--propagation", "private"];
        arguments.extend(NAMESPACES);
        arguments.extend(["--", "sh"]);
        let init = Process::start(Program {
            name: "node-init".to_owned(),
            executable: "unshare".into(),
            arguments: arguments
                .into_iter()
                .map(Into::into)
                .chain([folder.join("init.sh").into(), folder.into(), cgroup.name().into()])
                .collect(),
            environment: Vec::new(),
            log: logs.join("node-init.log"),
        })?;
        let started = wait_for(Duration::from_secs(30), "the namespaces of a node", || async {
            match std::fs::read_to_string(folder.join("init")) {
                Ok(id) => Ok(id),
                // Reported below, with its log.
                Err(_) if init.exit_status().is_some() => Ok(String::new()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?;
        init.ensure_running()?;
        let id =
            started.trim().parse().map_err(|_| Error::Invalid(format!("{started:?} is no process id")))?;
        let number = connect(id)?;
        let namespaces = Self { init, _cgroup: cgroup, folder: folder.to_owned(), id, number };
        namespaces.set_addresses()?;
        Ok(namespaces)
    }

    /// The address of the machine on the network between it and the node. The networks are of RFC 2544, for tests, so
    /// that they are no other network of the machine.
    pub(super) fn machine_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 1)
    }

    /// The address of the node.
    pub(super) fn node_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 2)
    }

    /// The network of the pods.
    pub(super) fn pods(&self) -> String {
        format!("198.19.{}.0/24", self.number)
    }

    /// Turns a command line into one that runs inside the node.
    pub(super) fn inside(&self, mut program: Program) -> Program {
        let mut arguments = vec!["--target".into(), self.id.to_string().into(), "--pid".into()];
        arguments.extend(NAMESPACES.map(Into::into));
        arguments.extend(["--".into(), "sh".into(), self.folder.join("enter.sh").into()]);
        arguments.push(program.executable.into());
        arguments.append(&mut program.arguments);
        Program { executable: "nsenter".into(), arguments, ..program }
    }

    /// Runs a command inside the node and waits for it.
    pub(super) fn run_inside(&self, command: &[&str]) -> Result<()> {
        let (executable, arguments) = command.split_first().unwrap_or((&"true", &[]));
        let program = self.inside(Program {
            name: (*executable).to_owned(),
            executable: executable.into(),
            arguments: arguments.iter().map(Into::into).collect(),
            environment: Vec::new(),
            log: PathBuf::new(),
        });
        let mut wrapped = Command::new(program.executable);
        run(wrapped.args(program.arguments), &command.join(" "))
    }

    fn set_addresses(&self) -> Result<()> {
        let (machine, node) = (self.machine_address(), self.node_address());
        let interface = interface(self.number);
        ip(&["address", "add", &format!("{machine}/24"), "dev", &interface])?;
        ip(&["link", "set", &interface, "up"])?;
        self.run_inside(&["ip", "address", "add", &format!("{node}/24"), "dev", "eth0"])?;
        self.run_inside(&["ip", "link", "set", "eth0", "up"])?;
        // No default route: an image that does not exist is searched nowhere.
        let (machine, node) = (machine.to_string(), node.to_string());
        self.run_inside(&["ip", "route", "add", super::node::SERVICES, "via", &machine])?;
        ip(&["route", "add", &self.pods(), "via", &node])
    }
}

impl Drop for NodeNamespaces {
    fn drop(&mut self) {
        // Otherwise the kernel deletes the interface some time after the namespace has ended.
        let _ = ip(&["link", "delete", &interface(self.number)]);
        // If this fails, the parent-death signal still ends it.
        let _ = self.init.kill();
    }
}

/// Connects the network namespace of a process with ours. The number is the first whose interface does not exist: the
/// kernel lets only one caller create it.
fn connect(process: u32) -> Result<u8> {
    let process = process.to_string();
    let mut refused = None;
    for number in 0..MOST_NODES {
        let name = interface(number);
        let pair = ["link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &process];
        match ip(&pair) {
            Ok(()) => return Ok(number),
            Err(_) if interface_exists(&name) => {}
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::Invalid(format!("{MOST_NODES} nodes run on this machine already"))))
}

fn interface(number: u8) -> String {
    format!("jh-e2e-{number}")
}

fn interface_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments), &format!("ip {}", arguments.join(" ")))
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().map_err(Error::io(format!("running {what}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: what.to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
