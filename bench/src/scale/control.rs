//! The control plane of the measurements: the real delta ADS server over TLS, with a corpus in it,
//! and a line-based port by which the measuring side has changes made.

use super::{
    corpus::{Shape, encoded, named_workload},
    pki,
};
use crate::role::end_with_parent;
use anyhow::{Context as _, bail, ensure};
use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};
use tonic::transport::{Server, ServerTlsConfig, server::TcpIncoming};
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    server::{Ads, Client, Store},
};

/// `<listen> <workloads> <labels> <directory of the certificates> <child or alone>`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [listen, workloads, labels, dir, kind] = args else { bail!("wrong arguments: {args:?}") };
    let shape = Shape { workloads: workloads.parse()?, labels: *labels == "labels" };
    if *kind == "child" {
        end_with_parent();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(listen.parse()?, shape, Path::new(dir)))
}

async fn serve(listen: SocketAddr, shape: Shape, dir: &Path) -> anyhow::Result<()> {
    let store = Store::new(&[ADDRESS_TYPE, AUTHORIZATION_TYPE]);
    let all = shape.resources().map(|(name, a)| (name, encoded(&a))).collect();
    store.update(ADDRESS_TYPE, all, Vec::new());
    let discovery = TcpListener::bind(listen).await.context("listening")?;
    let orders = TcpListener::bind(SocketAddr::new(listen.ip(), 0)).await?;
    println!("{} {}", discovery.local_addr()?, orders.local_addr()?);
    tokio::spawn(take_orders(orders, store.clone(), shape));
    let authorize: xds::server::Authorize = Arc::new(|_, _| {
        Box::pin(std::future::ready(Ok(Client { name: "bench".to_owned(), scope: None })))
    });
    let ads = Ads::new(store, authorize).service();
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(pki::identity(dir)?))?
        .add_service(ads)
        .serve_with_incoming(TcpIncoming::from(discovery).with_nodelay(Some(true)))
        .await
        .context("serving discovery")
}

async fn take_orders(listener: TcpListener, store: Arc<Store>, shape: Shape) {
    while let Ok((stream, _)) = listener.accept().await {
        if let Err(error) = orders(stream, &store, shape).await {
            eprintln!("bench control: {error:#}");
        }
    }
}

/// `prepare <first> <count>` encodes a change and answers with its version, `go` makes it: what a
/// control plane needs to compile is not what is measured.
async fn orders(stream: TcpStream, store: &Store, shape: Shape) -> anyhow::Result<()> {
    // One server serves many measurements: no two may ask for the same change.
    static VERSION: AtomicU32 = AtomicU32::new(1);
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut prepared = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let mut version = 0;
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["prepare", first, count] => {
                version = VERSION.fetch_add(1, Ordering::Relaxed);
                let (first, count) = (first.parse::<u32>()?, count.parse::<u32>()?);
                prepared = (first..first + count)
                    .map(|i| named_workload(shape.workload(i, version)))
                    .map(|(name, address)| (name, encoded(&address)))
                    .collect();
            }
            ["go"] => {
                let wanted = prepared.len();
                let n = store.update(ADDRESS_TYPE, std::mem::take(&mut prepared), Vec::new());
                ensure!(n == wanted, "{n} of {wanted} resources were changed");
            }
            _ => bail!("no order: {line}"),
        }
        write.write_all(format!("{version}\n").as_bytes()).await?;
    }
    Ok(())
}
