//! The first route that matches, found without asking those that cannot: exact paths stand in a map,
//! prefixes in a map that is probed once per length that occurs, and of those of one path, or of none,
//! each stands under an exact value that it asks for: of a header, a parameter, the authority, the
//! client's labels and namespace, the method.

use super::{
    request::RequestView,
    text::{BadText, Text},
};
use crate::proto;
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// One alternative of a route's.
#[derive(Debug)]
pub struct Match {
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
type ByValue = HashMap<String, Places>;
type ByName = HashMap<String, ByValue>;

/// So many of one group are asked in their turn; of more there is an index.
const FEW: usize = 8;

/// Matches of one path, or of none.
#[derive(Debug, Default)]
struct Group {
    asked: Places,
    keyed: Option<Box<Keyed>>,
}

#[derive(Debug, Default)]
struct Keyed {
    headers: ByName,
    query: ByName,
    authorities: ByValue,
    labels: ByName,
    namespaces: ByValue,
    methods: ByValue,
}

impl Group {
    fn insert(&mut self, m: &Match, at: usize) {
        if self.asked.len() < FEW {
            return self.asked.push(at);
        }
        match self.keyed.get_or_insert_default().places(m) {
            Some(places) => places.push(at),
            None => self.asked.push(at),
        }
    }

    /// Those that may hold: in order each, and not all together.
    fn of(&self, r: &RequestView<'_>, consider: &mut impl FnMut(&Places)) {
        consider(&self.asked);
        let Some(keyed) = &self.keyed else { return };
        let by_name = [
            (&keyed.headers, &(|name: &str| r.header(name)) as &dyn Fn(&str) -> Option<String>),
            (&keyed.query, &|name| r.query_parameter(name)),
            (&keyed.labels, &|name| r.source.label(name).map(ToOwned::to_owned)),
        ];
        for (names, value) in by_name {
            for (name, values) in names {
                if let Some(places) = value(name).and_then(|v| values.get(&v)) {
                    consider(places);
                }
            }
        }
        let by_value = [
            (&keyed.authorities, r.authority),
            (&keyed.namespaces, r.source.namespace),
            (&keyed.methods, r.method.as_str()),
        ];
        by_value.iter().filter_map(|(values, value)| values.get(*value)).for_each(consider);
    }
}

impl Keyed {
    /// Where it stands: under what tells most apart.
    fn places(&mut self, m: &Match) -> Option<&mut Places> {
        let label = m.source_labels.first().map(|(name, value)| (name.as_str(), value.as_str()));
        let by_name = [
            (&mut self.headers, first_exact(&m.headers)),
            (&mut self.query, first_exact(&m.query)),
            (&mut self.labels, label),
        ];
        for (names, asked) in by_name {
            if let Some((name, value)) = asked {
                let values = names.entry(name.to_owned()).or_default();
                return Some(values.entry(value.to_owned()).or_default());
            }
        }
        let namespace = Some(m.source_namespace.as_str()).filter(|n| !n.is_empty());
        let by_value = [
            (&mut self.authorities, exact(&m.authority)),
            (&mut self.namespaces, namespace),
            (&mut self.methods, exact(&m.method)),
        ];
        by_value
            .into_iter()
            .find_map(|(values, asked)| Some(values.entry(asked?.to_owned()).or_default()))
    }
}

fn exact(text: &Option<Text>) -> Option<&str> {
    match text {
        Some(Text::Exact(value)) => Some(value),
        _ => None,
    }
}

/// The first that asks for one value and no other.
fn first_exact(all: &[(String, Text)]) -> Option<(&str, &str)> {
    all.iter().find_map(|(name, text)| match text {
        Text::Exact(value) => Some((name.as_str(), value.as_str())),
        _ => None,
    })
}

/// One of a route's, which others may share.
#[derive(Debug)]
struct Alternative {
    of: Arc<[Match]>,
    at: usize,
}

impl Alternative {
    fn get(&self) -> Option<&Match> {
        self.of.get(self.at)
    }
}

#[derive(Debug, Default)]
pub struct Finder {
    /// In the order of routes, each with the place of its own.
    all: Vec<(usize, Alternative)>,
    exact: HashMap<String, Group>,
    prefix: Prefixes,
    /// Of paths in lower case.
    exact_any_case: HashMap<String, Group>,
    prefix_any_case: Prefixes,
    /// Of no path, or of one by a regular expression.
    others: Group,
}

#[derive(Debug, Default)]
struct Prefixes {
    by_prefix: HashMap<String, Group>,
    lengths: BTreeSet<usize>,
}

impl Prefixes {
    fn of_prefix(&mut self, prefix: &str) -> &mut Group {
        self.lengths.insert(prefix.len());
        self.by_prefix.entry(prefix.to_owned()).or_default()
    }

    fn of<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Group> {
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
    /// Of each route the alternatives.
    pub fn new(routes: impl Iterator<Item = Arc<[Match]>>) -> Self {
        let mut finder = Self::default();
        for (route, matches) in routes.enumerate() {
            for (at, m) in matches.iter().enumerate() {
                finder.insert(m);
                finder.all.push((route, Alternative { of: matches.clone(), at }));
            }
        }
        finder
    }

    fn insert(&mut self, m: &Match) {
        let at = self.all.len();
        let lower = |s: &str| s.to_ascii_lowercase();
        let group = match (&m.uri, m.ignore_case) {
            (Some(Text::Exact(s)), false) => self.exact.entry(s.clone()).or_default(),
            (Some(Text::Prefix(s) | Text::PathPrefix(s)), false) => self.prefix.of_prefix(s),
            (Some(Text::Exact(s)), true) => self.exact_any_case.entry(lower(s)).or_default(),
            (Some(Text::Prefix(s) | Text::PathPrefix(s)), true) => {
                self.prefix_any_case.of_prefix(&lower(s))
            }
            _ => &mut self.others,
        };
        group.insert(m, at);
    }

    fn at(&self, place: usize) -> Option<(usize, &Match)> {
        let (route, alternative) = self.all.get(place)?;
        Some((*route, alternative.get()?))
    }

    /// The first match that holds, of the lowest place.
    pub fn find(&self, request: &RequestView<'_>) -> Option<Found> {
        let mut best: Option<usize> = None;
        let mut consider = |places: &Places| {
            let earlier = places.iter().take_while(|at| best.is_none_or(|b| **at < b));
            let mut earlier = earlier.copied();
            let found = earlier.find(|at| self.at(*at).is_some_and(|(_, m)| m.holds(request)));
            best = found.or(best);
        };
        self.possible(request, &mut consider);
        let (route, m) = self.at(best?)?;
        Some(Found { route, matched: m.matched(request.path) })
    }

    /// Places of matches that may hold.
    fn possible(&self, request: &RequestView<'_>, consider: &mut impl FnMut(&Places)) {
        let mut look = |group: &Group| group.of(request, consider);
        if let Some(group) = self.exact.get(request.path) {
            look(group);
        }
        self.prefix.of(request.path).for_each(&mut look);
        if !self.exact_any_case.is_empty() || !self.prefix_any_case.lengths.is_empty() {
            let path = request.path.to_ascii_lowercase();
            if let Some(group) = self.exact_any_case.get(&path) {
                look(group);
            }
            self.prefix_any_case.of(&path).for_each(&mut look);
        }
        look(&self.others);
    }

    /// As [`Finder::find`], by asking each in its turn.
    #[cfg(test)]
    fn find_slowly(&self, request: &RequestView<'_>) -> Option<usize> {
        (0..self.all.len())
            .filter_map(|place| self.at(place))
            .find(|(_, m)| m.holds(request))
            .map(|(route, _)| route)
    }
}

impl Match {
    /// A route's. One that asks for nothing has one that always holds.
    pub fn all(r: &proto::HttpRoute) -> Result<Arc<[Self]>, BadText> {
        if r.matches.is_empty() {
            return Ok([Self::load(&proto::HttpMatch::default())?].into());
        }
        r.matches.iter().map(Self::load).collect()
    }

    fn load(m: &proto::HttpMatch) -> Result<Self, BadText> {
        let one = |m: &Option<proto::StringMatch>| m.as_ref().map(Text::load).transpose();
        type Texts = Result<Vec<(String, Text)>, BadText>;
        let all = |all: &std::collections::BTreeMap<String, proto::StringMatch>| -> Texts {
            all.iter().map(|(k, v)| Ok((k.clone(), Text::load(v)?))).collect()
        };
        Ok(Self {
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

    fn of(routes: &[proto::HttpRoute]) -> Finder {
        Finder::new(routes.iter().map(|r| Match::all(r).unwrap()))
    }

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
        let string = |kind| proto::StringMatch { kind: Some(kind) };
        let value = prop_oneof!["[xy]".prop_map(Kind::Exact), Just(Kind::Present(true))];
        let named = prop::collection::btree_map("[hk]", value.clone().prop_map(string), 0..2);
        let some = |of: &'static str| {
            prop::option::of(of.prop_map(move |s| string(Kind::Exact(s)))).boxed()
        };
        (
            prop::option::of(text()),
            any::<bool>(),
            (named.clone(), named.clone(), named),
            (some("GET|POST"), some("[xy]")),
            prop::collection::btree_map("[hk]", "[xy]", 0..2),
            "[xy]?",
        )
            .prop_map(
                |(uri, ignore_uri_case, named, (method, authority), labels, namespace)| {
                    let (headers, without_headers, query) = named;
                    proto::HttpMatch {
                        uri,
                        ignore_uri_case,
                        headers,
                        without_headers,
                        query,
                        method,
                        authority,
                        source_labels: labels.into_iter().collect(),
                        source_namespace: namespace,
                        ..proto::HttpMatch::default()
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn the_index_finds_what_asking_each_would(
            // Some of one path are more than a few.
            matches in prop::collection::vec(prop::collection::vec(a_match(), 1..3), 0..60),
            path in "/[abAB]?(/[ab])?",
            headers in prop::collection::btree_map("[hk]", "[xy]", 0..2),
            (query, authority, namespace) in ("([hk]=[xy])?(&[hk]=[xy])?", "[xy]", "[xy]"),
            labels in prop::collection::btree_map("[hk]", "[xy]", 0..2),
        ) {
            let routes: Vec<_> = matches
                .into_iter()
                .map(|matches| proto::HttpRoute { matches, ..proto::HttpRoute::default() })
                .collect();
            let finder = of(&routes);
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.insert(
                    http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    value.parse().unwrap(),
                );
            }
            let labels: Vec<(std::sync::Arc<str>, std::sync::Arc<str>)> =
                labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
            let request = RequestView {
                method: &Method::GET,
                path: &path,
                query: &query,
                authority: &authority,
                scheme: "http",
                headers: &map,
                sni: None,
                source: Source { address: None, namespace: &namespace, labels: &labels },
            };
            let slowly = finder.find_slowly(&request);
            prop_assert_eq!(finder.find(&request).map(|f| f.route), slowly);
        }
    }

    /// Of ten thousand of one path, a request asks the few that are in no index, and its own.
    #[test]
    fn those_that_cannot_match_are_not_asked() {
        const MANY: usize = 10_000;
        let exact = |n: usize| proto::StringMatch { kind: Some(Kind::Exact(n.to_string())) };
        let one = |n| [("k".to_owned(), exact(n))].into_iter().collect();
        let by_label = |n: usize| [("k".to_owned(), n.to_string())].into_iter().collect();
        type Differs<'a> = &'a dyn Fn(usize) -> proto::HttpMatch;
        let none = proto::HttpMatch::default;
        let by: [(&str, Differs<'_>); 5] = [
            ("header", &|n| proto::HttpMatch { headers: one(n), ..none() }),
            ("query", &|n| proto::HttpMatch { query: one(n), ..none() }),
            ("authority", &|n| proto::HttpMatch { authority: Some(exact(n)), ..none() }),
            ("labels", &|n| proto::HttpMatch { source_labels: by_label(n), ..none() }),
            ("namespace", &|n| proto::HttpMatch { source_namespace: n.to_string(), ..none() }),
        ];
        let headers: HeaderMap =
            [("k".parse().unwrap(), "9999".parse().unwrap())].into_iter().collect();
        let request = RequestView {
            method: &Method::GET,
            path: "/one",
            query: "k=9999",
            authority: "9999",
            scheme: "http",
            headers: &headers,
            sni: None,
            source: Source {
                address: None,
                namespace: "9999",
                labels: &[("k".into(), "9999".into())],
            },
        };
        for path in [Some(Kind::Exact("/one".into())), Some(Kind::Prefix("/".into())), None] {
            for (what, differs) in by {
                let uri = path.clone().map(|kind| proto::StringMatch { kind: Some(kind) });
                let matches =
                    (0..MANY).map(|n| proto::HttpMatch { uri: uri.clone(), ..differs(n) });
                let routes: Vec<_> = matches
                    .map(|m| proto::HttpRoute { matches: vec![m], ..proto::HttpRoute::default() })
                    .collect();
                let finder = of(&routes);
                assert_eq!(finder.find(&request).unwrap().route, 9999, "{what}");
                let mut asked = 0;
                finder.possible(&request, &mut |places: &Places| asked += places.len());
                assert!(asked <= FEW + 1, "{what}: {asked} are asked");
            }
        }
    }
}
