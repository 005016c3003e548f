//! Gateway API's HTTPRoute and GRPCRoute as a proxy executes them, in the order of precedence that
//! the specification has.

use super::{
    grpc_route::as_http,
    http::{RETRY_ON, millis, retry},
    select::{Rules, age},
    view::View,
};
use crate::{
    names::{ProxyName, whole},
    proto::{self, string_match::Kind as By},
};
use istio_api::{
    Kind, Object, Span, Spec,
    gateway_api::http_route::{
        HeaderMatchType, HttpBackendRef, HttpCorsFilter, HttpHeader, HttpHeaderFilter,
        HttpPathModifier, HttpPathModifierType, HttpRequestMirrorFilter, HttpRequestRedirectFilter,
        HttpRouteFilter, HttpRouteFilterType, HttpRouteMatch, HttpRouteRule, ParentReference,
        PathMatchType, QueryParamMatchType,
    },
    istio::virtual_service::HttpRetry,
};
use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

pub const GROUP: &str = "gateway.networking.k8s.io";

/// A route's parent, with what was left out.
pub struct Parent<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub section: &'a str,
    pub port: Option<u16>,
}

/// Of a route of either kind; of another object none.
pub fn parents(o: &Object) -> impl Iterator<Item = Parent<'_>> {
    let all = match &o.spec {
        Spec::HttpRoute(r) => &*r.parent_refs,
        Spec::GrpcRoute(r) => &*r.parent_refs,
        _ => &[],
    };
    all.iter().map(|p: &ParentReference| Parent {
        // Services have no group, and say so together with their kind.
        group: match (p.group.as_str(), p.kind.as_str()) {
            ("", "" | "Gateway") => GROUP,
            (group, _) => group,
        },
        kind: if p.kind.is_empty() { "Gateway" } else { &p.kind },
        namespace: if p.namespace.is_empty() { &o.key.namespace } else { &p.namespace },
        name: &p.name,
        section: &p.section_name,
        port: p.port.and_then(|p| u16::try_from(p).ok()),
    })
}

impl Parent<'_> {
    pub fn is_service(&self) -> bool {
        matches!(self.group, "" | "core") && self.kind == "Service"
    }

    pub fn is_gateway(&self) -> bool {
        self.group == GROUP && self.kind == "Gateway"
    }
}

pub fn hostnames(o: &Object) -> &[String] {
    match &o.spec {
        Spec::HttpRoute(r) => &r.hostnames,
        Spec::GrpcRoute(r) => &r.hostnames,
        _ => &[],
    }
}

/// A route with its place in the order of precedence: kind and length of the path, whether a method,
/// how many headers and how many parameters are asked for.
pub struct Ranked(Rank, proto::HttpRoute);

type Rank = Reverse<(u8, usize, bool, usize, usize)>;

/// What is at the same place is taken as it came: the oldest object's first.
pub fn in_order(mut all: Vec<Ranked>) -> Vec<proto::HttpRoute> {
    all.sort_by_key(|r| r.0);
    all.into_iter().map(|r| r.1).collect()
}

/// Where routes are to run.
pub struct Place<'a> {
    pub view: View<'a>,
    pub rules: &'a Rules,
    pub proxy: &'a ProxyName,
    /// As clients see it.
    pub port: u16,
}

impl Place<'_> {
    /// The routes that are attached to a service, for this port.
    pub fn of_service(
        &self,
        namespace: &str,
        short: &str,
        hostname: &str,
    ) -> Vec<proto::HttpRoute> {
        let mut bound: Vec<&Object> = self
            .rules
            .routes(self.view, hostname)
            .filter(|o| {
                // Whoever owns the service, and whoever serves it, may route it; nobody else.
                let allowed = [namespace, &self.proxy.namespace];
                allowed.contains(&o.key.namespace.as_str())
                    && parents(o).any(|p| {
                        p.is_service()
                            && p.namespace == namespace
                            && p.name == short
                            && p.port.is_none_or(|p| p == self.port)
                    })
            })
            .map(|o| &**o)
            .collect();
        bound.sort_by(|a, b| older(a).cmp(&older(b)));
        in_order(bound.into_iter().flat_map(|o| self.routes(o)).collect())
    }

    /// All that an object says, one route for each of its matches.
    pub fn routes(&self, o: &Object) -> Vec<Ranked> {
        let spec = match &o.spec {
            Spec::HttpRoute(r) => Cow::Borrowed(&**r),
            Spec::GrpcRoute(r) => Cow::Owned(as_http(r)),
            _ => return Vec::new(),
        };
        let any = [HttpRouteMatch::default()];
        let of_rule = |rule: &HttpRouteRule| {
            let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
            let route = self.route(o, rule);
            matches
                .iter()
                .map(|m| {
                    let (rank, matched) = one_match(m);
                    Ranked(rank, proto::HttpRoute { matches: vec![matched], ..route.clone() })
                })
                .collect::<Vec<_>>()
        };
        spec.rules.iter().flat_map(of_rule).collect()
    }

    fn route(&self, o: &Object, rule: &HttpRouteRule) -> proto::HttpRoute {
        let mut out = proto::HttpRoute {
            origin: format!("{}/{}", o.key.namespace, o.key.name),
            name: rule.name.clone(),
            ..proto::HttpRoute::default()
        };
        let mut redirected = None;
        for f in &rule.filters {
            match f.r#type {
                Some(HttpRouteFilterType::RequestHeaderModifier) => {
                    out.request_headers = f.request_header_modifier.as_ref().map(change);
                }
                Some(HttpRouteFilterType::ResponseHeaderModifier) => {
                    out.response_headers = f.response_header_modifier.as_ref().map(change);
                }
                Some(HttpRouteFilterType::RequestMirror) => {
                    let mirror = f.request_mirror.as_ref().and_then(|m| self.mirror(o, m));
                    out.mirrors.extend(mirror);
                }
                Some(HttpRouteFilterType::RequestRedirect) => {
                    redirected = f.request_redirect.as_ref().map(|r| self.redirect(r));
                }
                Some(HttpRouteFilterType::URLRewrite) => {
                    out.rewrite = f.url_rewrite.as_ref().map(|r| proto::Rewrite {
                        authority: r.hostname.clone(),
                        ..path_rewrite(r.path.as_ref())
                    });
                }
                Some(HttpRouteFilterType::Cors) => out.cors = f.cors.as_ref().map(cors),
                Some(HttpRouteFilterType::ExtensionRef) | None => {}
            }
        }
        out.action = Some(match redirected {
            Some(redirect) => proto::http_route::Action::Redirect(redirect),
            // Nowhere to send it (the specification asks for this status).
            None if rule.backend_refs.is_empty() => {
                let status = 500;
                let direct = proto::DirectResponse { status, body: Vec::new() };
                proto::http_route::Action::Direct(direct)
            }
            None => proto::http_route::Action::Forward(proto::Forward {
                destinations: rule.backend_refs.iter().map(|b| self.weighted(o, b)).collect(),
            }),
        });
        let (all, each) = match &rule.timeouts {
            Some(t) => (span(&t.request), span(&t.backend_request)),
            None => (None, None),
        };
        out.timeout_ms = all.map_or(0, millis);
        out.retry = self::retries(rule, each);
        out
    }

    fn weighted(&self, o: &Object, b: &HttpBackendRef) -> proto::WeightedDestination {
        let change_of = |wanted, of: fn(&HttpRouteFilter) -> &Option<HttpHeaderFilter>| {
            let found = b.filters.iter().find(|f| f.r#type == Some(wanted));
            found.and_then(|f| of(f).as_ref()).map(change)
        };
        proto::WeightedDestination {
            to: Some(self.backend(o, &b.group, &b.kind, &b.namespace, &b.name, b.port)),
            weight: b.weight.map_or(1, |w| u32::try_from(w).unwrap_or(0)),
            request_headers: change_of(HttpRouteFilterType::RequestHeaderModifier, |f| {
                &f.request_header_modifier
            }),
            response_headers: change_of(HttpRouteFilterType::ResponseHeaderModifier, |f| {
                &f.response_header_modifier
            }),
        }
    }

    fn backend(
        &self,
        o: &Object,
        group: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        port: Option<i32>,
    ) -> proto::DestinationRef {
        let own = o.key.namespace.as_str();
        let namespace = if namespace.is_empty() { own } else { namespace };
        let port = port.and_then(|p| u32::try_from(p).ok()).unwrap_or(0);
        let hostname = match (group, kind) {
            ("" | "core", "" | "Service") => whole(name, namespace, self.view.domain),
            _ => name.to_ascii_lowercase(),
        };
        let broken = |why: String| proto::DestinationRef {
            namespace: namespace.to_owned(),
            hostname: hostname.clone(),
            port,
            broken: why,
            ..proto::DestinationRef::default()
        };
        match (group, kind) {
            ("" | "core", "" | "Service") | ("networking.istio.io", "Hostname") => {}
            _ => return broken(format!("requests cannot be sent to a {kind} of {group:?}")),
        }
        // It would be another namespace's, by its whole name.
        if kind != "Hostname" && name.contains('.') {
            return broken(format!("{name} is no name of a Service: it has dots in it"));
        }
        if namespace != own && !granted(self.view, o, namespace, "Service", name) {
            return broken(format!(
                "no ReferenceGrant in {namespace} lets routes of {own} send to its Service {name}"
            ));
        }
        self.rules.destination(self.view, self.proxy, &hostname, "", port, self.port, namespace)
    }

    fn mirror(&self, o: &Object, m: &HttpRequestMirrorFilter) -> Option<proto::Mirror> {
        let b = m.backend_ref.as_ref()?;
        let of = |n: Option<i32>| n.and_then(|n| u64::try_from(n).ok());
        let ppm = match (&m.fraction, m.percent) {
            (Some(f), _) => {
                let whole = of(f.denominator).unwrap_or(100).max(1);
                of(f.numerator).unwrap_or(0).saturating_mul(1_000_000) / whole
            }
            (None, percent) => of(percent).unwrap_or(100).saturating_mul(10_000),
        };
        Some(proto::Mirror {
            to: Some(self.backend(o, &b.group, &b.kind, &b.namespace, &b.name, b.port)),
            share: Some(proto::Percent { ppm: u32::try_from(ppm.min(1_000_000)).unwrap_or(0) }),
        })
    }

    fn redirect(&self, r: &HttpRequestRedirectFilter) -> proto::Redirect {
        let mut out = proto::Redirect {
            scheme: r.scheme.clone(),
            authority: r.hostname.clone(),
            code: r.status_code.and_then(|c| u32::try_from(c).ok()).unwrap_or(302),
            ..proto::Redirect::default()
        };
        out.port = match (r.port, r.scheme.as_str()) {
            (Some(port), _) => u32::try_from(port).unwrap_or(0),
            (None, "http") => 80,
            (None, "https") => 443,
            (None, _) => u32::from(self.port),
        };
        match r.path.as_ref().map(|p| (p.r#type, p)) {
            Some((Some(HttpPathModifierType::ReplaceFullPath), p)) => {
                out.uri.clone_from(&p.replace_full_path);
            }
            Some((Some(HttpPathModifierType::ReplacePrefixMatch), p)) => {
                out.prefix_rewrite = prefix(p).to_owned();
            }
            _ => {}
        }
        out
    }
}

/// The older of two objects comes first, and of the same age that whose `namespace/name` does (the
/// specification's order, which is not Istio's).
pub fn older(o: &Object) -> (Option<&str>, &str, &str) {
    let (created, name, namespace) = age(o);
    (created, namespace, name)
}

/// Whether a ReferenceGrant of `namespace` lets objects of this kind and namespace name an object of
/// its own.
pub fn granted(view: View<'_>, from: &Object, namespace: &str, kind: &str, name: &str) -> bool {
    let own_kind = match from.key.kind {
        Kind::HttpRoute => "HTTPRoute",
        Kind::GrpcRoute => "GRPCRoute",
        _ => "Gateway",
    };
    view.in_namespace(Kind::ReferenceGrant, namespace).any(|g| {
        let Spec::ReferenceGrant(g) = &g.spec else { return false };
        g.from
            .iter()
            .any(|f| f.group == GROUP && f.kind == own_kind && f.namespace == from.key.namespace)
            && g.to.iter().any(|t| {
                t.group.is_empty() && t.kind == kind && (t.name.is_empty() || t.name == name)
            })
    })
}

/// A prefix that is replaced by nothing is replaced by the root.
fn prefix(p: &HttpPathModifier) -> &str {
    if p.replace_prefix_match.is_empty() { "/" } else { &p.replace_prefix_match }
}

fn path_rewrite(p: Option<&HttpPathModifier>) -> proto::Rewrite {
    match p.map(|p| (p.r#type, p)) {
        Some((Some(HttpPathModifierType::ReplaceFullPath), p)) => proto::Rewrite {
            regex: "(?s)^.*$".to_owned(),
            substitution: p.replace_full_path.replace('\\', "\\\\"),
            ..proto::Rewrite::default()
        },
        Some((Some(HttpPathModifierType::ReplacePrefixMatch), p)) => {
            proto::Rewrite { uri: prefix(p).to_owned(), ..proto::Rewrite::default() }
        }
        _ => proto::Rewrite::default(),
    }
}

/// None for what is no duration, and for zero, which means none.
fn span(text: &str) -> Option<Duration> {
    text.parse::<Span>().ok().map(|s| s.0).filter(|d| !d.is_zero())
}

fn retries(rule: &HttpRouteRule, each: Option<Duration>) -> Option<proto::Retry> {
    let mut istio =
        HttpRetry { attempts: 2, per_try_timeout: each.map(Span), ..HttpRetry::default() };
    if let Some(r) = &rule.retry {
        let codes = r.codes.iter().map(|c| format!(",{c}")).collect::<String>();
        istio.retry_on = format!("{RETRY_ON}{codes}");
        istio.attempts = r.attempts.unwrap_or(istio.attempts);
        istio.backoff = span(&r.backoff).map(Span);
    }
    retry(Some(&istio))
}

fn change(f: &HttpHeaderFilter) -> proto::HeaderChange {
    // Of the same name, the first counts.
    let all = |headers: &[HttpHeader]| {
        let mut out = HashMap::new();
        for h in headers {
            out.entry(h.name.to_ascii_lowercase()).or_insert_with(|| h.value.clone());
        }
        out.into_iter().collect()
    };
    proto::HeaderChange { set: all(&f.set), add: all(&f.add), remove: f.remove.clone() }
}

fn cors(c: &HttpCorsFilter) -> proto::Cors {
    let origin = |o: &String| {
        let kind = match o.as_str() {
            "*" => By::Present(true),
            o if o.contains('*') => {
                let parts: Vec<String> = o.split('*').map(regex::escape).collect();
                By::Regex(parts.join("[^/]+"))
            }
            o => By::Exact(o.to_owned()),
        };
        proto::StringMatch { kind: Some(kind) }
    };
    let methods: Vec<String> = c.allow_methods.iter().map(|m| m.name().to_owned()).collect();
    proto::Cors {
        origins: c.allow_origins.iter().map(origin).collect(),
        allow_methods: methods.join(","),
        allow_headers: c.allow_headers.join(","),
        expose_headers: c.expose_headers.join(","),
        max_age: c.max_age.unwrap_or(5).to_string(),
        allow_credentials: c.allow_credentials == Some(true),
        forward_unmatched: false,
    }
}

fn one_match(m: &HttpRouteMatch) -> (Rank, proto::HttpMatch) {
    let by = |kind| Some(proto::StringMatch { kind: Some(kind) });
    let (kind, value) = match &m.path {
        None => (PathMatchType::PathPrefix, "/".to_owned()),
        Some(p) => {
            let value = if p.value.is_empty() { "/".to_owned() } else { p.value.clone() };
            (p.r#type.unwrap_or(PathMatchType::PathPrefix), value)
        }
    };
    let length = value.len();
    // What matches everything comes last, so that regular expressions have their turn.
    let (rank, uri) = match kind {
        PathMatchType::Exact => (3, By::Exact(value)),
        PathMatchType::PathPrefix if length > 1 => (2, By::PathPrefix(value)),
        PathMatchType::RegularExpression => (1, By::Regex(value)),
        PathMatchType::PathPrefix => (0, By::PathPrefix(value)),
    };
    // Of the same name, the first counts.
    let mut headers = BTreeMap::new();
    for h in &m.headers {
        let regular = h.r#type == Some(HeaderMatchType::RegularExpression);
        let value = if regular { By::Regex(h.value.clone()) } else { By::Exact(h.value.clone()) };
        headers
            .entry(h.name.to_ascii_lowercase())
            .or_insert(proto::StringMatch { kind: Some(value) });
    }
    let mut query = BTreeMap::new();
    for q in &m.query_params {
        let regular = q.r#type == Some(QueryParamMatchType::RegularExpression);
        let value = if regular { By::Regex(q.value.clone()) } else { By::Exact(q.value.clone()) };
        query.entry(q.name.clone()).or_insert(proto::StringMatch { kind: Some(value) });
    }
    let place = (rank, length, m.method.is_some(), headers.len(), query.len());
    let matched = proto::HttpMatch {
        uri: by(uri),
        method: m.method.and_then(|m| by(By::Exact(m.name().to_owned()))),
        headers: headers.into_iter().collect(),
        query: query.into_iter().collect(),
        ..proto::HttpMatch::default()
    };
    (Reverse(place), matched)
}
