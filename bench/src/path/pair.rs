//! A client and a server, in the mesh and beside it.

use super::{echo, iperf, load::Load, nginx};
use anyhow::ensure;
use culvert_tests::{Mesh, MeshPod};
use testbed::Proc;

pub struct Pair {
    pub client: MeshPod,
    pub server: MeshPod,
    _serving: [Proc; 3],
}

impl Pair {
    fn new(client: MeshPod, server: MeshPod) -> anyhow::Result<Self> {
        let serving = [iperf::serve(&server)?, nginx::serve(&server)?, echo::start(&server)?];
        Ok(Self { client, server, _serving: serving })
    }
}

/// Two pairs on the same nodes, one of them enrolled.
pub struct Pairs {
    pub plain: Pair,
    pub mesh: Pair,
}

impl Pairs {
    /// Clients on the first node, servers on this one.
    pub fn new(mesh: &Mesh, servers: usize) -> anyhow::Result<Self> {
        let pairs = Self {
            plain: Pair::new(mesh.pod(1, "plain-client"), mesh.pod(servers, "plain-server"))?,
            mesh: Pair::new(mesh.pod(1, "client"), mesh.pod(servers, "server"))?,
        };
        mesh.enroll_all(&[pairs.mesh.client.clone(), pairs.mesh.server.clone()]);
        pairs.warm_up(mesh)?;
        Ok(pairs)
    }

    /// The first connection to a port may go another way than those that follow.
    fn warm_up(&self, mesh: &Mesh) -> anyhow::Result<()> {
        for load in [Load::Bulk { streams: 1, reverse: false }, Load::Paced, Load::PingPong] {
            load.run(&self.plain)?;
            load.run(&self.mesh)?;
        }
        let opened = |pair: &Pair| {
            let labels = [("reporter", "source"), ("source_workload", pair.client.name())];
            mesh.agent_of(&pair.client).metric("istio_tcp_connections_opened_total", &labels)
        };
        ensure!(opened(&self.mesh) > 0.0, "the mesh's pair is not in the mesh");
        ensure!(opened(&self.plain) == 0.0, "the plain pair is in the mesh");
        Ok(())
    }
}
