//! What a route changes of a request or a response.

use super::{
    request::without_port,
    text::{BadText, part_regex},
};
use crate::proto;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use regex::Regex;

#[derive(Clone, Debug, Default)]
pub struct HeaderChange {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
    authority: Option<String>,
}

/// What came of a change beside the headers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changed {
    pub authority: Option<String>,
}

impl HeaderChange {
    pub fn load(c: Option<&proto::HeaderChange>) -> Result<Self, String> {
        let mut out = Self::default();
        let Some(c) = c else { return Ok(out) };
        let name = |n: &str| {
            HeaderName::from_bytes(n.to_ascii_lowercase().as_bytes())
                .map_err(|_| format!("{n:?} is no header's name"))
        };
        let value =
            |v: &str| HeaderValue::from_str(v).map_err(|_| format!("{v:?} is no header's value"));
        for (n, v) in &c.set {
            if n.eq_ignore_ascii_case("host") || n == ":authority" {
                out.authority = Some(v.clone());
            } else {
                out.set.push((name(n)?, value(v)?));
            }
        }
        for (n, v) in &c.add {
            out.add.push((name(n)?, value(v)?));
        }
        for n in &c.remove {
            out.remove.push(name(n)?);
        }
        Ok(out)
    }

    pub fn apply(&self, headers: &mut HeaderMap) -> Changed {
        // First, as Envoy does: what is removed and set is replaced.
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        Changed { authority: self.authority.clone() }
    }
}

#[derive(Clone, Debug)]
pub struct Rewrite {
    uri: String,
    pub authority: Option<String>,
    regex: Option<(Regex, String)>,
}

impl Rewrite {
    pub fn load(r: &proto::Rewrite) -> Result<Self, BadText> {
        let regex = match r.regex.as_str() {
            "" => None,
            // Searched, not matched whole; groups are \1 in RE2 and ${1} here.
            text => Some((part_regex(text)?, substitution(&r.substitution))),
        };
        let authority = (!r.authority.is_empty()).then(|| r.authority.clone());
        Ok(Self { uri: r.uri.clone(), authority, regex })
    }

    /// The path to send, where it is another; `matched` bytes of `path` were asked for.
    pub fn path(&self, path: &str, matched: usize) -> Option<String> {
        if let Some((regex, with)) = &self.regex {
            return Some(regex.replace_all(path, with.as_str()).into_owned());
        }
        (!self.uri.is_empty()).then(|| in_place_of_prefix(&self.uri, path, matched))
    }
}

/// Replaces what matched. As Istio: where the prefix ends in a slash and its replacement does not, or
/// the other way, no slash is lost and none doubled.
fn in_place_of_prefix(with: &str, path: &str, matched: usize) -> String {
    let rest = path.get(matched..).unwrap_or_default();
    let mut out = with.to_owned();
    match (out.ends_with('/'), rest.starts_with('/')) {
        (true, true) => {
            out.pop();
        }
        (false, false)
            if !rest.is_empty() && path.get(..matched).is_some_and(|p| p.ends_with('/')) =>
        {
            out.push('/');
        }
        _ => {}
    }
    out.push_str(rest);
    if !out.starts_with('/') {
        out.insert(0, '/');
    }
    out
}

/// RE2's `\1` as regex's `${1}`.
fn substitution(re2: &str) -> String {
    let mut out = String::with_capacity(re2.len() + 8);
    let mut letters = re2.chars();
    while let Some(c) = letters.next() {
        match c {
            '\\' => match letters.next() {
                Some(d) if d.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(d);
                    out.push('}');
                }
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
            '$' => out.push_str("$$"),
            c => out.push(c),
        }
    }
    out
}

#[derive(Clone, Debug)]
pub struct Redirect {
    uri: String,
    prefix: String,
    authority: String,
    scheme: String,
    port: u16,
    keep_port: bool,
    pub code: http::StatusCode,
}

impl Redirect {
    pub fn load(r: &proto::Redirect) -> Result<Self, String> {
        let code = u16::try_from(r.code).ok().and_then(|c| http::StatusCode::from_u16(c).ok());
        Ok(Self {
            uri: r.uri.clone(),
            prefix: r.prefix_rewrite.clone(),
            authority: r.authority.clone(),
            scheme: r.scheme.clone(),
            port: u16::try_from(r.port).map_err(|_| format!("{} is no port", r.port))?,
            keep_port: r.keep_port,
            code: code
                .filter(http::StatusCode::is_redirection)
                .ok_or_else(|| format!("{} is no status of a redirect", r.code))?,
        })
    }

    /// `location`: for a request to `authority`, of `scheme`, that came to `port`.
    pub fn location(
        &self,
        scheme: &str,
        authority: &str,
        port: u16,
        path: &str,
        query: &str,
        matched: usize,
    ) -> Option<Uri> {
        let new_scheme = if self.scheme.is_empty() { scheme } else { &self.scheme };
        let host = if self.authority.is_empty() { authority } else { &self.authority };
        let of_scheme = if new_scheme == "https" { 443 } else { 80 };
        let port = match (self.port, self.keep_port) {
            (0, true) => Some(port),
            (0, false) => None,
            (port, _) => Some(port),
        };
        let host = match port {
            Some(p) if p == of_scheme => without_port(host).to_owned(),
            Some(p) => format!("{}:{p}", without_port(host)),
            // Another scheme has another port.
            None if !self.scheme.is_empty() && self.scheme != scheme => {
                without_port(host).to_owned()
            }
            None => host.to_owned(),
        };
        let path = if !self.prefix.is_empty() {
            in_place_of_prefix(&self.prefix, path, matched)
        } else if self.uri.is_empty() {
            path.to_owned()
        } else {
            self.uri.clone()
        };
        let own_query = path.contains('?');
        let query = match query {
            "" => String::new(),
            _ if own_query => String::new(),
            q => format!("?{q}"),
        };
        format!("{new_scheme}://{host}{path}{query}").parse().ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_replaced_and_no_slash_lost() {
        for (with, path, matched, to) in [
            ("/new", "/old/a", 4, "/new/a"),
            ("/", "/old/a", 4, "/a"),
            ("/new/", "/old/a", 4, "/new/a"),
            ("/new", "/old/a", 5, "/new/a"),
            ("/new", "/old", 4, "/new"),
            ("/", "/old", 4, "/"),
            ("/new", "/a", 1, "/new/a"),
            ("/exact", "/was", 4, "/exact"),
        ] {
            assert_eq!(in_place_of_prefix(with, path, matched), to, "{with} {path} {matched}");
        }
    }

    #[test]
    fn groups_are_re2s() {
        let r = proto::Rewrite {
            regex: "^/service/([^/]+)(/.*)$".into(),
            substitution: r"\2/instance/\1".into(),
            ..proto::Rewrite::default()
        };
        let r = Rewrite::load(&r).unwrap();
        assert_eq!(r.path("/service/foo/v1/api", 0).unwrap(), "/v1/api/instance/foo");
    }

    #[test]
    fn redirects_name_the_port_where_it_is_not_the_schemes() {
        let to = |r: proto::Redirect| {
            let r = Redirect::load(&proto::Redirect { code: 301, ..r }).unwrap();
            r.location("http", "a.example:8080", 8080, "/p/q", "x=1", 2).unwrap().to_string()
        };
        let r = proto::Redirect::default;
        assert_eq!(to(r()), "http://a.example:8080/p/q?x=1");
        assert_eq!(to(proto::Redirect { uri: "/z".into(), ..r() }), "http://a.example:8080/z?x=1");
        assert_eq!(
            to(proto::Redirect { scheme: "https".into(), ..r() }),
            "https://a.example/p/q?x=1"
        );
        assert_eq!(
            to(proto::Redirect { scheme: "https".into(), keep_port: true, ..r() }),
            "https://a.example:8080/p/q?x=1"
        );
        assert_eq!(to(proto::Redirect { port: 80, ..r() }), "http://a.example/p/q?x=1");
        assert_eq!(
            to(proto::Redirect { authority: "b".into(), prefix_rewrite: "/n".into(), ..r() }),
            "http://b/n/q?x=1"
        );
        assert!(Redirect::load(&proto::Redirect { code: 200, ..r() }).is_err());
    }

    #[test]
    fn headers_are_set_added_and_removed() {
        let c = proto::HeaderChange {
            set: [("X-A".to_owned(), "2".to_owned()), ("Host".to_owned(), "other".to_owned())]
                .into(),
            add: [("x-b".to_owned(), "3".to_owned())].into(),
            remove: vec!["x-c".to_owned()],
        };
        let mut headers = HeaderMap::new();
        for (n, v) in [("x-a", "1"), ("x-b", "1"), ("x-c", "1")] {
            headers.append(HeaderName::from_static(n), v.parse().unwrap());
        }
        let changed = HeaderChange::load(Some(&c)).unwrap().apply(&mut headers);
        assert_eq!(changed.authority.as_deref(), Some("other"));
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["2"]);
        assert_eq!(headers.get_all("x-b").iter().collect::<Vec<_>>(), ["1", "3"]);
        assert!(headers.get("x-c").is_none());
    }
}
