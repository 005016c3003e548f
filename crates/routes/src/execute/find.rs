//! The first route that matches, found without asking those that cannot: exact paths stand in a map,
//! prefixes in a map that is probed once per length that occurs, and what asks for no path stands
//! under the exact value of a header where it asks for one.

use super::{
    request::RequestView,
    text::{BadText, Text},
};
use crate::proto;
use std::collections::{BTreeSet, HashMap};

/// One alternative of a route's.
#[derive(Debug)]
struct Match {
    route: usize,
    uri: Option<Text>,
    ignore_case: bool,
    scheme: Option<Text>,
    method: Option<Text>,
    authority: Option<Text>,
    headers: Vec<(String, Text)>,
    without: Vec<(String, Text)>,
    query: Vec<(String, Text)>,
    source_labels: Vec<(String, String)>,
    source_namespace: String,
}

/// Places in `Finder::all`, in order.
type Places = Vec<usize>;

#[derive(Debug, Default)]
pub struct Finder {
    /// In the order of routes.
    all: Vec<Match>,
    exact: HashMap<String, Places>,
    prefix: Prefixes,
    /// Of paths in lower case.
    exact_any_case: HashMap<String, Places>,
    prefix_any_case: Prefixes,
    /// By a header's name, then its value.
    by_header: HashMap<String, HashMap<String, Places>>,
    others: Places,
}

#[derive(Debug, Default)]
struct Prefixes {
    by_prefix: HashMap<String, Places>,
    lengths: BTreeSet<usize>,
}

impl Prefixes {
    fn insert(&mut self, prefix: &str, at: usize) {
        self.lengths.insert(prefix.len());
        self.by_prefix.entry(prefix.to_owned()).or_default().push(at);
    }

    fn of<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Places> {
        self.lengths
            .range(..=path.len())
            .filter_map(|length| self.by_prefix.get(path.get(..*length)?))
    }
}

/// What the match asks of the path, for the substitution of a rewrite or redirect.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub route: usize,
    /// How many bytes of the path matched: the prefix, or all of it.
    pub matched: usize,
}

impl Finder {
    pub fn load(routes: &[proto::HttpRoute]) -> Result<Self, BadText> {
        let mut finder = Self::default();
        for (route, r) in routes.iter().enumerate() {
            if r.matches.is_empty() {
                finder.insert(Match::load(route, &proto::HttpMatch::default())?);
            }
            for m in &r.matches {
                finder.insert(Match::load(route, m)?);
            }
        }
        Ok(finder)
    }

    fn insert(&mut self, m: Match) {
        let at = self.all.len();
        let lower = |s: &str| s.to_ascii_lowercase();
        match (&m.uri, m.ignore_case) {
            (Some(Text::Exact(s)), false) => self.exact.entry(s.clone()).or_default().push(at),
            (Some(Text::Prefix(s) | Text::PathPrefix(s)), false) => self.prefix.insert(s, at),
            (Some(Text::Exact(s)), true) => {
                self.exact_any_case.entry(lower(s)).or_default().push(at);
            }
            (Some(Text::Prefix(s) | Text::PathPrefix(s)), true) => {
                self.prefix_any_case.insert(&lower(s), at);
            }
            _ => {
                let exact = m.headers.iter().find_map(|(name, text)| match text {
                    Text::Exact(value) => Some((name, value)),
                    _ => None,
                });
                match exact {
                    Some((name, value)) => {
                        let values = self.by_header.entry(name.clone()).or_default();
                        values.entry(value.clone()).or_default().push(at);
                    }
                    None => self.others.push(at),
                }
            }
        }
        self.all.push(m);
    }

    /// The first match that holds, of the lowest place.
    pub fn find(&self, request: &RequestView<'_>) -> Option<Found> {
        let mut best: Option<usize> = None;
        let mut consider = |places: &Places| {
            let earlier = places.iter().take_while(|at| best.is_none_or(|b| **at < b));
            let mut earlier = earlier.copied();
            let found = earlier.find(|at| self.all.get(*at).is_some_and(|m| m.holds(request)));
            best = found.or(best);
        };
        if let Some(places) = self.exact.get(request.path) {
            consider(places);
        }
        self.prefix.of(request.path).for_each(&mut consider);
        if !self.exact_any_case.is_empty() || !self.prefix_any_case.lengths.is_empty() {
            let path = request.path.to_ascii_lowercase();
            if let Some(places) = self.exact_any_case.get(&path) {
                consider(places);
            }
            self.prefix_any_case.of(&path).for_each(&mut consider);
        }
        for (name, values) in &self.by_header {
            if let Some(places) = request.header(name).and_then(|v| values.get(&v)) {
                consider(places);
            }
        }
        consider(&self.others);
        let m = self.all.get(best?)?;
        Some(Found { route: m.route, matched: m.matched(request.path) })
    }

    /// As [`Finder::find`], by asking each in its turn.
    #[cfg(test)]
    fn find_slowly(&self, request: &RequestView<'_>) -> Option<usize> {
        self.all.iter().find(|m| m.holds(request)).map(|m| m.route)
    }
}

impl Match {
    fn load(route: usize, m: &proto::HttpMatch) -> Result<Self, BadText> {
        let one = |m: &Option<proto::StringMatch>| m.as_ref().map(Text::load).transpose();
        type Texts = Result<Vec<(String, Text)>, BadText>;
        let all = |all: &std::collections::BTreeMap<String, proto::StringMatch>| -> Texts {
            all.iter().map(|(k, v)| Ok((k.clone(), Text::load(v)?))).collect()
        };
        Ok(Self {
            route,
            uri: one(&m.uri)?,
            ignore_case: m.ignore_uri_case,
            scheme: one(&m.scheme)?,
            method: one(&m.method)?,
            authority: one(&m.authority)?,
            headers: all(&m.headers)?,
            without: all(&m.without_headers)?,
            query: all(&m.query)?,
            source_labels: m.source_labels.clone().into_iter().collect(),
            source_namespace: m.source_namespace.clone(),
        })
    }

    fn holds(&self, r: &RequestView<'_>) -> bool {
        let given = |m: &Option<Text>, value: &str| m.as_ref().is_none_or(|m| m.matches(value));
        let path = |m: &Text| match self.ignore_case {
            true => m.matches_any_case(r.path),
            false => m.matches(r.path),
        };
        let header = |(name, m): &(String, Text)| r.header(name).is_some_and(|v| m.matches(&v));
        self.uri.as_ref().is_none_or(path)
            && given(&self.scheme, r.scheme)
            && given(&self.method, r.method.as_str())
            && given(&self.authority, r.authority)
            && self.headers.iter().all(header)
            && !self.without.iter().any(header)
            && self
                .query
                .iter()
                .all(|(name, m)| r.query_parameter(name).is_some_and(|v| m.matches(&v)))
            && (self.source_namespace.is_empty() || self.source_namespace == r.source.namespace)
            && r.source.has_labels(self.source_labels.iter().map(|(k, v)| (k, v)))
    }

    fn matched(&self, path: &str) -> usize {
        match &self.uri {
            Some(Text::Prefix(s) | Text::PathPrefix(s)) => s.len().min(path.len()),
            Some(_) => path.len(),
            // As the prefix `/`.
            None => 1.min(path.len()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::execute::Source;
    use http::{HeaderMap, Method};
    use proptest::prelude::*;
    use proto::string_match::Kind;

    fn text() -> impl Strategy<Value = proto::StringMatch> {
        let path = "/[ab]?(/[ab])?";
        prop_oneof![
            path.prop_map(Kind::Exact),
            path.prop_map(Kind::Prefix),
            "/[abAB]?".prop_map(Kind::PathPrefix),
            Just(Kind::Regex("/a+(/.*)?".into())),
        ]
        .prop_map(|k| proto::StringMatch { kind: Some(k) })
    }

    fn a_match() -> impl Strategy<Value = proto::HttpMatch> {
        let header = prop_oneof!["[xy]".prop_map(Kind::Exact), Just(Kind::Present(true)),]
            .prop_map(|k| proto::StringMatch { kind: Some(k) });
        (
            prop::option::of(text()),
            any::<bool>(),
            prop::collection::btree_map("[hk]", header.clone(), 0..2),
            prop::collection::btree_map("[hk]", header, 0..2),
        )
            .prop_map(|(uri, ignore_uri_case, headers, without_headers)| {
                proto::HttpMatch {
                    uri,
                    ignore_uri_case,
                    headers,
                    without_headers,
                    ..proto::HttpMatch::default()
                }
            })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_asking_each_would(
            matches in prop::collection::vec(prop::collection::vec(a_match(), 1..3), 0..12),
            path in "/[abAB]?(/[ab])?",
            headers in prop::collection::btree_map("[hk]", "[xy]", 0..2),
        ) {
            let routes: Vec<_> = matches
                .into_iter()
                .map(|matches| proto::HttpRoute { matches, ..proto::HttpRoute::default() })
                .collect();
            let finder = Finder::load(&routes).unwrap();
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.insert(
                    http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    value.parse().unwrap(),
                );
            }
            let request = RequestView {
                method: &Method::GET,
                path: &path,
                query: "",
                authority: "h",
                scheme: "http",
                headers: &map,
                sni: None,
                source: Source { address: None, namespace: "", labels: &[] },
            };
            let slowly = finder.find_slowly(&request);
            prop_assert_eq!(finder.find(&request).map(|f| f.route), slowly);
        }
    }
}
