//! What the handles of one bed share.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use anyhow::Result;

use crate::dns::Names;
use crate::netns::NetnsId;
use crate::node::Node;
use crate::service::Services;

pub(crate) struct Shared {
    pub id: String,
    pub dir: PathBuf,
    pub cgroup: PathBuf,
    pub names: Names,
    state: Mutex<State>,
    netns: Mutex<BTreeSet<NetnsId>>,
}

/// What changes as the cluster grows. Its lock is held while a node is made, so that routes are complete.
#[derive(Default)]
pub(crate) struct State {
    pub nodes: Vec<Node>,
    pub services: Services,
    /// Namespaces of nodes and pods share one folder with one prefix, hence one set of names.
    pub taken: BTreeSet<String>,
}

impl Shared {
    pub fn new(id: String, dir: PathBuf, cgroup: PathBuf) -> Self {
        let taken = BTreeSet::from(["fabric".to_owned()]);
        Self {
            id,
            dir,
            cgroup,
            names: Names::default(),
            state: Mutex::new(State { taken, ..State::default() }),
            netns: Mutex::default(),
        }
    }

    /// A test that panicked with the lock held still has to be cleaned up after: poison is ignored.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    pub fn netns_name(&self, of: &str) -> String {
        format!("{}-{of}", self.id)
    }

    /// Remembers a namespace, for the proof at the end that no process is left in it.
    pub fn remember(&self, netns: NetnsId) {
        self.netns.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(netns);
    }

    /// A namespace that is gone: its number may soon be another's, of another bed.
    pub fn forget(&self, netns: &NetnsId) {
        self.netns.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(netns);
    }

    pub fn netns_ids(&self) -> BTreeSet<NetnsId> {
        self.netns.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl State {
    /// Writes the services into every node.
    pub fn install_services(&self) -> Result<()> {
        for node in &self.nodes {
            node.install_services(&self.services)?;
        }
        Ok(())
    }
}
