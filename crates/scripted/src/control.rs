//! A control plane by script: discovery and certificates, over TLS as culvertd serves them. Every response is the
//! test's own, down to its bytes; every request is kept.

use crate::pki::Pki;
use futures_util::future::BoxFuture;
use prost::Message;
use std::{
    collections::VecDeque,
    convert::Infallible,
    net::TcpListener,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, EncodeBuf, Encoder},
    codegen::Service,
    server::{Grpc, NamedService, StreamingService},
    transport::{Identity, Server, ServerTlsConfig},
};
use tonic_prost::ProstCodec;
use xds::proto::{
    ca::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{
            IstioCertificateService, IstioCertificateServiceServer,
        },
    },
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    node::{
        ReportRequest, ReportResponse,
        node_server::{Node, NodeServer},
    },
};

/// How long a test waits for a client's next word.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves until it is dropped; then its connections break, as when the process is killed.
pub struct ControlPlane {
    shared: Arc<Shared>,
    opened: Mutex<Receiver<AdsStream>>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Default)]
struct Shared {
    streams: AtomicUsize,
    ca: Mutex<Option<Arc<Answering>>>,
    csrs: Mutex<Vec<Csr>>,
    reports: Mutex<Vec<ReportRequest>>,
    /// How the next reports are answered, instead of taken.
    refusals: Mutex<VecDeque<Code>>,
}

type Answering = dyn Fn(&Csr) -> CaAnswer + Send + Sync;

/// What a client asked to have certified.
#[derive(Clone, Debug)]
pub struct Csr {
    /// `ImpersonatedIdentity`.
    pub identity: String,
    pub pem: String,
    /// How many times this identity was asked for before.
    pub earlier: usize,
}

pub enum CaAnswer {
    Chain(Vec<String>),
    Status(Code, &'static str),
    /// The call is taken and never answered.
    Never,
}

impl ControlPlane {
    /// `listener` may be of any network namespace. `name` is the DNS name of the server's certificate.
    pub fn serve(listener: TcpListener, pki: &Pki, name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shared = Arc::new(Shared::default());
        let (tx, opened) = channel();
        let (certificate, key) = pki.dns(name);
        listener.set_nonblocking(true).unwrap();
        let ads = Ads { shared: shared.clone(), opened: tx };
        let ca = IstioCertificateServiceServer::new(Ca(shared.clone()));
        let node = NodeServer::new(Reports(shared.clone()));
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let server = Server::builder()
                .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))
                .unwrap()
                .add_service(ads)
                .add_service(ca)
                .add_service(node)
                .serve_with_incoming(TcpListenerStream::new(listener));
            tokio::spawn(server);
        });
        Self { shared, opened: Mutex::new(opened), runtime: Some(runtime) }
    }

    /// Says how the CA answers from now on.
    pub fn answer_csrs(&self, how: impl Fn(&Csr) -> CaAnswer + Send + Sync + 'static) {
        *lock(&self.shared.ca) = Some(Arc::new(how));
    }

    /// All that the CA was asked.
    pub fn csrs(&self) -> Vec<Csr> {
        lock(&self.shared.csrs).clone()
    }

    /// All that agents have reported of their pods, taken or refused.
    pub fn reports(&self) -> Vec<ReportRequest> {
        lock(&self.shared.reports).clone()
    }

    /// Refuses the next reports, one by one.
    pub fn refuse_reports(&self, codes: &[Code]) {
        lock(&self.shared.refusals).extend(codes);
    }

    /// The next discovery stream that a client opens.
    pub fn stream(&self) -> AdsStream {
        lock(&self.opened).recv_timeout(PATIENCE).expect("a client opens a discovery stream")
    }

    /// How many discovery streams were opened so far.
    pub fn streams_opened(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Its port is free when this returns.
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One discovery stream. It ends when this is dropped.
pub struct AdsStream {
    requests: Receiver<DeltaDiscoveryRequest>,
    responses: mpsc::UnboundedSender<Result<Vec<u8>, Status>>,
    /// Requests that were passed over while another was waited for.
    kept: VecDeque<DeltaDiscoveryRequest>,
}

impl AdsStream {
    pub fn send(&self, response: &DeltaDiscoveryResponse) {
        self.send_bytes(response.encode_to_vec());
    }

    /// A gRPC message of these bytes, whatever they are. A client that has gone hears nothing.
    pub fn send_bytes(&self, message: Vec<u8>) {
        let _ = self.responses.send(Ok(message));
    }

    /// Ends the stream with this status.
    pub fn fail(&mut self, code: Code, why: &str) {
        let _ = self.responses.send(Err(Status::new(code, why)));
    }

    /// The next request.
    pub fn request(&mut self) -> DeltaDiscoveryRequest {
        self.kept.pop_front().unwrap_or_else(|| {
            self.requests.recv_timeout(PATIENCE).expect("the client says something")
        })
    }

    /// The next request of a type; what comes before it is kept.
    pub fn request_of(&mut self, type_url: &str) -> DeltaDiscoveryRequest {
        if let Some(at) = self.kept.iter().position(|r| r.type_url == type_url) {
            return self.kept.remove(at).unwrap();
        }
        loop {
            let next = self.requests.recv_timeout(PATIENCE).expect("the client says something");
            if next.type_url == type_url {
                return next;
            }
            self.kept.push_back(next);
        }
    }

    /// Sends it, and waits for the answer to its nonce.
    pub fn exchange(&mut self, response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        self.send(response);
        loop {
            let answer = self.request_of(&response.type_url);
            if answer.response_nonce == response.nonce {
                return answer;
            }
        }
    }

    /// Sends it, which must be taken whole.
    #[track_caller]
    pub fn taken(&mut self, response: &DeltaDiscoveryResponse) {
        let answer = self.exchange(response);
        assert_eq!(answer.error_detail, None, "the client rejected what is sound");
    }

    /// Sends it, which must be rejected; the message says what of it.
    #[track_caller]
    pub fn rejected(&mut self, response: &DeltaDiscoveryResponse) -> String {
        let answer = self.exchange(response);
        answer.error_detail.expect("the client took what it must reject").message
    }

    /// Whether a request comes within `patience`: for what must not come.
    pub fn silent_for(&mut self, patience: Duration) -> bool {
        self.kept.is_empty() && self.requests.recv_timeout(patience).is_err()
    }

    /// Waits until the client has ended the stream.
    pub fn ended(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.requests.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("the client keeps the stream"),
            }
        }
    }
}

/// The service by hand: a generated one sends nothing but sound messages.
#[derive(Clone)]
struct Ads {
    shared: Arc<Shared>,
    opened: Sender<AdsStream>,
}

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for Ads {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let ads = self.clone();
        Box::pin(async move {
            // A NACK of any length is to be seen.
            let mut grpc = Grpc::new(Bytewise).max_decoding_message_size(usize::MAX);
            Ok(grpc.streaming(ads, request).await)
        })
    }
}

impl StreamingService<DeltaDiscoveryRequest> for Ads {
    type Response = Vec<u8>;
    type ResponseStream = UnboundedReceiverStream<Result<Vec<u8>, Status>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let (responses, sent) = mpsc::unbounded_channel();
        let (heard, requests) = channel();
        let mut from_client = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(request)) = from_client.message().await {
                if heard.send(request).is_err() {
                    return;
                }
            }
        });
        self.shared.streams.fetch_add(1, Ordering::Relaxed);
        // A test that has ended takes no more.
        let _ = self.opened.send(AdsStream { requests, responses, kept: VecDeque::new() });
        std::future::ready(Ok(Response::new(UnboundedReceiverStream::new(sent))))
    }
}

struct Bytewise;

impl Codec for Bytewise {
    type Encode = Vec<u8>;
    type Decode = DeltaDiscoveryRequest;
    type Encoder = Self;
    type Decoder = <ProstCodec<DeltaDiscoveryRequest, DeltaDiscoveryRequest> as Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        Bytewise
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryRequest>::default().decoder()
    }
}

impl Encoder for Bytewise {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use prost::bytes::BufMut as _;
        into.put_slice(&message);
        Ok(())
    }
}

struct Reports(Arc<Shared>);

#[tonic::async_trait]
impl Node for Reports {
    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        lock(&self.0.reports).push(request.into_inner());
        match lock(&self.0.refusals).pop_front() {
            Some(code) => Err(Status::new(code, "by the script")),
            None => Ok(Response::new(ReportResponse {})),
        }
    }
}

struct Ca(Arc<Shared>);

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        let fields = request.metadata.unwrap_or_default().fields;
        let identity = match fields.get("ImpersonatedIdentity").and_then(|v| v.kind.clone()) {
            Some(prost_types::value::Kind::StringValue(id)) => id,
            _ => String::new(),
        };
        let csr = {
            let mut all = lock(&self.0.csrs);
            let earlier = all.iter().filter(|c| c.identity == identity).count();
            let csr = Csr { identity, pem: request.csr, earlier };
            all.push(csr.clone());
            csr
        };
        let how = lock(&self.0.ca).clone();
        match how.map(|how| how(&csr)) {
            Some(CaAnswer::Chain(cert_chain)) => {
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Some(CaAnswer::Status(code, why)) => Err(Status::new(code, why)),
            Some(CaAnswer::Never) => std::future::pending().await,
            None => Err(Status::unavailable("the script has no CA yet")),
        }
    }
}
