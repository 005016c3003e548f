//! A host's routes, ready to be asked.

use super::{
    change::{HeaderChange, Redirect, Rewrite},
    cors::Cors,
    find::{Finder, Match},
    policy::{HttpPolicies, LoadMatch},
    request::RequestView,
    split::Split,
    tcp::TcpRoute,
};
use crate::{
    names::ServiceName,
    proto::{self, Protocol},
};
use bytes::Bytes;
use http::StatusCode;
use prost::Message as _;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// A resource that cannot be executed, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{at}: {why}")]
pub struct Bad {
    pub at: String,
    pub why: String,
}

fn bad(at: &str, why: impl ToString) -> Bad {
    Bad { at: at.to_owned(), why: why.to_string() }
}

#[derive(Debug)]
pub struct HostTable {
    pub name: ServiceName,
    pub service_name: Arc<str>,
    ports: Vec<PortTable>,
    pub policies: HttpPolicies,
    /// Everything that must be known before the table can be used.
    pub destinations: BTreeSet<ServiceName>,
}

#[derive(Debug)]
pub struct PortTable {
    pub port: u16,
    pub protocol: Protocol,
    finder: Finder,
    routes: Vec<Loaded>,
    pub tcp: Vec<TcpRoute>,
}

/// A route, and the bytes that it was made from: one that comes again in the same bytes is taken as it is.
#[derive(Debug)]
struct Loaded {
    bytes: Bytes,
    route: Arc<Route>,
    matches: Arc<[Match]>,
}

/// [`proto::HostTable`], with its routes in their bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct Encoded {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(message, repeated, tag = "3")]
    ports: Vec<EncodedPort>,
    #[prost(message, repeated, tag = "4")]
    policies: Vec<proto::HttpPolicy>,
    #[prost(string, tag = "5")]
    service_name: String,
}

/// [`proto::PortTable`], likewise.
#[derive(Clone, PartialEq, prost::Message)]
struct EncodedPort {
    #[prost(uint32, tag = "1")]
    port: u32,
    #[prost(enumeration = "Protocol", tag = "2")]
    protocol: i32,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    http: Vec<Bytes>,
    #[prost(message, repeated, tag = "4")]
    tcp: Vec<proto::TcpRoute>,
}

#[derive(Debug)]
pub struct Route {
    /// Its name; of one that has none, the object that it comes from.
    pub name: Arc<str>,
    pub action: Action,
    pub timeout: Option<Duration>,
    pub retry: Option<Retry>,
    pub fault: Option<Fault>,
    pub mirrors: Vec<Mirror>,
    pub cors: Option<Cors>,
    pub request_headers: HeaderChange,
    pub response_headers: HeaderChange,
    pub rewrite: Option<Rewrite>,
}

fn name_of(r: &proto::HttpRoute) -> &str {
    if r.name.is_empty() { &r.origin } else { &r.name }
}

#[derive(Debug)]
pub enum Action {
    Forward(Forward),
    Redirect(Redirect),
    Direct(DirectResponse),
}

#[derive(Debug)]
pub struct DirectResponse {
    pub status: StatusCode,
    pub body: bytes::Bytes,
}

#[derive(Debug)]
pub struct Forward {
    split: Split,
    to: Vec<Weighted>,
}

#[derive(Debug)]
pub struct Weighted {
    pub target: Target,
    pub request_headers: HeaderChange,
    pub response_headers: HeaderChange,
}

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub service: ServiceName,
    pub port: u16,
    /// Empty: all endpoints.
    pub subset: String,
    /// Why nothing can go there.
    pub broken: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Retry {
    /// Beyond the first.
    pub attempts: u32,
    pub per_try_timeout: Option<Duration>,
    pub on: Vec<String>,
    pub statuses: Vec<u16>,
    pub backoff: Duration,
    pub same_host_again: bool,
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub delay: Option<(Duration, Share)>,
    pub abort: Option<(Abort, Share)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    Http(StatusCode),
    Grpc(u32),
}

#[derive(Clone, Debug)]
pub struct Mirror {
    pub target: Target,
    pub share: Share,
}

/// A part of all requests, in millionths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share(u32);

impl Share {
    /// Whether a draw from 0 to 999,999 falls within it.
    pub fn includes(self, draw: u32) -> bool {
        draw < self.0
    }
}

impl HostTable {
    /// From a [`proto::HostTable`], with what of the table `before` is in it again. `seed`: where weighted rounds
    /// begin.
    pub fn load(
        body: Bytes,
        before: Option<&Self>,
        load: LoadMatch<'_>,
        seed: usize,
    ) -> Result<Self, Bad> {
        let t = Encoded::decode(body).map_err(|e| bad("the resource", e))?;
        let mut destinations = BTreeSet::new();
        let policies = HttpPolicies::load(&t.policies, load).map_err(|e| bad("policies", e))?;
        let mut ports = Vec::with_capacity(t.ports.len());
        for p in t.ports {
            let port = u16::try_from(p.port)
                .map_err(|_| bad("ports", format!("{} is no port", p.port)))?;
            let known = before.and_then(|t| t.port(port)).map_or(&[][..], |p| &p.routes);
            let routes = Loaded::all(p.http, known, seed)?;
            let mut tcp = Vec::with_capacity(p.tcp.len());
            for r in &p.tcp {
                tcp.push(TcpRoute::load(r, seed).map_err(|e| bad(&r.origin, e))?);
            }
            let of_http = routes.iter().flat_map(|r| r.route.targets());
            for target in of_http.chain(tcp.iter().flat_map(TcpRoute::targets)) {
                if !destinations.contains(&target.service) {
                    destinations.insert(target.service.clone());
                }
            }
            ports.push(PortTable {
                port,
                // A protocol of a later version is looked for in the bytes.
                protocol: Protocol::try_from(p.protocol).unwrap_or(Protocol::Detect),
                finder: Finder::new(routes.iter().map(|r| r.matches.clone())),
                routes,
                tcp,
            });
        }
        Ok(Self {
            name: ServiceName { namespace: t.namespace, hostname: t.hostname },
            service_name: t.service_name.into(),
            ports,
            policies,
            destinations,
        })
    }

    pub fn port(&self, port: u16) -> Option<&PortTable> {
        self.ports.iter().find(|p| p.port == port)
    }
}

impl PortTable {
    /// The route of a request, and how much of its path the route asked for.
    pub fn route(&self, request: &RequestView<'_>) -> Option<(&Arc<Route>, usize)> {
        let found = self.finder.find(request)?;
        Some((&self.routes.get(found.route)?.route, found.matched))
    }
}

impl Loaded {
    /// Of ten thousand routes mostly one has changed, or a few beside one another: what comes before and after them
    /// is what it was.
    fn all(routes: Vec<Bytes>, known: &[Self], seed: usize) -> Result<Vec<Self>, Bad> {
        let is_it = |(bytes, known): &(&Bytes, &Self)| **bytes == known.bytes;
        let first = routes.iter().zip(known).take_while(is_it).count();
        let rest = routes.len().min(known.len()).saturating_sub(first);
        let last = routes.iter().rev().zip(known.iter().rev()).take(rest).take_while(is_it).count();
        let count = routes.len();
        let load = |(at, bytes): (usize, Bytes)| {
            let from_end = count.saturating_sub(at);
            let known = match at {
                at if at < first => known.get(at),
                _ if from_end <= last => known.get(known.len().saturating_sub(from_end)),
                _ => None,
            };
            match known {
                // With these bytes, or the whole resource that it first came in would be kept for it.
                Some(k) => Ok(Self { bytes, route: k.route.clone(), matches: k.matches.clone() }),
                None => Self::new(bytes, seed),
            }
        };
        routes.into_iter().enumerate().map(load).collect()
    }

    fn new(bytes: Bytes, seed: usize) -> Result<Self, Bad> {
        let r = proto::HttpRoute::decode(bytes.clone()).map_err(|e| bad("a route", e))?;
        let matches = Match::all(&r).map_err(|e| bad("matches", e))?;
        let route = Route::load(&r, seed).map_err(|e| bad(name_of(&r), e))?;
        Ok(Self { bytes, route: Arc::new(route), matches })
    }
}

impl Target {
    pub fn load(d: Option<&proto::DestinationRef>) -> Result<Self, String> {
        let d = d.ok_or("a destination that names nothing")?;
        Ok(Self {
            service: ServiceName { namespace: d.namespace.clone(), hostname: d.hostname.clone() },
            port: u16::try_from(d.port).map_err(|_| format!("{} is no port", d.port))?,
            subset: d.subset.clone(),
            broken: (!d.broken.is_empty()).then(|| d.broken.clone()),
        })
    }
}

impl Forward {
    pub fn load(all: &[proto::WeightedDestination], seed: usize) -> Result<Self, String> {
        let weights: Vec<u32> = all.iter().map(|d| d.weight).collect();
        let to = all
            .iter()
            .map(|d| {
                Ok(Weighted {
                    target: Target::load(d.to.as_ref())?,
                    request_headers: HeaderChange::load(d.request_headers.as_ref())?,
                    response_headers: HeaderChange::load(d.response_headers.as_ref())?,
                })
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { split: Split::new(&weights, seed), to })
    }

    pub fn pick(&self) -> Option<&Weighted> {
        self.to.get(self.split.pick()?)
    }

    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.to.iter().map(|w| &w.target)
    }
}

impl Route {
    fn load(r: &proto::HttpRoute, seed: usize) -> Result<Self, String> {
        let text = |e: super::text::BadText| e.to_string();
        let action = match r.action.as_ref().ok_or("a route without an action")? {
            proto::http_route::Action::Forward(f) => {
                Action::Forward(Forward::load(&f.destinations, seed)?)
            }
            proto::http_route::Action::Redirect(x) => Action::Redirect(Redirect::load(x)?),
            proto::http_route::Action::Direct(d) => Action::Direct(DirectResponse {
                status: status(d.status)?,
                body: d.body.clone().into(),
            }),
        };
        Ok(Self {
            name: name_of(r).into(),
            action,
            timeout: duration(r.timeout_ms),
            retry: r.retry.as_ref().map(Retry::load),
            fault: r.fault.as_ref().map(Fault::load).transpose()?,
            mirrors: r
                .mirrors
                .iter()
                .map(|m| Ok(Mirror { target: Target::load(m.to.as_ref())?, share: share(m.share) }))
                .collect::<Result<_, String>>()?,
            cors: r.cors.as_ref().map(Cors::load).transpose().map_err(text)?,
            request_headers: HeaderChange::load(r.request_headers.as_ref())?,
            response_headers: HeaderChange::load(r.response_headers.as_ref())?,
            rewrite: r.rewrite.as_ref().map(Rewrite::load).transpose().map_err(text)?,
        })
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        let forward = match &self.action {
            Action::Forward(f) => Some(f),
            _ => None,
        };
        let sound = |t: &&Target| t.broken.is_none();
        forward
            .into_iter()
            .flat_map(Forward::targets)
            .chain(self.mirrors.iter().map(|m| &m.target))
            .filter(sound)
    }
}

impl Retry {
    fn load(r: &proto::Retry) -> Self {
        Self {
            attempts: r.attempts,
            per_try_timeout: duration(r.per_try_timeout_ms),
            on: r.on.clone(),
            statuses: r.statuses.iter().filter_map(|s| u16::try_from(*s).ok()).collect(),
            backoff: Duration::from_millis(r.backoff_ms),
            same_host_again: r.same_host_again,
        }
    }

    pub fn is_on(&self, condition: &str) -> bool {
        self.on.iter().any(|c| c == condition)
    }
}

impl Fault {
    fn load(f: &proto::Fault) -> Result<Self, String> {
        let abort = if f.abort_grpc {
            Some(Abort::Grpc(f.grpc_status))
        } else if f.abort_status > 0 {
            Some(Abort::Http(status(f.abort_status)?))
        } else {
            None
        };
        Ok(Self {
            delay: duration(f.delay_ms).map(|d| (d, share(f.delayed))),
            abort: abort.map(|a| (a, share(f.aborted))),
        })
    }
}

fn share(p: Option<proto::Percent>) -> Share {
    Share(p.map_or(0, |p| p.ppm))
}

pub(super) fn duration(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

fn status(code: u32) -> Result<StatusCode, String> {
    u16::try_from(code)
        .ok()
        .and_then(|c| StatusCode::from_u16(c).ok())
        // What is before 200 is no answer.
        .filter(|s| s.as_u16() >= 200)
        .ok_or_else(|| format!("{code} is no status of an answer"))
}
