use crate::{NEVER, PORT};
use futures_util::StreamExt as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use xds::proto::ca::IstioCertificateRequest;
use xds::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use xds::proto::discovery::DeltaDiscoveryRequest;
use xds::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;

pub async fn ask(at: IpAddr) {
    let endpoint = || {
        let uri = format!("http://{}", SocketAddr::new(at, PORT));
        Endpoint::from_shared(uri).unwrap()
    };
    let channel = endpoint().connect().await.unwrap();
    let mut seen = Vec::new();
    for n in 0..200 {
        seen = call(channel.clone(), &n.to_string()).await.unwrap();
    }
    println!("calls one after the other: {seen:?}");
    let at_once = (0..500).map(|n| {
        let channel = channel.clone();
        async move { call(channel, &n.to_string()).await.unwrap()[0] == n.to_string() }
    });
    let right = futures_util::stream::iter(at_once)
        .buffer_unordered(100)
        .filter(|r| std::future::ready(*r));
    println!("calls at once: {}", right.count().await);
    let mut right = 0;
    for n in 0..50 {
        let own = endpoint().connect().await.unwrap();
        right += usize::from(call(own, &n.to_string()).await.is_ok());
    }
    println!("connections: {right}");
    let large = "x".repeat(3_000_000);
    println!("3 MB: {}", call(channel.clone(), &large).await.unwrap()[0] == large);
    println!(
        "status: {:?}",
        call(channel.clone(), "").await.map_err(|s| (s.code(), s.message().to_owned()))
    );
    println!("deadline: {:?}", deadline(channel.clone()).await);
    println!("stream: {}", stream(channel.clone()).await);
    println!("after all: {:?}", call(channel, "last").await.unwrap()[0]);
}

async fn call(channel: Channel, asked: &str) -> Result<Vec<String>, Status> {
    let mut client = IstioCertificateServiceClient::new(channel);
    let request = IstioCertificateRequest { csr: asked.to_owned(), ..Default::default() };
    Ok(client.create_certificate(request).await?.into_inner().cert_chain)
}

async fn deadline(channel: Channel) -> Code {
    let mut client = IstioCertificateServiceClient::new(channel);
    let asked = IstioCertificateRequest { csr: NEVER.to_owned(), ..Default::default() };
    let mut request = Request::new(asked);
    request.set_timeout(Duration::from_millis(100));
    client.create_certificate(request).await.unwrap_err().code()
}

/// How many messages came back as they were sent, in their order.
async fn stream(channel: Channel) -> usize {
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let message = |n: usize| DeltaDiscoveryRequest {
        response_nonce: format!("{n}{}", "-".repeat(n % 5000)),
        ..Default::default()
    };
    let there = futures_util::stream::iter((0..2000).map(message));
    let mut back = client.delta_aggregated_resources(there).await.unwrap().into_inner();
    let mut n = 0;
    while let Some(answer) = back.message().await.unwrap() {
        assert_eq!(answer.nonce, message(n).response_nonce);
        n += 1;
    }
    n
}
