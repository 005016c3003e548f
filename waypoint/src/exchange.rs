//! What is known of one request under way, and what is told of it when it has ended.

use crate::{
    body::{InBody, Received, Taken},
    forward,
    http::Downstream,
    proxy::Proxy,
    reply::{self, Refusal, local},
    spans::span,
    telling::Telling,
    trace::Context,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};
use telemetry::{GRPC_UNKNOWN, Logged, Messages, RequestRecord};

/// What is known of a request under way: becomes a line of the access log, and counts in the metrics.
pub struct Exchange {
    pub proxy: Arc<Proxy>,
    pub downstream: Arc<Downstream>,
    begun: Instant,
    /// Boxed, since it is large and goes through many hands.
    pub record: Box<RequestRecord>,
    /// What the client has sent.
    pub received: Option<Arc<Taken>>,
    pub is_grpc: bool,
    /// Of gRPC's answer.
    messages: Messages,
    telling: Arc<Telling>,
    /// Headers that its line has in it.
    logged: Logged,
    /// With the span's own tags.
    trace: Option<(Context, Vec<(String, String)>)>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let r = &mut self.record;
        if r.response_code == 0 {
            r.response_flags = "DC";
            "the client is gone".clone_into(&mut r.response_code_details);
        }
        r.took = self.begun.elapsed();
        r.duration = u64::try_from(r.took.as_millis()).unwrap_or(u64::MAX);
        if let Some(taken) = &self.received {
            r.bytes_received = taken.bytes.load(Ordering::Relaxed);
            r.request_messages = taken.messages.load(Ordering::Relaxed);
        }
        r.response_messages = self.messages.count;
        self.proxy.requests.observe(r);
        if let Some((context, tags)) = self.trace.take().filter(|(c, _)| c.sampled) {
            self.proxy.spans.put(span(r, &context, tags, &self.downstream));
        }
        if let Some(log) = self.telling.log.as_ref().filter(|_| self.proxy.access_log) {
            log.write(r, &self.logged);
        }
    }
}

impl Exchange {
    pub fn new(
        proxy: &Arc<Proxy>,
        downstream: &Arc<Downstream>,
        request: &Request<Received>,
    ) -> Self {
        let text = |name: HeaderName| {
            let value = request.headers().get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default()
        };
        let telling = proxy.telling.load_full();
        // What is told alone is not written down for nothing.
        let is_told = proxy.access_log && telling.log.is_some() || telling.tracing.is_some();
        let logged = |text: &str| if is_told { text.to_owned() } else { String::new() };
        let kind = text(header::CONTENT_TYPE);
        let is_grpc =
            kind.starts_with("application/grpc") && !kind.starts_with("application/grpc-web");
        let start_time = match is_told {
            true => reply::rfc3339(SystemTime::now()),
            false => String::new(),
        };
        let of_requests = telling.log.as_ref().map_or(&[][..], |l| &l.of_requests);
        let headers =
            Logged { request: taken(request.headers(), of_requests), response: Vec::new() };
        let record = Box::new(RequestRecord {
            start_time,
            method: logged(request.method().as_str()),
            path: logged(request.uri().path_and_query().map_or("", |p| p.as_str())),
            protocol: match request.version() {
                http::Version::HTTP_2 => "HTTP/2",
                http::Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            response_flags: "-",
            user_agent: logged(text(header::USER_AGENT)),
            upstream_host: None,
            downstream_remote_address: Some(downstream.client),
            downstream_local_address: Some(downstream.asked),
            downstream_peer: downstream.peer.as_ref().filter(|_| is_told).map(ToString::to_string),
            source: forward::telemetry_end(
                Some(downstream.client),
                downstream.workload.as_deref(),
                downstream.peer.as_ref(),
            ),
            service: downstream.service_name(),
            reporter: if downstream.is_gateway() { "source" } else { "waypoint" },
            request_protocol: if is_grpc { "grpc" } else { "http" },
            grpc_status: GRPC_UNKNOWN,
            mutual_tls: downstream.peer.is_some(),
            ..RequestRecord::default()
        });
        Self {
            proxy: proxy.clone(),
            downstream: downstream.clone(),
            begun: Instant::now(),
            record,
            received: None,
            is_grpc,
            messages: Messages::default(),
            telling,
            logged: headers,
            trace: None,
        }
    }

    /// Makes the request part of a trace, where there are any. From then on its headers are as others
    /// will see them, and that is how the log has them.
    pub fn traced(&mut self, headers: &mut HeaderMap) {
        if let Some(tracing) = &self.telling.tracing {
            let context = Context::of(headers, tracing.sampled, &mut rand::rng());
            context.apply(headers);
            let tags = if context.sampled { tracing.tags(headers) } else { Vec::new() };
            self.trace = Some((context, tags));
        }
        if let Some(log) = &self.telling.log {
            self.logged.request = taken(headers, &log.of_requests);
        }
    }

    /// Answers without asking anybody.
    pub fn refuse(mut self, refusal: &Refusal) -> Response<InBody> {
        tracing::debug!(host = self.record.authority, why = refusal.why, "answered here");
        self.record.response_flags = refusal.flags;
        self.record.response_code_details.clone_from(&refusal.why);
        let response = local(refusal, self.is_grpc);
        self.answered(&response);
        self.record.bytes_sent = refusal.body.len() as u64;
        response
    }

    pub fn redirect(mut self, code: StatusCode, location: HeaderValue) -> Response<InBody> {
        let mut response = Response::new(InBody::empty());
        *response.status_mut() = code;
        response.headers_mut().insert(header::LOCATION, location);
        self.answered(&response);
        response
    }

    /// A part of the answer's body has gone through.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.record.bytes_sent += bytes.len() as u64;
        if self.is_grpc {
            self.messages.feed(bytes);
        }
    }

    /// Bytes of another protocol have gone through, to their end or not.
    pub fn switched(&mut self, moved: std::io::Result<(u64, u64)>) {
        match moved {
            Ok((received, sent)) => {
                self.received = None;
                self.record.bytes_received += received;
                self.record.bytes_sent += sent;
            }
            Err(e) => self.record.response_code_details = e.to_string(),
        }
    }

    /// Whoever holds this is waited for.
    pub fn draining(&self) -> tokio::sync::watch::Receiver<bool> {
        self.proxy.draining.clone()
    }

    pub fn answered(&mut self, response: &Response<InBody>) {
        self.record.response_code = response.status().as_u16();
        self.grpc(response.headers());
        self.log_headers(response.headers());
    }

    pub fn log_headers(&mut self, of_response: &HeaderMap) {
        if let Some(log) = &self.telling.log {
            self.logged.response = taken(of_response, &log.of_responses);
        }
    }

    pub fn grpc(&mut self, headers: &HeaderMap) {
        if self.is_grpc
            && let Some(status) = headers.get("grpc-status").and_then(|v| v.to_str().ok())
        {
            self.record.grpc_status = status.parse().unwrap_or(GRPC_UNKNOWN);
        }
    }
}

/// Those that there are of these headers, as text.
fn taken(headers: &HeaderMap, names: &[String]) -> Vec<(String, String)> {
    let one = |name: &String| {
        let value = String::from_utf8_lossy(headers.get(name)?.as_bytes()).into_owned();
        Some((name.clone(), value))
    };
    names.iter().filter_map(one).collect()
}
