//! A pod that is up to no good, before a server and a client that mind their own business.

use culvert_tests::dialogue::serve;
use culvert_tests::{Mesh, MeshPod, SOON, Traffic, at};
use scripted::frames;
use scripted::pki::{Pki, good_leaf};
use scripted::tls::{self, H2};
use scripted::wire::Wire;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use testbed::{Serve, Token};
use tokio::runtime::Runtime;
use tokio_rustls::client::TlsStream;

pub const PORT: u16 = 8080;
pub const HBONE: u16 = 15008;

/// A peer may make an agent grow by this much for as long as it is connected, in KiB.
pub const ROOM_KIB: u64 = 96 * 1024;

pub struct Den {
    pub server: MeshPod,
    pub client: MeshPod,
    /// Not enrolled: what leaves it is the test's own.
    pub mallory: MeshPod,
    pub pki: Pki,
    pub quiet: Traffic,
    pub runtime: Runtime,
    resident: u64,
    pub mesh: Mesh,
}

pub type Tls = TlsStream<tokio::net::TcpStream>;

impl Den {
    /// The server on node 2, all others on node 1; the client's traffic to the server goes on throughout.
    pub fn new(name: &str) -> Self {
        let mesh = Mesh::new(name);
        let server = mesh.pod(2, "server");
        let client = mesh.pod(1, "client");
        let mallory = mesh.pod(1, "mallory");
        serve(&server, PORT, Serve::Script);
        mesh.enroll_all(&[server.clone(), client.clone()]);
        let (certificate, key) = mesh.control.authority();
        let pki = Pki::from_pem("cluster.local", &certificate, &key);
        let quiet = Traffic::start(&client, &at(server.ipv4(), PORT), Token::new());
        quiet.succeeds(3);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let resident = mesh.agent(2).resident_kib();
        Self { server, client, mallory, pki, quiet, runtime, resident, mesh }
    }

    pub fn identity(&self) -> String {
        self.mallory.identity()
    }

    /// From mallory to the server's HBONE port.
    pub fn tcp(&self) -> io::Result<tokio::net::TcpStream> {
        let to = SocketAddr::new(self.server.ipv4().into(), HBONE);
        let connect = || Ok(TcpStream::connect_timeout(&to, SOON)?);
        let tcp = self.mallory.inside(connect).map_err(io::Error::other)?;
        tcp.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(tcp)
    }

    /// A listener where mallory, were it enrolled, would take HBONE.
    pub fn listener(&self) -> tokio::net::TcpListener {
        let at = SocketAddr::new(self.mallory.ipv4().into(), HBONE);
        let tcp = self.mallory.inside(|| Ok(TcpListener::bind(at)?)).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let _inside = self.runtime.enter();
        tokio::net::TcpListener::from_std(tcp).unwrap()
    }

    /// TLS with a certificate that is mallory's by right.
    pub async fn tls(&self) -> Tls {
        let own = self.pki.odd(&good_leaf(&self.identity()));
        tls::connect(self.tcp().unwrap(), tls::client_config(Some(own), H2)).await.unwrap()
    }

    /// HTTP/2 with that certificate.
    pub async fn wire(&self) -> Wire<Tls> {
        Wire::client(self.tls().await).await.unwrap()
    }

    /// CONNECT to where the server listens.
    pub fn connect(&self, stream: u32) -> Vec<u8> {
        frames::connect(stream, &at(self.server.ipv4(), PORT))
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            // What hangs is a failure of its own.
            tokio::time::timeout(Duration::from_secs(120), work).await.expect("it ends")
        })
    }

    /// The client has noticed nothing, and the server's agent has not grown beyond bounds.
    #[track_caller]
    pub fn undisturbed(&self, what: &str) {
        self.quiet.succeeds(2);
        let why = self.quiet.last_failure(self.mesh.agents());
        assert_eq!(self.quiet.tally().failed, 0, "{what}: the client was disturbed: {why}");
        let grown = self.mesh.agent(2).resident_kib().saturating_sub(self.resident);
        assert!(grown < ROOM_KIB, "{what}: the agent has grown by {grown} KiB");
        for agent in self.mesh.agents() {
            let log = agent.log();
            assert!(!log.contains("panicked"), "{what}: {log}");
        }
    }

    /// Waits for a line of the log of the agent of node `n` that holds all of these.
    #[track_caller]
    pub fn told(&self, n: usize, parts: &[&str]) {
        let agent = self.mesh.agent(n);
        testbed::eventually(SOON, || {
            let log = agent.log();
            let told = log.lines().any(|l| parts.iter().all(|p| l.contains(p)));
            anyhow::ensure!(told, "no line with {parts:?}");
            Ok(())
        })
        .unwrap();
    }
}
