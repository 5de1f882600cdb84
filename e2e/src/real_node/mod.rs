//! A real node: containerd, kubelet and kube-proxy with real containers, in namespaces of their own on this machine.
//!
//! Read `node.rs` first: [`RealNode`] writes the configurations and knows the command lines. `namespaces.rs` makes the
//! namespaces, of which nothing is left when they end, and the network between them and the machine. `cgroups.rs` makes
//! the cgroup of the containers, and removes those that a killed run left. `image.rs` builds images from programs of
//! this machine. `requirements.rs` says what the machine must have.

mod cgroups;
mod image;
mod namespaces;
mod node;
mod requirements;

pub(crate) use image::Image;
pub use node::BUSYBOX_IMAGE;
pub(crate) use node::{NodeCredentials, RealNode};
pub use requirements::missing_for_real_node;
