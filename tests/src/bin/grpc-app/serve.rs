use crate::{NEVER, PORT};
use futures_util::{Stream, StreamExt as _};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use xds::proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use xds::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use xds::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use xds::proto::discovery::{DeltaDiscoveryRequest, UnopenedResponse};

pub async fn serve(at: IpAddr) {
    let listener = tokio::net::TcpListener::bind(SocketAddr::new(at, PORT)).await.unwrap();
    println!("listens");
    let incoming = futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    Server::builder()
        .add_service(IstioCertificateServiceServer::new(Calls))
        .add_service(AggregatedDiscoveryServiceServer::new(Streams))
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}

struct Calls;

#[tonic::async_trait]
impl IstioCertificateService for Calls {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let client = request.remote_addr().unwrap().ip().to_canonical().to_string();
        let asked = request.into_inner().csr;
        match asked.as_str() {
            NEVER => std::future::pending().await,
            "" => Err(Status::failed_precondition("nothing was asked")),
            _ => Ok(Response::new(IstioCertificateResponse { cert_chain: vec![asked, client] })),
        }
    }
}

struct Streams;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Streams {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<UnopenedResponse, Status>> + Send>>;

    /// Each message is turned around; the end of the client's is the server's.
    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let back = request.into_inner().map(|message| {
            message.map(|m| UnopenedResponse { nonce: m.response_nonce, ..Default::default() })
        });
        Ok(Response::new(Box::pin(back)))
    }
}
