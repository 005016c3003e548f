use super::{client::Requests, server::serve};
use crate::{
    body::{InBody, OutBody, Passing, Received},
    interim::ToClient,
};
use bytes::Bytes;
use h2::{Reason, RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use std::{future::poll_fn, sync::Arc, task::Poll};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

type Asked = (Request<Received>, oneshot::Sender<Response<InBody>>);

/// This proxy's server, a client of it, and the requests that are to be answered.
struct Serving {
    send: client::SendRequest<Bytes>,
    requests: mpsc::UnboundedReceiver<Asked>,
    drain: watch::Sender<bool>,
    ended: JoinHandle<Result<(), h2::Error>>,
}

async fn serving() -> Serving {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (asked, requests) = mpsc::unbounded_channel();
    let (drain, draining) = watch::channel(false);
    let ended = tokio::spawn(serve(far, 64 * 1024, draining, move |request| {
        let (answer, answered) = oneshot::channel();
        asked.send((request, answer)).unwrap();
        async move { answered.await.unwrap() }
    }));
    let (send, connection) = client::handshake(near).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let send = send.ready().await.unwrap();
    Serving { send, requests, drain, ended }
}

/// This proxy's client, and the endpoint that it asks.
async fn asking() -> (Requests, server::Connection<DuplexStream, Bytes>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let requests = Requests::connect(near).await.unwrap();
    (requests, server::handshake(far).await.unwrap())
}

fn to(path: &str) -> Request<()> {
    Request::builder().uri(format!("http://reviews{path}")).body(()).unwrap()
}

fn whole(text: &'static str) -> Response<InBody> {
    Response::new(InBody::of(text))
}

fn hint(to: &ToClient, link: &str) {
    let headers = [(header::LINK, HeaderValue::from_str(link).unwrap())];
    to.send(StatusCode::EARLY_HINTS, &headers.into_iter().collect());
}

fn client_of(request: &Request<Received>) -> ToClient {
    let Received::Http2(body) = request.body() else { panic!("no request of HTTP/2") };
    body.client().unwrap()
}

/// The next interim answer's link.
async fn hinted(response: &mut client::ResponseFuture) -> String {
    let interim = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
    assert_eq!(interim.status(), StatusCode::EARLY_HINTS);
    interim.headers()[header::LINK].to_str().unwrap().to_owned()
}

async fn text(mut from: RecvStream) -> String {
    let mut all = Vec::new();
    while let Some(data) = from.data().await {
        let data = data.unwrap();
        from.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn a_client_has_interim_answers_as_they_come_and_each_request_its_own() {
    let mut s = serving().await;
    let (mut a, _) = s.send.send_request(to("/a"), true).unwrap();
    let (mut b, _) = s.send.send_request(to("/b"), true).unwrap();
    let (of_a, answer_a) = s.requests.recv().await.unwrap();
    let (of_b, answer_b) = s.requests.recv().await.unwrap();
    assert_eq!((of_a.uri().path(), of_b.uri().path()), ("/a", "/b"));
    for n in 0..3 {
        for (name, request, response) in [("a", &of_a, &mut a), ("b", &of_b, &mut b)] {
            let link = format!("</{name}{n}>");
            hint(&client_of(request), &link);
            assert_eq!(hinted(response).await, link);
        }
    }
    assert!(answer_b.send(whole("b is first")).is_ok());
    let answered = b.await.unwrap();
    assert_eq!(answered.headers()[header::CONTENT_LENGTH], "10");
    assert!(answered.headers().contains_key(header::DATE));
    assert_eq!(text(answered.into_body()).await, "b is first");
    // Its request is answered: no more of it.
    hint(&client_of(&of_b), "</late>");
    assert!(answer_a.send(whole("a is last")).is_ok());
    assert_eq!(text(a.await.unwrap().into_body()).await, "a is last");
}

#[tokio::test]
async fn a_head_has_the_length_of_its_answer_and_no_body() {
    let mut s = serving().await;
    let mut head = to("/");
    *head.method_mut() = Method::HEAD;
    let (response, _) = s.send.send_request(head, true).unwrap();
    let (_, answer) = s.requests.recv().await.unwrap();
    assert!(answer.send(whole("denied")).is_ok());
    let answered = response.await.unwrap();
    assert_eq!(answered.headers()[header::CONTENT_LENGTH], "6");
    assert!(answered.body().is_end_stream());
}

#[tokio::test]
async fn a_cookie_that_comes_in_parts_is_one() {
    let mut s = serving().await;
    let mut request = to("/");
    for part in ["a=1", "user=jason", "b=2"] {
        request.headers_mut().append(header::COOKIE, HeaderValue::from_static(part));
    }
    let (response, _) = s.send.send_request(request, true).unwrap();
    let (asked, answer) = s.requests.recv().await.unwrap();
    let cookies: Vec<_> = asked.headers().get_all(header::COOKIE).iter().collect();
    assert_eq!(cookies, ["a=1; user=jason; b=2"]);
    assert!(answer.send(whole("")).is_ok());
    response.await.unwrap();
}

#[tokio::test]
async fn there_are_so_many_interim_answers_for_a_request_and_no_more() {
    let mut s = serving().await;
    for (times, size, wanted) in [(100, 10, 16), (100, 30 * 1024, 2)] {
        let (mut response, _) = s.send.send_request(to("/"), true).unwrap();
        let (request, answer) = s.requests.recv().await.unwrap();
        let link = "x".repeat(size);
        for _ in 0..times {
            hint(&client_of(&request), &link);
        }
        assert!(answer.send(whole("done")).is_ok());
        for _ in 0..wanted {
            assert_eq!(hinted(&mut response).await, link);
        }
        assert!(poll_fn(|cx| response.poll_informational(cx)).await.is_none());
        assert_eq!(response.await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn an_endpoints_interim_answers_reach_the_client_before_its_answer() {
    let mut s = serving().await;
    let (mut response, _) = s.send.send_request(to("/"), true).unwrap();
    let (request, answer) = s.requests.recv().await.unwrap();
    let (endpoint, mut application) = asking().await;
    let request = (to("/").map(|()| OutBody::Empty), Some(client_of(&request)));
    let asked = tokio::spawn(endpoint.ask(request.0, request.1));
    let (_, mut respond) = application.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while application.accept().await.is_some() {} });
    for link in ["</style.css>", "</script.js>"] {
        let mut interim = Response::new(());
        *interim.status_mut() = StatusCode::EARLY_HINTS;
        interim.headers_mut().insert(header::LINK, HeaderValue::from_static(link));
        respond.send_informational(interim).unwrap();
        assert_eq!(hinted(&mut response).await, link);
    }
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    body.send_data("ok".into(), true).unwrap();
    let answered = asked.await.unwrap().unwrap();
    assert_eq!(answered.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert!(answer.send(whole("passed on")).is_ok());
    assert_eq!(text(response.await.unwrap().into_body()).await, "passed on");
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_is_told_when_its_body_is_wanted() {
    let mut s = serving().await;
    let mut request = to("/");
    request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-Continue"));
    let (mut response, mut stream) = s.send.send_request(request, false).unwrap();
    let (asked, answer) = s.requests.recv().await.unwrap();
    tokio::task::yield_now().await;
    assert!(poll_fn(|cx| Poll::Ready(response.poll_informational(cx).is_pending())).await);
    let body = tokio::spawn(asked.into_body().collect());
    let told = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
    assert_eq!(told.status(), StatusCode::CONTINUE);
    stream.send_data("body".into(), true).unwrap();
    assert_eq!(body.await.unwrap().unwrap().to_bytes(), "body");
    assert!(answer.send(whole("done")).is_ok());
    assert!(poll_fn(|cx| response.poll_informational(cx)).await.is_none());
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_that_its_client_breaks_off_is_not_whole() {
    let mut s = serving().await;
    for (reason, length) in
        [(Reason::CANCEL, Some(9)), (Reason::NO_ERROR, Some(9)), (Reason::NO_ERROR, None)]
    {
        let mut request = to("/");
        if let Some(length) = length {
            request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        let (_response, mut stream) = s.send.send_request(request, false).unwrap();
        stream.send_data("part".into(), false).unwrap();
        let (asked, _answer) = s.requests.recv().await.unwrap();
        let mut body = asked.into_body();
        assert_eq!(body.size_hint().exact(), length);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "part");
        stream.send_reset(reason);
        assert!(body.frame().await.unwrap().is_err(), "{reason:?}");
    }
}

#[tokio::test]
async fn what_a_reset_says_of_its_own_stream_is_not_said_of_another() {
    let mut s = serving().await;
    for (reason, length, told) in [
        (Reason::CANCEL, None, Reason::CANCEL),
        (Reason::REFUSED_STREAM, None, Reason::INTERNAL_ERROR),
        (Reason::NO_ERROR, Some(9), Reason::INTERNAL_ERROR),
    ] {
        let (response, _) = s.send.send_request(to("/"), true).unwrap();
        let (_, answer) = s.requests.recv().await.unwrap();
        let (endpoint, mut application) = asking().await;
        let asked = tokio::spawn(endpoint.ask(to("/").map(|()| OutBody::Empty), None));
        let (_, mut respond) = application.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while application.accept().await.is_some() {} });
        let mut head = Response::new(());
        if let Some(length) = length {
            head.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        }
        let mut body = respond.send_response(head, false).unwrap();
        body.send_data("part".into(), false).unwrap();
        let passing = Passing {
            from: Received::Http2(asked.await.unwrap().unwrap().into_body()),
            deadline: None,
            done: None,
        };
        assert!(answer.send(Response::new(InBody::Passing(Box::new(passing)))).is_ok());
        let mut from = response.await.unwrap().into_body();
        assert_eq!(from.data().await.unwrap().unwrap(), "part");
        body.send_reset(reason);
        assert_eq!(from.data().await.unwrap().unwrap_err().reason(), Some(told), "{reason:?}");
    }
}

/// A body as it is given; none is its end, and without that it is broken off.
fn given() -> (mpsc::UnboundedSender<Option<Frame<Bytes>>>, OutBody) {
    let (give, given) = mpsc::unbounded_channel();
    (give, OutBody::Mirror(given, Arc::default()))
}

#[tokio::test]
async fn a_body_goes_on_while_it_is_answered_and_no_longer() {
    let (requests, mut application) = asking().await;
    let (give, body) = given();
    let (near, far) = oneshot::channel();
    let mut request = to("/").map(|()| body);
    *request.method_mut() = Method::POST;
    let asked = tokio::spawn(requests.ask(request, None));
    let (request, mut respond) = application.accept().await.unwrap().unwrap();
    tokio::spawn(async move {
        while application.accept().await.is_some() {}
        let _ = near.send(());
    });
    let mut answer = respond.send_response(Response::new(()), false).unwrap();
    let mut answered = asked.await.unwrap().unwrap().into_body();
    let mut from = request.into_body();
    for word in ["one", "two"] {
        give.send(Some(Frame::data(word.into()))).unwrap();
        assert_eq!(from.data().await.unwrap().unwrap(), word);
        answer.send_data(word.into(), false).unwrap();
        assert_eq!(answered.frame().await.unwrap().unwrap().into_data().unwrap(), word);
    }
    drop(answered);
    assert_eq!(from.data().await.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    give.closed().await;
    // Nobody has the connection any more, and it has nothing under way.
    far.await.unwrap();
}

#[tokio::test]
async fn trailers_end_a_body_and_a_body_that_breaks_off_ends_in_a_reset() {
    let (requests, mut application) = asking().await;
    for breaks in [false, true] {
        let (give, body) = given();
        let mut request = to("/").map(|()| body);
        *request.method_mut() = Method::POST;
        let asked = tokio::spawn(requests.clone().ask(request, None));
        give.send(Some(Frame::data("data".into()))).unwrap();
        let (request, mut respond) = application.accept().await.unwrap().unwrap();
        let mut from = request.into_body();
        let accepting = async { application.accept().await.is_none() };
        let told = async {
            assert_eq!(from.data().await.unwrap().unwrap(), "data");
            if breaks {
                drop(give);
                let error = from.data().await.unwrap().unwrap_err();
                assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
                assert!(asked.await.unwrap().is_err());
                return;
            }
            let trailers: HeaderMap =
                [(header::ETAG, HeaderValue::from_static("x"))].into_iter().collect();
            give.send(Some(Frame::trailers(trailers.clone()))).unwrap();
            assert!(from.data().await.is_none());
            assert_eq!(from.trailers().await.unwrap().unwrap(), trailers);
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            answer.send_trailers(trailers.clone()).unwrap();
            let body = asked.await.unwrap().unwrap().into_body().collect().await.unwrap();
            assert_eq!(body.trailers(), Some(&trailers));
        };
        tokio::select! {
            closed = accepting => assert!(closed, "another request"),
            () = told => {}
        }
    }
}

#[tokio::test]
async fn what_an_endpoint_has_refused_can_be_sent_again() {
    for (reason, refused) in [(Reason::REFUSED_STREAM, true), (Reason::INTERNAL_ERROR, false)] {
        let (requests, mut application) = asking().await;
        let asked = tokio::spawn(requests.ask(to("/").map(|()| OutBody::Empty), None));
        let (_, mut respond) = application.accept().await.unwrap().unwrap();
        respond.send_reset(reason);
        tokio::spawn(async move { while application.accept().await.is_some() {} });
        let failed = asked.await.unwrap().err().unwrap();
        assert_eq!(failed.is_unprocessed(), refused, "{failed}");
    }
}

/// The frame that says so, by hand: with the last stream that is looked at, and a reason.
#[tokio::test]
async fn what_an_endpoint_leaves_out_when_it_goes_can_be_sent_again() {
    for (last, reason, left_out) in [
        (0, Reason::NO_ERROR, true),
        (0, Reason::INTERNAL_ERROR, true),
        (1, Reason::NO_ERROR, false),
        (1, Reason::INTERNAL_ERROR, false),
    ] {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let requests = Requests::connect(near).await.unwrap();
        let asked = tokio::spawn(requests.ask(to("/").map(|()| OutBody::Empty), None));
        tokio::task::yield_now().await;
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, u32::from(reason) as u8];
        far.write_all(&[&settings[..], &goaway].concat()).await.unwrap();
        drop(far);
        let failed = asked.await.unwrap().err().unwrap();
        assert_eq!(failed.is_unprocessed(), left_out, "{last} {reason:?}: {failed}");
    }
}

#[tokio::test]
async fn an_endpoint_that_goes_away_is_sent_nothing_new() {
    let (mut requests, mut application) = asking().await;
    let asked = tokio::spawn(requests.clone().ask(to("/").map(|()| OutBody::Empty), None));
    let (_, mut respond) = application.accept().await.unwrap().unwrap();
    application.graceful_shutdown();
    tokio::spawn(async move { while application.accept().await.is_some() {} });
    while requests.is_open() {
        tokio::task::yield_now().await;
    }
    let late = requests.clone().ask(to("/").map(|()| OutBody::Empty), None).await;
    assert!(late.err().unwrap().is_unprocessed());
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    body.send_data("still".into(), true).unwrap();
    let answered = asked.await.unwrap().unwrap();
    assert_eq!(answered.into_body().collect().await.unwrap().to_bytes(), "still");
}

#[tokio::test]
async fn nobody_works_for_a_client_that_wants_no_more() {
    let mut s = serving().await;
    let (response, _) = s.send.send_request(to("/"), true).unwrap();
    let (_, mut answer) = s.requests.recv().await.unwrap();
    drop(response);
    answer.closed().await;
}

#[tokio::test]
async fn a_drain_answers_what_is_under_way_and_takes_nothing_new() {
    let mut s = serving().await;
    let (response, _) = s.send.send_request(to("/"), true).unwrap();
    let (_, answer) = s.requests.recv().await.unwrap();
    s.drain.send_replace(true);
    while poll_fn(|cx| Poll::Ready(matches!(s.send.poll_ready(cx), Poll::Ready(Ok(()))))).await {
        tokio::task::yield_now().await;
    }
    assert!(answer.send(whole("to its end")).is_ok());
    assert_eq!(text(response.await.unwrap().into_body()).await, "to its end");
    s.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connect_that_is_answered_so_is_a_stream_of_bytes() {
    let mut s = serving().await;
    let mut request = to("/chat");
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let mut s2 = s.send.clone();
    while !s2.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    let (response, mut stream) = s2.send_request(request, false).unwrap();
    let (asked, answer) = s.requests.recv().await.unwrap();
    assert_eq!(asked.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
    let Received::Switched(switched) = asked.into_body() else { panic!("a body") };
    assert!(answer.send(Response::new(InBody::empty())).is_ok());
    let mut io = switched.await.unwrap();
    let answered = response.await.unwrap();
    assert!(!answered.headers().contains_key(header::CONTENT_LENGTH));
    stream.send_data("up".into(), true).unwrap();
    let mut up = String::new();
    io.read_to_string(&mut up).await.unwrap();
    io.write_all(b"down").await.unwrap();
    io.shutdown().await.unwrap();
    assert_eq!((up.as_str(), text(answered.into_body()).await.as_str()), ("up", "down"));
}

/// gRPC's servers allow one in five minutes, and close the connection after a few more.
#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_stream_is_quiet_gets_no_pings() {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let requests = Requests::connect(near).await.unwrap();
    let asked = tokio::spawn(requests.ask(to("/watch").map(|()| OutBody::Empty), None));
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    assert!(!asked.is_finished());
    asked.abort();
    let mut all = Vec::new();
    far.read_to_end(&mut all).await.unwrap();
    let mut rest = all.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut kinds = Vec::new();
    while let [a, b, c, kind, ..] = *rest {
        kinds.push(kind);
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        rest = &rest[9 + length..];
    }
    const PING: u8 = 6;
    assert!(kinds.len() >= 2 && !kinds.contains(&PING), "{kinds:?}");
}
