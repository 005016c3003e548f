//! Kubernetes on a [`testbed::Bed`], from its real programs, for tests that must not take a fake's word for it.
//!
//! [`ApiServer`] is etcd and kube-apiserver, and starts in seconds: objects, watches, RBAC and tokens are what they are
//! in every cluster, but nothing acts on them. [`Cluster`] adds the controllers, the scheduler and two nodes with
//! kubelet and containerd, and runs pods.
//!
//! Everything runs in the bed's namespaces and cgroup, with its files in the bed's folder, and goes with the bed. Ports
//! and addresses are therefore always the same, and beds run side by side. A client must be in the bed's network, too:
//! started by [`testbed::Bed::spawn_fabric`], or on a thread of [`testbed::inside`].
//!
//! The programs are built by `cargo xtask kube build`, or taken from where [`Programs`] says.

mod api_server;
pub mod build;
pub mod chart;
mod cluster;
mod kubeconfig;
mod node;
mod pki;
mod power;
mod programs;

pub use api_server::{ADDRESS, ApiServer, Tier};
pub use cluster::Cluster;
pub use node::Node;
pub use oci_image::Image;
pub use programs::Programs;
