//! VirtualService's `http` as a proxy executes it.

use super::{select::Rules, view::View};
use crate::{
    names::{ProxyName, exported, whole},
    proto,
};
use istio_api::{
    GRPC_STATUS, Kind, Object, ObjectKey, Spec,
    istio::virtual_service::{
        CorsPolicy, Destination, HeaderOperations, Headers, HttpFaultInjection, HttpMatchRequest,
        HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, Percent, RedirectPortSelection,
        StringMatch, UnmatchedPreflights, VirtualService,
    },
};
use std::{cell::RefCell, collections::BTreeSet, time::Duration};

/// What Istio retries where nothing is said: what has not reached an application, or was not looked
/// at there.
pub const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// Envoy's base interval between retries.
const BACKOFF_MS: u64 = 25;

/// Routes of one object for one port of one proxy.
pub struct Scope<'a> {
    pub view: View<'a>,
    pub rules: &'a Rules,
    pub proxy: &'a ProxyName,
    /// `mesh`, or the `namespace/name` of a Gateway.
    pub gateway: &'a str,
    pub port: u16,
    /// Objects that were asked for by name, whether or not they exist.
    pub used: &'a mut BTreeSet<ObjectKey>,
    pub resolved: Resolved,
}

/// What destinations have come to be: of ten thousand routes most lead to the same few.
#[derive(Default)]
pub struct Resolved(RefCell<Vec<(Asked, proto::DestinationRef)>>);

struct Asked {
    host: String,
    subset: String,
    port: u32,
    namespace: String,
}

impl Resolved {
    /// So many are looked through faster than one is resolved.
    const MOST: usize = 8;

    fn of(
        &self,
        (host, subset, port, namespace): (&str, &str, u32, &str),
        resolve: impl FnOnce() -> proto::DestinationRef,
    ) -> proto::DestinationRef {
        let mut known = self.0.borrow_mut();
        let is_it = |(a, _): &&(Asked, _)| {
            a.host == host && a.subset == subset && a.port == port && a.namespace == namespace
        };
        if let Some((_, to)) = known.iter().find(is_it) {
            return to.clone();
        }
        let to = resolve();
        if known.len() == Self::MOST {
            known.remove(0);
        }
        let asked = Asked {
            host: host.to_owned(),
            subset: subset.to_owned(),
            port,
            namespace: namespace.to_owned(),
        };
        known.push((asked, to.clone()));
        to
    }
}

impl Scope<'_> {
    /// Routes that can match at this port, in their order.
    pub fn http_routes(&mut self, o: &Object, v: &VirtualService) -> Vec<proto::HttpRoute> {
        let mut out = Vec::new();
        for r in &v.http {
            match &r.delegate {
                None => out.extend(self.http_route(o, r)),
                Some(d) => {
                    let namespace =
                        if d.namespace.is_empty() { &o.key.namespace } else { &d.namespace };
                    let key = ObjectKey {
                        kind: Kind::VirtualService,
                        namespace: namespace.clone(),
                        name: d.name.clone(),
                    };
                    self.used.insert(key.clone());
                    let Some(delegate) = self.view.objects.get(&key) else { continue };
                    let Spec::VirtualService(inner) = &delegate.spec else { continue };
                    // Only what is meant to be delegated to, and one level deep.
                    if !inner.hosts.is_empty()
                        || !exported(&inner.export_to, &key.namespace, &o.key.namespace)
                    {
                        continue;
                    }
                    let root = self.with_whole_mirrors(r, &o.key.namespace);
                    for theirs in inner.http.iter().filter(|r| r.delegate.is_none()) {
                        if let Some(merged) = merged(&root, theirs) {
                            out.extend(self.http_route(delegate, &merged));
                        }
                    }
                }
            }
        }
        out
    }

    /// What a delegate takes over is named in its own namespace: short names would mean others there.
    fn with_whole_mirrors(&self, r: &HttpRoute, namespace: &str) -> HttpRoute {
        let mut out = r.clone();
        let mirrors = out.mirrors.iter_mut().filter_map(|m| m.destination.as_mut());
        for d in out.mirror.iter_mut().chain(mirrors) {
            d.host = whole(&d.host, namespace, self.view.domain);
        }
        out
    }

    fn http_route(&self, o: &Object, r: &HttpRoute) -> Option<proto::HttpRoute> {
        let here = |m: &&HttpMatchRequest| {
            let gateway = |g: &String| self.is_gateway(g, &o.key.namespace);
            (m.port == 0 || m.port == u32::from(self.port))
                && (m.gateways.is_empty() || m.gateways.iter().any(gateway))
        };
        let matches: Vec<_> = r.r#match.iter().filter(here).map(http_match).collect();
        if matches.is_empty() && !r.r#match.is_empty() {
            return None;
        }
        let namespace = &o.key.namespace;
        let action = if let Some(x) = &r.redirect {
            proto::http_route::Action::Redirect(redirect(x))
        } else if let Some(d) = &r.direct_response {
            proto::http_route::Action::Direct(proto::DirectResponse {
                status: d.status,
                body: d
                    .body
                    .as_ref()
                    .map(|b| match (&b.string, &b.bytes) {
                        (Some(text), _) => text.clone().into_bytes(),
                        (None, Some(bytes)) => bytes.bytes(),
                        (None, None) => Vec::new(),
                    })
                    .unwrap_or_default(),
            })
        } else {
            let alone = r.route.len() == 1;
            proto::http_route::Action::Forward(proto::Forward {
                destinations: r
                    .route
                    .iter()
                    .map(|d| proto::WeightedDestination {
                        to: d.destination.as_ref().map(|d| self.destination(d, namespace)),
                        weight: if alone { 1 } else { u32::try_from(d.weight).unwrap_or(0) },
                        request_headers: change(d.headers.as_ref(), |h| &h.request),
                        response_headers: change(d.headers.as_ref(), |h| &h.response),
                    })
                    .collect(),
            })
        };
        let mirror = r.mirror.as_ref().map(|d| proto::Mirror {
            to: Some(self.destination(d, namespace)),
            share: Some(share(r.mirror_percentage.as_ref(), r.mirror_percent.map(f64::from))),
        });
        let mirrors = r.mirrors.iter().map(|m| proto::Mirror {
            to: m.destination.as_ref().map(|d| self.destination(d, namespace)),
            share: Some(share(m.percentage.as_ref(), None)),
        });
        Some(proto::HttpRoute {
            origin: format!("{}/{}", o.key.namespace, o.key.name),
            name: r.name.clone(),
            matches,
            timeout_ms: r.timeout.map_or(0, |t| millis(t.0)),
            retry: retry(r.retries.as_ref()),
            fault: r.fault.as_ref().map(fault),
            mirrors: mirror.into_iter().chain(mirrors).collect(),
            cors: r.cors_policy.as_ref().map(cors),
            request_headers: change(r.headers.as_ref(), |h| &h.request),
            response_headers: change(r.headers.as_ref(), |h| &h.response),
            rewrite: r.rewrite.as_ref().map(rewrite),
            action: Some(action),
        })
    }

    /// Whether a rule of that namespace means this gateway.
    pub fn is_gateway(&self, name: &str, namespace: &str) -> bool {
        name == self.gateway || !name.contains('/') && format!("{namespace}/{name}") == self.gateway
    }

    /// Resolved to a service that this proxy may see, or with the reason why it cannot be.
    pub fn destination(&self, d: &Destination, namespace: &str) -> proto::DestinationRef {
        let port = d.port.as_ref().map_or(0, |p| p.number);
        let (view, proxy, came_to) = (self.view, self.proxy, self.port);
        self.resolved.of((&d.host, &d.subset, port, namespace), || {
            self.rules.destination(view, proxy, &d.host, &d.subset, port, came_to, namespace)
        })
    }
}

/// A route to the service itself.
pub fn default_route(service: &crate::names::ServiceName, port: u16) -> proto::HttpRoute {
    proto::HttpRoute {
        origin: service.to_string(),
        name: "default".to_owned(),
        retry: retry(None),
        action: Some(proto::http_route::Action::Forward(proto::Forward {
            destinations: vec![proto::WeightedDestination {
                to: Some(proto::DestinationRef {
                    namespace: service.namespace.clone(),
                    hostname: service.hostname.clone(),
                    port: u32::from(port),
                    ..proto::DestinationRef::default()
                }),
                weight: 1,
                ..proto::WeightedDestination::default()
            }],
        })),
        ..proto::HttpRoute::default()
    }
}

pub fn millis(d: Duration) -> u64 {
    // A time that is given is never none.
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(u64::from(!d.is_zero()))
}

pub fn string_match(m: &StringMatch) -> proto::StringMatch {
    use proto::string_match::Kind;
    let kind = match (&m.exact, &m.prefix, &m.regex) {
        (Some(s), _, _) => Kind::Exact(s.clone()),
        (_, Some(s), _) => Kind::Prefix(s.clone()),
        (_, _, Some(s)) if s == "*" => Kind::Present(true),
        (_, _, Some(s)) => Kind::Regex(s.clone()),
        // Without a value it asks for presence.
        (None, None, None) => Kind::Present(true),
    };
    proto::StringMatch { kind: Some(kind) }
}

fn http_match(m: &HttpMatchRequest) -> proto::HttpMatch {
    let one = |s: &Option<StringMatch>| s.as_ref().map(string_match);
    let all = |s: &std::collections::BTreeMap<String, StringMatch>| {
        s.iter().map(|(k, v)| (k.clone(), string_match(v))).collect()
    };
    let lower = |s: &std::collections::BTreeMap<String, StringMatch>| {
        s.iter().map(|(k, v)| (k.to_ascii_lowercase(), string_match(v))).collect()
    };
    proto::HttpMatch {
        name: m.name.clone(),
        uri: one(&m.uri),
        ignore_uri_case: m.ignore_uri_case,
        scheme: one(&m.scheme),
        method: one(&m.method),
        authority: one(&m.authority),
        headers: lower(&m.headers),
        without_headers: lower(&m.without_headers),
        query: all(&m.query_params),
        source_labels: m.source_labels.clone(),
        source_namespace: m.source_namespace.clone(),
    }
}

fn redirect(x: &HttpRedirect) -> proto::Redirect {
    proto::Redirect {
        uri: x.uri.clone(),
        prefix_rewrite: x.prefix_rewrite.clone(),
        authority: x.authority.clone(),
        scheme: x.scheme.clone(),
        port: x.port.unwrap_or(0),
        keep_port: x.derive_port == Some(RedirectPortSelection::FromRequestPort),
        code: if x.redirect_code == 0 { 301 } else { x.redirect_code },
    }
}

/// Of everything, where nothing is said.
fn share(percentage: Option<&Percent>, old: Option<f64>) -> proto::Percent {
    let percent = percentage.map(|p| p.value).or(old).unwrap_or(100.0).clamp(0.0, 100.0);
    // In range by the clamp.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    proto::Percent { ppm: (percent * 10_000.0).round() as u32 }
}

pub fn retry(r: Option<&HttpRetry>) -> Option<proto::Retry> {
    let default = HttpRetry { attempts: 2, ..HttpRetry::default() };
    let r = r.unwrap_or(&default);
    let attempts = u32::try_from(r.attempts).unwrap_or(0);
    if attempts == 0 {
        return None;
    }
    let on = if r.retry_on.is_empty() { RETRY_ON } else { &r.retry_on };
    let (mut conditions, mut statuses) = (Vec::new(), Vec::new());
    for condition in on.split(',').map(str::trim).filter(|c| !c.is_empty()) {
        match condition.parse::<u32>() {
            Ok(status) => statuses.push(status),
            Err(_) if condition == "retriable-status-codes" => {}
            Err(_) => conditions.push(condition.to_owned()),
        }
    }
    Some(proto::Retry {
        attempts,
        per_try_timeout_ms: r.per_try_timeout.map_or(0, |t| millis(t.0)),
        on: conditions,
        statuses,
        backoff_ms: r.backoff.map_or(BACKOFF_MS, |b| millis(b.0)),
        same_host_again: r.retry_ignore_previous_hosts == Some(false),
    })
}

fn fault(f: &HttpFaultInjection) -> proto::Fault {
    let old = |p: i32| (p > 0).then(|| f64::from(p));
    let mut out = proto::Fault::default();
    if let Some(d) = &f.delay {
        out.delay_ms = d.fixed_delay.map_or(0, |t| millis(t.0));
        out.delayed = Some(share(d.percentage.as_ref(), old(d.percent)));
    }
    if let Some(a) = &f.abort {
        out.aborted = Some(share(a.percentage.as_ref(), None));
        if let Some(status) = a.http_status {
            out.abort_status = u32::try_from(status).unwrap_or(0);
        } else if let Some(status) = a.grpc_status.as_deref().and_then(grpc_status) {
            (out.abort_grpc, out.grpc_status) = (true, status);
        }
    }
    out
}

/// gRPC's names of statuses, as Istio takes them, or their numbers.
fn grpc_status(name: &str) -> Option<u32> {
    let at = GRPC_STATUS.iter().position(|n| *n == name).and_then(|at| u32::try_from(at).ok());
    at.or_else(|| name.parse().ok())
}

fn cors(c: &CorsPolicy) -> proto::Cors {
    use proto::string_match::Kind;
    let old = c.allow_origin.iter().map(|o| proto::StringMatch {
        kind: Some(if o == "*" { Kind::Present(true) } else { Kind::Exact(o.clone()) }),
    });
    proto::Cors {
        origins: c.allow_origins.iter().map(string_match).chain(old).collect(),
        allow_methods: c.allow_methods.join(","),
        allow_headers: c.allow_headers.join(","),
        expose_headers: c.expose_headers.join(","),
        max_age: c.max_age.map(|t| t.0.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: c.allow_credentials == Some(true),
        forward_unmatched: c.unmatched_preflights != UnmatchedPreflights::Ignore,
    }
}

fn change(
    h: Option<&Headers>,
    of: impl Fn(&Headers) -> &Option<HeaderOperations>,
) -> Option<proto::HeaderChange> {
    let ops = h.and_then(|h| of(h).as_ref())?;
    // The sign is written twice: one alone begins a variable, none of which is put in (validation tells).
    let values = |all: &std::collections::BTreeMap<String, String>| {
        all.iter().map(|(name, value)| (name.clone(), value.replace("%%", "%"))).collect()
    };
    Some(proto::HeaderChange {
        set: values(&ops.set),
        add: values(&ops.add),
        remove: ops.remove.clone(),
    })
}

fn rewrite(x: &HttpRewrite) -> proto::Rewrite {
    let mut out = proto::Rewrite {
        uri: x.uri.clone(),
        authority: x.authority.clone(),
        ..proto::Rewrite::default()
    };
    if let Some(r) = &x.uri_regex_rewrite {
        (out.regex, out.substitution) = (r.r#match.clone(), r.rewrite.clone());
    }
    out
}

/// A delegate's route under the one that delegates: both must match, and what the delegate does not
/// say is as the other says.
fn merged(root: &HttpRoute, theirs: &HttpRoute) -> Option<HttpRoute> {
    let mut out = theirs.clone();
    out.r#match = match (root.r#match.as_slice(), theirs.r#match.as_slice()) {
        (matches, []) | ([], matches) => matches.to_vec(),
        (outer, inner) => {
            let mut both = Vec::new();
            for theirs in inner {
                let within = both.len();
                both.extend(outer.iter().filter_map(|root| both_match(root, theirs)));
                // Each of the delegate's must be within one of the other's, or the route is dropped.
                if both.len() == within {
                    return None;
                }
            }
            both
        }
    };
    out.name = match (root.name.as_str(), theirs.name.as_str()) {
        ("", name) | (name, "") => name.to_owned(),
        (a, b) => format!("{a}-{b}"),
    };
    out.rewrite = theirs.rewrite.clone().or_else(|| root.rewrite.clone());
    out.direct_response = theirs.direct_response.clone().or_else(|| root.direct_response.clone());
    out.timeout = theirs.timeout.or(root.timeout);
    out.retries = theirs.retries.clone().or_else(|| root.retries.clone());
    out.fault = theirs.fault.clone().or_else(|| root.fault.clone());
    if theirs.mirror.is_none() && theirs.mirrors.is_empty() {
        out.mirror.clone_from(&root.mirror);
        out.mirrors.clone_from(&root.mirrors);
        out.mirror_percent = root.mirror_percent;
        out.mirror_percentage.clone_from(&root.mirror_percentage);
    }
    out.cors_policy = theirs.cors_policy.clone().or_else(|| root.cors_policy.clone());
    out.headers = theirs.headers.clone().or_else(|| root.headers.clone());
    Some(out)
}

fn both_match(a: &HttpMatchRequest, b: &HttpMatchRequest) -> Option<HttpMatchRequest> {
    let mut out = a.clone();
    out.uri = narrower(a.uri.as_ref(), b.uri.as_ref())?;
    out.scheme = narrower(a.scheme.as_ref(), b.scheme.as_ref())?;
    out.method = narrower(a.method.as_ref(), b.method.as_ref())?;
    out.authority = narrower(a.authority.as_ref(), b.authority.as_ref())?;
    for (own, theirs) in [
        (&mut out.headers, &b.headers),
        (&mut out.query_params, &b.query_params),
        (&mut out.without_headers, &b.without_headers),
    ] {
        for (name, wanted) in theirs {
            let narrow = narrower(own.get(name), Some(wanted))??;
            own.insert(name.clone(), narrow);
        }
    }
    for (name, value) in &b.source_labels {
        if out.source_labels.insert(name.clone(), value.clone()).is_some_and(|old| old != *value) {
            return None;
        }
    }
    let same_or_unset = |a: &str, b: &str| a.is_empty() || b.is_empty() || a == b;
    if !same_or_unset(&a.source_namespace, &b.source_namespace)
        || a.port != 0 && b.port != 0 && a.port != b.port
        || a.ignore_uri_case != b.ignore_uri_case && a.uri.is_some() && b.uri.is_some()
    {
        return None;
    }
    if out.source_namespace.is_empty() {
        out.source_namespace.clone_from(&b.source_namespace);
    }
    out.port = out.port.max(b.port);
    out.ignore_uri_case |= b.ignore_uri_case;
    match (a.gateways.as_slice(), b.gateways.as_slice()) {
        ([], _) => out.gateways.clone_from(&b.gateways),
        (_, []) => {}
        (_, inner) => {
            out.gateways.retain(|g| inner.contains(g));
            if out.gateways.is_empty() {
                return None;
            }
        }
    }
    if !b.name.is_empty() {
        out.name =
            if a.name.is_empty() { b.name.clone() } else { format!("{}-{}", a.name, b.name) };
    }
    Some(out)
}

/// What satisfies both, where that can be said: as Istio decides it, an inner value must be within
/// the outer one, and regular expressions are within nothing but themselves. The outer None: nothing
/// satisfies both.
#[allow(clippy::option_option)]
fn narrower(
    outer: Option<&StringMatch>,
    inner: Option<&StringMatch>,
) -> Option<Option<StringMatch>> {
    let (outer, inner) = match (outer, inner) {
        (None, other) | (other, None) => return Some(other.cloned()),
        (Some(a), Some(b)) => (a, b),
    };
    let value = inner.exact.as_ref().or(inner.prefix.as_ref());
    let fits = outer == inner
        || match (&outer.exact, &outer.prefix, value) {
            (Some(a), _, Some(_)) => inner.exact.as_ref() == Some(a),
            (None, Some(a), Some(b)) => b.starts_with(a.as_str()),
            _ => false,
        };
    fits.then(|| Some(inner.clone()))
}
