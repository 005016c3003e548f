//! A mesh as an agent holds it: filled by the real client over TLS, then asked.

use super::{
    corpus::{self, NODE, Shape},
    pki,
};
use crate::{memory, role::say};
use anyhow::{Context as _, bail, ensure};
use futures_util::future::BoxFuture;
use mesh::{Local, Mesh, Resolved, Synced, Workload};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use std::{
    hint::black_box,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, client::Connect, proto::discovery::Node};

const ROUNDS: u32 = 15;
const MANY: u32 = 10_000;

struct Control {
    at: SocketAddr,
    root: Certificate,
}

impl Connect for Control {
    fn connect(&self) -> BoxFuture<'_, Result<Channel, String>> {
        Box::pin(async {
            let tls =
                ClientTlsConfig::new().ca_certificate(self.root.clone()).domain_name(pki::NAME);
            let endpoint = xds::client::endpoint(&format!("https://{}", self.at))
                .and_then(|e| e.tls_config(tls))
                .map_err(|e| e.to_string())?;
            endpoint.connect().await.map_err(|e| format!("{e:?}"))
        })
    }

    fn token(&self) -> Result<Option<String>, String> {
        Ok(None)
    }
}

/// `<discovery> <orders> <workloads> <labels> <directory of the certificates> <memory or time>`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [discovery, orders, workloads, labels, dir, what] = args else {
        bail!("wrong arguments: {args:?}")
    };
    let count_memory = *what == "memory";
    if count_memory {
        memory::start_counting();
    }
    let shape = Shape { workloads: workloads.parse()?, labels: *labels == "labels" };
    let control = Control { at: discovery.parse()?, root: pki::root(Path::new(dir))? };
    let orders: SocketAddr = orders.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mesh = Mesh::new(Local {
            node: NODE.into(),
            cluster: "Kubernetes".into(),
            ..Local::default()
        });
        let (resident, _) = memory::resident("self")?;
        let live = memory::live();
        let processor = memory::processor_seconds()?;
        let begun = Instant::now();
        let following = tokio::spawn({
            let mesh = mesh.clone();
            let node = Node { id: "ztunnel~0.0.0.0~bench~bench".to_owned(), ..Node::default() };
            async move {
                let types = [ADDRESS_TYPE, AUTHORIZATION_TYPE];
                match xds::client::follow(&control, node, &types, &*mesh).await {}
            }
        });
        let mut synced = mesh.synced();
        tokio::time::timeout(Duration::from_secs(120), synced.wait_for(Synced::ready))
            .await
            .context("waiting for the mesh")??;
        let ready = begun.elapsed();
        let processor = memory::processor_seconds()? - processor;
        let held = mesh.workloads().len();
        ensure!(held == shape.workloads as usize, "{held} workloads arrived");
        let per_workload = f64::from(shape.workloads);
        if count_memory {
            say("heap per workload", (memory::live() - live) / per_workload);
            following.abort();
            let _ = following.await;
            say("heap per workload, the mesh alone", (memory::live() - live) / per_workload);
            return Ok(());
        }
        let (now, peak) = memory::resident("self")?;
        say("connect to ready", ready.as_secs_f64());
        say("connect to ready: processor", processor);
        say("resident", now / 1e6);
        say("resident, peak", peak / 1e6);
        say("resident per workload", (now - resident) / per_workload);
        let mut changes = Changes::connect(orders, mesh.clone(), shape).await?;
        for _ in 0..ROUNDS {
            say("one change applied", changes.apply(1).await?.as_secs_f64() * 1e3);
        }
        for _ in 0..ROUNDS / 3 {
            let took = changes.apply(MANY.min(shape.workloads)).await?;
            say("10,000 changes applied", took.as_secs_f64() * 1e3);
        }
        resolve(&mesh, shape)
    })
}

/// Has the control plane make changes, and waits until the mesh has them.
struct Changes {
    lines: tokio::io::Lines<BufReader<tokio::net::tcp::OwnedReadHalf>>,
    write: tokio::net::tcp::OwnedWriteHalf,
    mesh: Arc<Mesh>,
    shape: Shape,
}

impl Changes {
    async fn connect(to: SocketAddr, mesh: Arc<Mesh>, shape: Shape) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Self { lines: BufReader::new(read).lines(), write, mesh, shape })
    }

    async fn order(&mut self, order: &str) -> anyhow::Result<u32> {
        self.write.write_all(order.as_bytes()).await?;
        let answer = self.lines.next_line().await?.context("the control plane hung up")?;
        Ok(answer.parse()?)
    }

    /// From the order until every one of the changes can be read.
    async fn apply(&mut self, count: u32) -> anyhow::Result<Duration> {
        let first = rand::rng().random_range(0..=self.shape.workloads - count);
        let version = self.order(&format!("prepare {first} {count}\n")).await?;
        let uids: Vec<String> = (first..first + count).map(|i| self.shape.uid(i)).collect();
        let wanted = Shape::revision(version);
        let applied = |mesh: &Mesh| {
            uids.iter().all(|u| mesh.workload(u).is_some_and(|w| *w.canonical_revision == *wanted))
        };
        ensure!(!applied(&self.mesh), "the change is there before it was made");
        let mut synced = self.mesh.synced();
        synced.mark_unchanged();
        let begun = Instant::now();
        self.order("go\n").await?;
        // Each response that has been applied is told of.
        while !applied(&self.mesh) {
            tokio::time::timeout(Duration::from_secs(30), synced.changed())
                .await
                .context("waiting for a change")??;
        }
        Ok(begun.elapsed())
    }
}

fn source(mesh: &Mesh) -> anyhow::Result<Arc<Workload>> {
    mesh.workloads().into_iter().find(|w| w.site.node == NODE).context("no workload is local")
}

fn resolve(mesh: &Mesh, shape: Shape) -> anyhow::Result<()> {
    const BATCH: usize = 10_000;
    let source = source(mesh)?;
    let mut rng = SmallRng::seed_from_u64(1);
    let by_address = |n: u32| SocketAddr::from((corpus::address(n % shape.workloads), 8080));
    let by_vip = |n: u32| SocketAddr::from((corpus::vip(n % shape.services()), 80));
    let kinds: [(&str, &dyn Fn(u32) -> SocketAddr); 2] = [
        ("resolve by a workload's address", &by_address),
        ("resolve by a service's address", &by_vip),
    ];
    for (name, address) in kinds {
        let asked: Vec<SocketAddr> = (0..BATCH).map(|_| address(rng.random())).collect();
        for to in &asked {
            let found = mesh.resolve(&source, *to, &mut rand::rng());
            ensure!(matches!(found, Resolved::Workload { .. }), "{to} leads to {found:?}");
        }
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for to in &asked {
                black_box(mesh.resolve(&source, black_box(*to), &mut rand::rng()));
            }
            say(name, begun.elapsed().as_secs_f64() * 1e9 / BATCH as f64);
        }
    }
    Ok(())
}
