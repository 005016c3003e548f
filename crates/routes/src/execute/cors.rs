//! Cross-origin requests, as the Fetch standard and Istio's corsPolicy have them.

use super::text::{BadText, Text};
use crate::proto;
use http::{HeaderMap, HeaderValue, Method, header};

#[derive(Clone, Debug)]
pub struct Cors {
    origins: Vec<Text>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
    forward_unmatched: bool,
}

/// What becomes of a request that asks for permission.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Preflight {
    /// No such request, or one that the application answers.
    Forward,
    /// Answered here with these headers.
    Answer(HeaderMap),
}

impl Cors {
    pub fn load(c: &proto::Cors) -> Result<Self, BadText> {
        let value = |s: &str| if s.is_empty() { None } else { HeaderValue::from_str(s).ok() };
        Ok(Self {
            origins: Text::load_all(&c.origins)?,
            methods: value(&c.allow_methods),
            headers: value(&c.allow_headers),
            expose: value(&c.expose_headers),
            max_age: value(&c.max_age),
            credentials: c.allow_credentials,
            forward_unmatched: c.forward_unmatched,
        })
    }

    fn allowed<'a>(&self, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = request.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        self.origins.iter().any(|o| o.matches(text)).then_some(origin)
    }

    pub fn preflight(&self, method: &Method, request: &HeaderMap) -> Preflight {
        let asks = *method == Method::OPTIONS
            && request.contains_key(header::ORIGIN)
            && request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !asks {
            return Preflight::Forward;
        }
        let mut answer = HeaderMap::new();
        match self.allowed(request) {
            Some(origin) => {
                self.permit(origin, &mut answer);
                for (name, value) in [
                    (header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods),
                    (header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers),
                    (header::ACCESS_CONTROL_MAX_AGE, &self.max_age),
                ] {
                    answer.extend(value.clone().map(|v| (name, v)));
                }
                Preflight::Answer(answer)
            }
            None if self.forward_unmatched => Preflight::Forward,
            // Without permission in it.
            None => Preflight::Answer(answer),
        }
    }

    /// The headers that an answer to this request gets.
    pub fn permit_response(&self, request: &HeaderMap, response: &mut HeaderMap) {
        if let Some(origin) = self.allowed(request) {
            self.permit(origin, response);
            if let Some(v) = &self.expose {
                response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, v.clone());
            }
        }
    }

    fn permit(&self, origin: &HeaderValue, into: &mut HeaderMap) {
        into.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            into.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proto::string_match::Kind;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(n, v)| (http::HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    #[test]
    fn origins_that_match_are_permitted_and_no_others() {
        let mut c = proto::Cors {
            origins: vec![proto::StringMatch { kind: Some(Kind::Exact("https://a".into())) }],
            allow_methods: "GET,POST".into(),
            max_age: "60".into(),
            allow_credentials: true,
            expose_headers: "x-e".into(),
            forward_unmatched: true,
            ..proto::Cors::default()
        };
        let ask = |origin| headers(&[("origin", origin), ("access-control-request-method", "PUT")]);
        let cors = Cors::load(&c).unwrap();
        let Preflight::Answer(a) = cors.preflight(&Method::OPTIONS, &ask("https://a")) else {
            panic!()
        };
        assert_eq!(a["access-control-allow-origin"], "https://a");
        assert_eq!(a["access-control-allow-methods"], "GET,POST");
        assert_eq!(a["access-control-allow-credentials"], "true");
        assert_eq!(cors.preflight(&Method::OPTIONS, &ask("https://b")), Preflight::Forward);
        assert_eq!(cors.preflight(&Method::GET, &ask("https://a")), Preflight::Forward);
        c.forward_unmatched = false;
        let cors = Cors::load(&c).unwrap();
        let none = Preflight::Answer(HeaderMap::new());
        assert_eq!(cors.preflight(&Method::OPTIONS, &ask("https://b")), none);
        let mut response = HeaderMap::new();
        cors.permit_response(&headers(&[("origin", "https://b")]), &mut response);
        assert!(response.is_empty());
        cors.permit_response(&headers(&[("origin", "https://a")]), &mut response);
        assert_eq!(response["access-control-expose-headers"], "x-e");
    }
}
