//! A request as routing and policy see it.

use super::path::{BadPath, normalize};
use http::{HeaderMap, Method, Uri};
use std::{borrow::Cow, net::SocketAddr};

/// As a policy's header it is `connection.sni`; no header has such a name.
pub const SNI: &str = ":sni";

/// What is decided upon. Everything in it has one form already.
#[derive(Clone, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    /// Normal, without the query.
    pub path: &'a str,
    pub query: &'a str,
    /// Lower case, without a trailing dot, with the port if one was given.
    pub authority: &'a str,
    pub scheme: &'a str,
    pub headers: &'a HeaderMap,
    /// The name that a TLS client has asked for, where TLS ends here; in lower case.
    pub sni: Option<&'a str>,
    pub source: Source<'a>,
}

/// Whoever asks, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub address: Option<SocketAddr>,
    pub namespace: &'a str,
    pub labels: &'a [(std::sync::Arc<str>, std::sync::Arc<str>)],
}

impl Source<'_> {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *name).map(|(_, v)| &**v)
    }

    pub fn has_labels<'b>(
        &self,
        mut wanted: impl Iterator<Item = (&'b String, &'b String)>,
    ) -> bool {
        wanted.all(|(k, v)| self.labels.iter().any(|(ok, ov)| **ok == **k && **ov == **v))
    }
}

impl RequestView<'_> {
    /// All values of a header as one, as Envoy joins them. What is no text in them stands as U+FFFD: a
    /// header that is there is never taken for one that is not.
    pub fn header(&self, name: &str) -> Option<String> {
        match name {
            ":method" => return Some(self.method.as_str().to_owned()),
            ":authority" | "host" => return Some(self.authority.to_owned()),
            SNI => return self.sni.map(ToOwned::to_owned),
            ":scheme" => return Some(self.scheme.to_owned()),
            ":path" if self.query.is_empty() => return Some(self.path.to_owned()),
            ":path" => return Some(format!("{}?{}", self.path, self.query)),
            _ => {}
        }
        let mut values = self.headers.get_all(name).iter();
        let mut joined = String::from_utf8_lossy(values.next()?.as_bytes()).into_owned();
        for value in values {
            joined.push(',');
            joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
        }
        Some(joined)
    }

    /// Each value of a header that has several; nothing of one that has none or one.
    pub fn apart(&self, name: &str) -> Vec<Cow<'_, str>> {
        let all = self.headers.get_all(name);
        match all.iter().nth(1) {
            Some(_) => all.iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect(),
            None => Vec::new(),
        }
    }

    /// The first value of a query parameter, unescaped as forms are.
    pub fn query_parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decoded(key)? == name).then(|| form_decoded(value)).flatten()
        })
    }
}

fn form_decoded(text: &str) -> Option<String> {
    if !text.contains(['%', '+']) {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let value = digit()? << 4 | digit()?;
                out.push(u8::try_from(value).ok()?);
            }
            b => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

/// Why a request is answered 400 before anything else is asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRequest {
    #[error("the path: {0}")]
    Path(#[from] BadPath),
    #[error("no host")]
    NoHost,
    #[error("more than one host")]
    TwoHosts,
    #[error("a host with characters that no host has")]
    Host,
}

/// The parts of a request that must have one form, owned where they had another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Normal {
    pub path: String,
    pub authority: String,
}

/// The one form of a request's path and host. A host in the URI and another in the header are two.
pub fn normal(uri: &Uri, headers: &HeaderMap) -> Result<Normal, BadRequest> {
    let path = normalize(match uri.path() {
        // An absolute URI without a path.
        "" => "/",
        path => path,
    })?
    .into_owned();
    let mut hosts = headers.get_all(http::header::HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(BadRequest::TwoHosts);
    }
    let header = header.map(|h| h.to_str().map_err(|_| BadRequest::Host)).transpose()?;
    let of_uri = uri.authority().map(http::uri::Authority::as_str);
    let authority = match (of_uri, header) {
        (Some(a), Some(b)) if !a.eq_ignore_ascii_case(b) => return Err(BadRequest::TwoHosts),
        (Some(a), _) | (None, Some(a)) => a,
        (None, None) => return Err(BadRequest::NoHost),
    };
    Ok(Normal { path, authority: host(authority)? })
}

/// Lower case, without userinfo or a trailing dot.
fn host(authority: &str) -> Result<String, BadRequest> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if authority.is_empty() || !authority.bytes().all(good) {
        return Err(BadRequest::Host);
    }
    let lower = authority.to_ascii_lowercase();
    let (name, port) = match lower.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && !port.contains(']') => (name, Some(port)),
        _ => (lower.as_str(), None),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    // An empty label too: the root's dot ends a name once.
    if name.split('.').any(str::is_empty) {
        return Err(BadRequest::Host);
    }
    Ok(match port {
        Some(port) => match port.parse::<u16>() {
            Ok(port) => format!("{name}:{port}"),
            Err(_) => return Err(BadRequest::Host),
        },
        None => name.to_owned(),
    })
}

/// A host without its port.
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => authority,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(uri: &str, hosts: &[&str]) -> Result<Normal, BadRequest> {
        let mut headers = HeaderMap::new();
        for h in hosts {
            headers.append("host", h.parse().unwrap());
        }
        normal(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn a_request_has_one_host() {
        assert_eq!(of("/a", &["Reviews.:9080"]).unwrap().authority, "reviews:9080");
        assert_eq!(of("http://A/b", &["a"]).unwrap().authority, "a");
        assert_eq!(of("http://A", &[]).unwrap().path, "/");
        assert_eq!(of("/", &["[fd00::1]:80"]).unwrap().authority, "[fd00::1]:80");
        assert_eq!(of("http://a/", &["b"]), Err(BadRequest::TwoHosts));
        assert_eq!(of("/", &["a", "a"]), Err(BadRequest::TwoHosts));
        assert_eq!(of("/", &[]), Err(BadRequest::NoHost));
        for bad in ["", ".", "a..", ".a", "a..b", "a:b", "a:99999", "u@a", "a b", "a/b"] {
            assert_eq!(of("/", &[bad]), Err(BadRequest::Host), "{bad:?}");
        }
    }

    #[test]
    fn header_values_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append("x", "a".parse().unwrap());
        headers.append("x", "b".parse().unwrap());
        for value in [&b"1"[..], b"\xff"] {
            headers.append("y", http::HeaderValue::from_bytes(value).unwrap());
        }
        let request = RequestView {
            method: &Method::GET,
            path: "/",
            query: "a=1&b=x%20y+z&a=2",
            authority: "h",
            scheme: "http",
            headers: &headers,
            sni: None,
            source: Source { address: None, namespace: "", labels: &[] },
        };
        assert_eq!(request.header("x").unwrap(), "a,b");
        // What is no text hides nothing.
        assert_eq!(request.header("y").unwrap(), "1,\u{fffd}");
        assert_eq!(request.header("z"), None);
        assert_eq!(request.query_parameter("a").unwrap(), "1");
        assert_eq!(request.query_parameter("b").unwrap(), "x y z");
        assert_eq!(request.query_parameter("c"), None);
    }
}
