//! What is compiled, loaded and asked.

mod again;
mod connections;
mod garbage;
mod matches;
mod policies;
mod split;

use crate::{
    scope::{REVIEWS, world},
    world::World,
};
use http::{HeaderMap, HeaderName, Method};
use prost::Message as _;
use routes::execute::{HostTable, PortTable, RequestView, Source};
use std::sync::Arc;

/// A request, and who sends it.
#[derive(Clone)]
pub struct Ask {
    pub method: Method,
    pub target: &'static str,
    pub authority: &'static str,
    pub scheme: &'static str,
    pub headers: HeaderMap,
    pub sni: Option<&'static str>,
    pub namespace: &'static str,
    pub labels: Vec<(Arc<str>, Arc<str>)>,
}

/// A GET of a path, perhaps with a query.
pub fn get(target: &'static str) -> Ask {
    Ask {
        method: Method::GET,
        target,
        authority: "reviews:9080",
        scheme: "http",
        headers: HeaderMap::new(),
        sni: None,
        namespace: "shop",
        labels: Vec::new(),
    }
}

impl Ask {
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), value.parse().unwrap());
        self
    }

    pub fn from(mut self, label: &str, value: &str) -> Self {
        self.labels.push((label.into(), value.into()));
        self
    }

    pub fn view(&self) -> RequestView<'_> {
        let (path, query) = self.target.split_once('?').unwrap_or((self.target, ""));
        RequestView {
            method: &self.method,
            path,
            query,
            authority: self.authority,
            scheme: self.scheme,
            headers: &self.headers,
            sni: self.sni,
            source: Source { address: None, namespace: self.namespace, labels: &self.labels },
        }
    }
}

/// The table of `reviews` under a rule of these HTTP routes.
pub fn table(http: &str) -> HostTable {
    let mut w: World = world();
    w.route("shop/r", &format!("{{hosts: [reviews], http: [{http}]}}"));
    load(&w.table(REVIEWS))
}

pub fn load(table: &routes::proto::HostTable) -> HostTable {
    again(table, None)
}

/// After the table before it.
pub fn again(table: &routes::proto::HostTable, before: Option<&HostTable>) -> HostTable {
    let load = |_: &[u8]| Err("no connection is asked about".to_owned());
    HostTable::load(table.encode_to_vec().into(), before, &load, 0).unwrap()
}

/// Routes that only say their names: `name match`, one a line.
pub fn named(routes: &[(&str, &str)]) -> HostTable {
    let one = |(name, matches): &(&str, &str)| {
        format!("{{name: {name}, match: {matches}, route: [{{destination: {{host: ratings}}}}]}}")
    };
    table(&routes.iter().map(one).collect::<Vec<_>>().join(", "))
}

pub fn port(t: &HostTable) -> &PortTable {
    t.port(9080).unwrap()
}

/// The name of the route that is taken.
pub fn taken(t: &HostTable, ask: &Ask) -> Option<String> {
    port(t).route(&ask.view()).map(|(r, _)| r.name.to_string())
}
