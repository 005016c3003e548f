//! Interim answers (1xx; RFC 9110, section 15.2) on their way to a client. To one of HTTP/1.1 hyper's
//! server sends none, so they are written beneath it, where it has written all of what it was given:
//! between the answer before and the one that is waited for.

use crate::{head, http2::server::Reply};
use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, Request, StatusCode, Version, header};
use std::{
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Interim answers that a client gets for one request; more are left out.
const MOST: usize = 16;

/// Their bytes together.
const MOST_BYTES: usize = 64 * 1024;

/// What hyper's server writes to, without pipelined flushes: where it flushes, it has no bytes left.
pub struct Beneath<I> {
    io: I,
    /// Goes before whatever hyper writes next.
    first: BytesMut,
    answers: Answers,
}

/// The interim answers of one connection.
#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// How many requests have been answered: the number of the one under way.
    request: u64,
    /// Of that one.
    allowance: Allowance,
    waiting: BytesMut,
    /// hyper has written, and not yet all that it has.
    is_midway: bool,
    /// The connection's task.
    task: Option<Waker>,
}

/// A request that is not answered yet.
pub struct Open(Answers);

/// To the client, while its request is not answered.
#[derive(Clone)]
pub enum ToClient {
    Http1 { answers: Answers, request: u64 },
    Http2(Arc<Reply>),
}

/// What has gone to a client for one request.
#[derive(Default)]
pub struct Allowance {
    count: usize,
    bytes: usize,
}

impl Allowance {
    /// Whether there is room for one more.
    pub fn takes(&mut self, bytes: usize) -> bool {
        let bytes = self.bytes.saturating_add(bytes);
        let takes = self.count < MOST && bytes <= MOST_BYTES;
        if takes {
            *self = Self { count: self.count + 1, bytes };
        }
        takes
    }
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one request: what comes of this is to be dropped before hyper is given the answer. Where the
    /// client takes interim answers, the request has a [`ToClient`] from here on.
    pub fn open<B>(&self, request: &mut Request<B>) -> Open {
        let mut s = self.lock();
        s.allowance = Allowance::default();
        // There were none in HTTP/1.0.
        if request.version() == Version::HTTP_11 {
            let to = ToClient::Http1 { answers: self.clone(), request: s.request };
            request.extensions_mut().insert(to);
        }
        Open(self.clone())
    }

    fn send(&self, request: u64, head: &[u8]) {
        let mut s = self.lock();
        if s.request != request || !s.allowance.takes(head.len()) {
            return;
        }
        s.waiting.extend_from_slice(head);
        let task = s.task.take();
        drop(s);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut s = self.0.lock();
        s.request = s.request.wrapping_add(1);
        if s.is_midway {
            // There is no place for them before this answer any more.
            s.waiting.clear();
        }
    }
}

impl ToClient {
    /// 100 is this hop's own, and 101 is no interim answer here.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) {
        if !status.is_informational() || matches!(status.as_u16(), 100 | 101) {
            return;
        }
        let mut headers = headers.clone();
        head::clean_response(&mut headers);
        // It has no body, and nobody is to look for one.
        headers.remove(header::CONTENT_LENGTH);
        match self {
            Self::Http1 { answers, request } => answers.send(*request, &encoded(status, &headers)),
            Self::Http2(reply) => reply.interim(status, headers),
        }
    }
}

fn encoded(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

impl<I: AsyncWrite + Unpin> Beneath<I> {
    pub fn new(io: I) -> Self {
        Self { io, first: BytesMut::new(), answers: Answers::default() }
    }

    pub fn answers(&self) -> Answers {
        self.answers.clone()
    }

    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.first.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.first))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.first.advance(n),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Beneath<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Beneath<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        {
            let mut s = this.answers.lock();
            // The first byte since a flush begins something; those after it may be within it.
            if !s.is_midway {
                this.first.unsplit(mem::take(&mut s.waiting));
            }
            s.is_midway = true;
        }
        ready!(this.poll_first(cx))?;
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        {
            let mut s = this.answers.lock();
            this.first.unsplit(mem::take(&mut s.waiting));
            s.is_midway = false;
            match &mut s.task {
                Some(task) => task.clone_from(cx.waker()),
                None => s.task = Some(cx.waker().clone()),
            }
        }
        ready!(this.poll_first(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::inbound::http1;
    use bytes::Bytes;
    use http::{HeaderValue, Response};
    use http_body_util::{BodyExt as _, Full};
    use hyper::{body::Incoming, service::service_fn};
    use hyper_util::rt::TokioIo;
    use std::convert::Infallible;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
        sync::mpsc,
    };

    type Answering = (Request<Incoming>, tokio::sync::oneshot::Sender<Full<Bytes>>);

    /// The client's end of a connection that takes no more than a few bytes at a time, and its requests,
    /// each until it is answered.
    fn connection() -> (DuplexStream, mpsc::UnboundedReceiver<Answering>) {
        let (client, server) = tokio::io::duplex(16);
        let (asked, requests) = mpsc::unbounded_channel();
        let io = Beneath::new(server);
        let answers = io.answers();
        let service = service_fn(move |mut r: Request<Incoming>| {
            let open = answers.open(&mut r);
            let (answer, answered) = tokio::sync::oneshot::channel();
            asked.send((r, answer)).unwrap();
            async move {
                let answer = Response::new(answered.await.unwrap());
                drop(open);
                Ok::<_, Infallible>(answer)
            }
        });
        tokio::spawn(http1().serve_connection(TokioIo::new(io), service));
        (client, requests)
    }

    fn hint(to: &ToClient, link: &str) {
        let headers = [(header::LINK, HeaderValue::from_str(link).unwrap())];
        to.send(StatusCode::EARLY_HINTS, &headers.into_iter().collect());
    }

    fn hinted(link: &str) -> String {
        format!("HTTP/1.1 103 Early Hints\r\nlink: {link}\r\n\r\n")
    }

    fn answered(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn client_of(request: &Request<Incoming>) -> ToClient {
        request.extensions().get::<ToClient>().unwrap().clone()
    }

    /// What comes up to the end of this text, without the hour.
    async fn read_to(client: &mut DuplexStream, text: &str) -> String {
        let mut all = Vec::new();
        while !all.ends_with(text.as_bytes()) {
            all.push(client.read_u8().await.unwrap());
        }
        let all = String::from_utf8(all).unwrap();
        all.split_inclusive("\r\n").filter(|l| !l.starts_with("date: ")).collect()
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[tokio::test]
    async fn a_client_that_waits_has_them_as_they_come() {
        let (mut client, mut requests) = connection();
        for round in 0..2 {
            client.write_all(GET.as_bytes()).await.unwrap();
            let (request, answer) = requests.recv().await.unwrap();
            let to = client_of(&request);
            for n in 0..3 {
                let link = format!("</{round}-{n}>");
                hint(&to, &link);
                assert_eq!(read_to(&mut client, "\r\n\r\n").await, hinted(&link));
            }
            answer.send("whole".into()).unwrap();
            assert_eq!(read_to(&mut client, "whole").await, answered("whole"));
        }
    }

    #[tokio::test]
    async fn pipelined_requests_have_each_its_own_before_its_answer() {
        let (mut client, mut requests) = connection();
        let (mut from, mut to) = tokio::io::split(&mut client);
        let asking = async {
            to.write_all(GET.repeat(3).as_bytes()).await.unwrap();
        };
        let answering = async {
            for n in 0..3 {
                let (request, answer) = requests.recv().await.unwrap();
                let to = client_of(&request);
                hint(&to, &format!("</a{n}>"));
                hint(&to, &format!("</b{n}>"));
                answer.send(format!("answer {n}").into()).unwrap();
            }
        };
        let reading = async {
            let mut all = Vec::new();
            while !all.ends_with(b"answer 2") {
                all.push(from.read_u8().await.unwrap());
            }
            all
        };
        let ((), (), all) = tokio::join!(asking, answering, reading);
        let all = String::from_utf8(all).unwrap();
        let lines = all.split_inclusive("\r\n").filter(|l| !l.starts_with("date: "));
        let wanted: String = (0..3)
            .map(|n| {
                hinted(&format!("</a{n}>"))
                    + &hinted(&format!("</b{n}>"))
                    + &answered(&format!("answer {n}"))
            })
            .collect();
        assert_eq!(lines.collect::<String>(), wanted);
    }

    /// A client that has begun to read the answer to a request whose body it had not sent, and has sent
    /// that since: hyper takes the next request, and has not written all of the answer.
    async fn behind(
        long: &str,
    ) -> (DuplexStream, mpsc::UnboundedReceiver<Answering>, ToClient, String) {
        let (mut client, mut requests) = connection();
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n").await.unwrap();
        let (request, answer) = requests.recv().await.unwrap();
        let to = client_of(&request);
        let mut body = request.into_body();
        answer.send(long.to_owned().into()).unwrap();
        let begun = read_to(&mut client, "H").await;
        client.write_all(b"body").await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "body");
        (client, requests, to, begun)
    }

    #[tokio::test]
    async fn an_answer_that_is_on_its_way_is_not_broken_into() {
        let long = "long ".repeat(100);
        let (mut client, mut requests, _, begun) = behind(&long).await;
        client.write_all(GET.as_bytes()).await.unwrap();
        let (request, answer) = requests.recv().await.unwrap();
        hint(&client_of(&request), "</next>");
        assert_eq!(begun + &read_to(&mut client, &long).await, answered(&long));
        assert_eq!(read_to(&mut client, "\r\n\r\n").await, hinted("</next>"));
        answer.send("next".into()).unwrap();
        assert_eq!(read_to(&mut client, "next").await, answered("next"));
    }

    #[tokio::test]
    async fn where_it_would_come_too_late_there_is_none() {
        let long = "long ".repeat(100);
        let (mut client, mut requests, first, begun) = behind(&long).await;
        hint(&first, "</late>");
        client.write_all(GET.as_bytes()).await.unwrap();
        let (request, answer) = requests.recv().await.unwrap();
        hint(&first, "</later>");
        // The answer before is on its way still, and this one goes behind it.
        hint(&client_of(&request), "</next>");
        answer.send("next".into()).unwrap();
        assert_eq!(begun + &read_to(&mut client, &long).await, answered(&long));
        assert_eq!(read_to(&mut client, "next").await, answered("next"));
        client.write_all(GET.as_bytes()).await.unwrap();
        let (_, answer) = requests.recv().await.unwrap();
        hint(&first, "</much-later>");
        answer.send("last".into()).unwrap();
        assert_eq!(read_to(&mut client, "last").await, answered("last"));
    }

    #[tokio::test]
    async fn clients_of_http_1_0_have_none() {
        let (mut client, mut requests) = connection();
        client.write_all(b"GET / HTTP/1.0\r\nhost: a\r\n\r\n").await.unwrap();
        let (request, _answer) = requests.recv().await.unwrap();
        assert!(request.extensions().get::<ToClient>().is_none());
    }

    #[tokio::test]
    async fn there_are_so_many_for_a_request_and_no_more() {
        let (mut client, mut requests) = connection();
        for many in [true, false] {
            client.write_all(GET.as_bytes()).await.unwrap();
            let (request, answer) = requests.recv().await.unwrap();
            let to = client_of(&request);
            let link = format!("<{}>", "x".repeat(if many { 10 } else { MOST_BYTES / 3 }));
            for _ in 0..100 {
                hint(&to, &link);
            }
            answer.send("done".into()).unwrap();
            let all = read_to(&mut client, "done").await;
            let times = if many { MOST } else { 2 };
            assert_eq!(all, hinted(&link).repeat(times) + &answered("done"));
        }
    }

    #[tokio::test]
    async fn what_is_for_one_hop_does_not_go_on() {
        let (mut client, mut requests) = connection();
        client.write_all(GET.as_bytes()).await.unwrap();
        let (request, answer) = requests.recv().await.unwrap();
        let to = client_of(&request);
        for status in [100, 101, 200] {
            to.send(StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
        }
        let headers = [
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("x-kept", "1"),
        ];
        let headers = headers.map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v)));
        to.send(StatusCode::from_u16(199).unwrap(), &headers.into_iter().collect());
        assert_eq!(read_to(&mut client, "\r\n\r\n").await, "HTTP/1.1 199 \r\nx-kept: 1\r\n\r\n");
        answer.send("done".into()).unwrap();
        assert_eq!(read_to(&mut client, "done").await, answered("done"));
    }
}
