//! Delta ADS, the server's end over a connection.

#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, sync::Arc};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use xds::{
    ADDRESS_TYPE,
    proto::discovery::{
        DeltaDiscoveryRequest,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    server::{Ads, Authorize, Client, Encoded, Store},
};

/// A client that comes back names everything that it has, in one message.
#[tokio::test]
async fn who_has_a_large_mesh_may_come_back() {
    let store = Store::new(&[ADDRESS_TYPE]);
    let new = Encoded { version: "1".to_owned(), ..Encoded::default() };
    store.update(ADDRESS_TYPE, vec![("new".to_owned(), new)], Vec::new());
    let authorize: Authorize = Arc::new(|_, from| {
        assert!(from.unwrap().ip().is_loopback());
        Box::pin(std::future::ready(Ok(Client { name: "client".to_owned(), scope: None })))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .add_service(Ads::new(store, authorize).service())
        .serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(server);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(endpoint.connect().await.unwrap())
        .max_decoding_message_size(xds::MAX_MESSAGE);
    let has =
        |n: u32| (format!("Kubernetes//Pod/namespace-{n:05}/workload-{n:06}"), format!("{n:016x}"));
    let request = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        initial_resource_versions: (0..110_000).map(has).collect::<HashMap<_, _>>(),
        ..DeltaDiscoveryRequest::default()
    };
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut answers = client.delta_aggregated_resources(requests).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(answer.resources.len(), 1);
    assert_eq!(answer.removed_resources.len(), 110_000);
    serving.abort();
}
