//! A request's head on its way through: what ends at this hop is taken off, and what goes on is put
//! together anew.

use crate::{reply::Refusal, trace};
use h2::ext::Protocol;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body::Body;
use rand::Rng as _;
use routes::execute::without_port;

/// A request as it is to be sent, whoever gets it.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: Method,
    pub headers: HeaderMap,
    pub path: String,
    pub query: String,
    pub authority: String,
    /// What the client wants to switch to.
    pub upgrade: Option<HeaderValue>,
}

/// Connection-level headers (RFC 9110, section 7.6.1, and what is older).
const HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What the client asks to switch to, if it does so whole.
fn upgrade_asked(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get_all(header::CONNECTION).iter();
    let asked = connection.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let mut asked = asked.map(str::trim);
    let to = asked
        .any(|t| t.eq_ignore_ascii_case("upgrade"))
        .then(|| headers.get(header::UPGRADE).cloned())??;
    // Requests in HTTP/2, or within TLS, would go by unjudged. Whoever offers them is content with an
    // answer in HTTP/1.1 (RFC 9110, section 7.8).
    let mut to_all = to.to_str().ok()?.split(',').map(|t| t.trim().to_ascii_lowercase());
    let hidden = to_all.any(|t| t == "h2c" || t.starts_with("tls/") || t.starts_with("http/"));
    (!hidden).then_some(to)
}

pub fn clean_response(headers: &mut HeaderMap) {
    for name in named(headers).iter().chain(&HOP) {
        headers.remove(name);
    }
}

/// What `Connection` says is for this hop.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    let said = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    said.flat_map(|v| v.split(',')).filter_map(|n| n.trim().parse().ok()).collect()
}

/// HTTP/2 may part a cookie header in several, which are one everywhere else (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(header::COOKIE).iter();
    let Some(first) = all.next() else { return };
    let mut joined = first.as_bytes().to_vec();
    for value in all {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(value.as_bytes());
    }
    if joined.len() > first.len()
        && let Ok(value) = HeaderValue::from_bytes(&joined)
    {
        headers.insert(header::COOKIE, value);
    }
}

/// A shadow's host, as Istio writes it.
pub fn shadow(authority: &str) -> String {
    let host = without_port(authority);
    let port = authority.strip_prefix(host).unwrap_or_default();
    format!("{host}-shadow{port}")
}

/// WebSocket over HTTP/2 (RFC 8441, section 5) becomes what it is over HTTP/1.1, for routes, policies
/// and endpoints alike.
pub fn as_upgrade<B>(request: &mut Request<B>) {
    let protocol = request.extensions().get::<Protocol>();
    if *request.method() != Method::CONNECT || protocol.is_none_or(|p| p.as_str() != WEBSOCKET) {
        return;
    }
    request.extensions_mut().remove::<Protocol>();
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
    // Sixteen bytes in base64, which nobody looks at but to see that it was understood.
    let digit = || char::from(rand::rng().sample(rand::distr::Alphanumeric));
    let key: String = (0..21).map(|_| digit()).chain("A==".chars()).collect();
    if let Ok(key) = HeaderValue::from_str(&key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, key);
    }
}

const WEBSOCKET: &str = "websocket";

/// What is not the client's to take off by naming it in `Connection`.
fn of_a_proxy(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-") || name == "x-request-id" || trace::is_of_it(name)
}

/// What ends at each hop, but for an upgrade that is asked for.
pub fn end_of_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let upgrade = upgrade_asked(headers);
    let mut named = named(headers);
    named.retain(|name| !of_a_proxy(name));
    let trailers = headers.get(header::TE).is_some_and(|v| {
        v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("trailers")))
    });
    for name in named.iter().chain(&HOP) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers.remove("http2-settings");
    // The client has been told to go on by this end of the hop.
    headers.remove(header::EXPECT);
    upgrade
}

impl Head {
    /// The request itself, for one attempt.
    pub fn request<B: Body>(
        &self,
        http2: bool,
        scheme: &str,
        body: B,
    ) -> Result<Request<B>, Refusal> {
        let bad = |why: &str| Refusal::bad_request(why.to_owned());
        let target = match self.query.as_str() {
            "" => self.path.clone(),
            query => format!("{}?{query}", self.path),
        };
        let uri: Uri = if http2 {
            let built = Uri::builder()
                .scheme(scheme)
                .authority(self.authority.as_str())
                .path_and_query(target);
            built.build().map_err(|_| bad("the path or host that it was changed to is none"))?
        } else {
            target.parse().map_err(|_| bad("the path that it was changed to is none"))?
        };
        let is_measured = body.is_end_stream() || body.size_hint().exact().is_some();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        let headers = request.headers_mut();
        if http2 {
            headers.remove(header::HOST);
            // A route may have put on what HTTP/2 does not know (RFC 9113, section 8.2.2).
            for name in HOP.iter().filter(|n| **n != header::TE) {
                headers.remove(name);
            }
            if headers.get(header::TE).is_some_and(|te| te != "trailers") {
                headers.remove(header::TE);
            }
        } else {
            let host = HeaderValue::from_str(&self.authority).map_err(|_| bad("no host"))?;
            headers.insert(header::HOST, host);
            // Of methods that seldom have a body hyper sends none that does not say how it comes.
            if !is_measured && !headers.contains_key(header::CONTENT_LENGTH) {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            if let Some(upgrade) = &self.upgrade {
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, upgrade.clone());
            }
        }
        Ok(request)
    }
}
