//! AuthorizationPolicies of one host, judged per request.

use super::{
    request::{RequestView, without_port},
    text::{BadText, Text, whole_regex},
};
use crate::proto;
use policy::{Match, PolicyName, Request};

/// `istio.security.Match` from its bytes.
pub type LoadMatch<'a> = &'a dyn Fn(&[u8]) -> Result<Match, String>;

#[derive(Debug, Default)]
pub struct HttpPolicies {
    deny: Vec<Policy>,
    allow: Vec<Policy>,
    dry_run: Vec<Policy>,
}

#[derive(Debug)]
struct Policy {
    name: PolicyName,
    rules: Vec<Vec<Clause>>,
    denies: bool,
}

#[derive(Debug)]
struct Clause(Vec<Asked>);

#[derive(Debug)]
struct Asked {
    connection: Option<Match>,
    hosts: Vec<Text>,
    not_hosts: Vec<Text>,
    methods: Vec<String>,
    not_methods: Vec<String>,
    paths: Vec<Text>,
    not_paths: Vec<Text>,
    headers: Vec<(String, Vec<Text>, Vec<Text>)>,
    unknown: bool,
}

/// Whether the request may be, and what says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HttpVerdict {
    Allowed,
    DeniedBy {
        policy: PolicyName,
        rule: usize,
    },
    /// ALLOW policies apply, and none matched: the first of them.
    NotAllowed {
        nearest: PolicyName,
    },
}

impl std::fmt::Display for HttpVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::DeniedBy { policy, rule } => write!(f, "deny policy {policy}, rule {rule}"),
            Self::NotAllowed { nearest } => {
                write!(f, "no allow policy matched (applied: {nearest} and any others)")
            }
        }
    }
}

impl HttpPolicies {
    pub fn load(all: &[proto::HttpPolicy], load: LoadMatch<'_>) -> Result<Self, String> {
        let mut out = Self::default();
        for p in all {
            let mut rules = Vec::new();
            for r in &p.rules {
                let clause = |c: &proto::PolicyClause| {
                    let asked: Result<Vec<_>, String> =
                        c.matches.iter().map(|m| Asked::load(m, load)).collect();
                    asked.map(Clause)
                };
                rules.push(r.clauses.iter().map(clause).collect::<Result<Vec<_>, _>>()?);
            }
            let denies = p.action == proto::PolicyAction::Deny as i32;
            let name =
                PolicyName { namespace: p.namespace.as_str().into(), name: p.name.as_str().into() };
            let of_action = match (p.dry_run, proto::PolicyAction::try_from(p.action)) {
                (true, _) => &mut out.dry_run,
                (false, Ok(proto::PolicyAction::Allow)) => &mut out.allow,
                (false, Ok(proto::PolicyAction::Deny)) => &mut out.deny,
                (false, Err(_)) => return Err(format!("policy {name}: an unknown action")),
            };
            of_action.push(Policy { name, rules, denies });
        }
        Ok(out)
    }

    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty() && self.dry_run.is_empty()
    }

    pub fn judge(&self, request: &RequestView<'_>, connection: &Request) -> HttpVerdict {
        for p in &self.deny {
            if let Some(rule) = p.matching(request, connection) {
                return HttpVerdict::DeniedBy { policy: p.name.clone(), rule };
            }
        }
        let allowed = self.allow.iter().any(|p| p.matching(request, connection).is_some());
        match self.allow.first() {
            Some(nearest) if !allowed => HttpVerdict::NotAllowed { nearest: nearest.name.clone() },
            _ => HttpVerdict::Allowed,
        }
    }

    /// Of a connection without requests: what a rule asks of a request is taken as met where it would
    /// deny, and as not met where it would allow.
    pub fn judge_connection(&self, connection: &Request) -> HttpVerdict {
        let matching = |p: &Policy, of_request: bool| {
            p.rules.iter().position(|clauses| {
                clauses.iter().all(|Clause(any)| {
                    any.is_empty() || any.iter().any(|a| a.holds_of(connection, of_request))
                })
            })
        };
        for p in &self.deny {
            if let Some(rule) = matching(p, true) {
                return HttpVerdict::DeniedBy { policy: p.name.clone(), rule };
            }
        }
        let allowed = self.allow.iter().any(|p| matching(p, false).is_some());
        match self.allow.first() {
            Some(nearest) if !allowed => HttpVerdict::NotAllowed { nearest: nearest.name.clone() },
            _ => HttpVerdict::Allowed,
        }
    }

    /// Policies that would have matched, were they not on trial.
    pub fn on_trial<'a>(
        &'a self,
        request: &'a RequestView<'_>,
        connection: &'a Request,
    ) -> impl Iterator<Item = &'a PolicyName> {
        let matching = |p: &&Policy| p.matching(request, connection).is_some();
        self.dry_run.iter().filter(matching).map(|p| &p.name)
    }
}

impl Policy {
    fn matching(&self, r: &RequestView<'_>, c: &Request) -> Option<usize> {
        self.rules.iter().position(|clauses| {
            clauses
                .iter()
                .all(|Clause(any)| any.is_empty() || any.iter().any(|a| a.holds(r, c, self.denies)))
        })
    }
}

impl Asked {
    fn load(m: &proto::PolicyMatch, load: LoadMatch<'_>) -> Result<Self, String> {
        let texts = |all: &[proto::StringMatch]| Text::load_all(all).map_err(|e| e.to_string());
        let paths = |all: &[proto::PathMatch]| {
            all.iter()
                .map(|p| match &p.kind {
                    Some(proto::path_match::Kind::Text(t)) => Text::load(t),
                    Some(proto::path_match::Kind::Template(t)) => template(t).map(Text::Regex),
                    None => Err(BadText::Nothing),
                })
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| e.to_string())
        };
        let headers = m
            .headers
            .iter()
            .map(|h| Ok((h.name.to_ascii_lowercase(), texts(&h.values)?, texts(&h.not_values)?)))
            .collect::<Result<_, String>>()?;
        let connection = if m.connection.is_empty() { None } else { Some(load(&m.connection)?) };
        Ok(Self {
            connection,
            hosts: texts(&m.hosts)?,
            not_hosts: texts(&m.not_hosts)?,
            methods: m.methods.clone(),
            not_methods: m.not_methods.clone(),
            paths: paths(&m.paths)?,
            not_paths: paths(&m.not_paths)?,
            headers,
            unknown: m.unknown,
        })
    }

    /// `of_request`: what is said of what it asks of a request, if it asks anything.
    fn holds_of(&self, c: &Request, of_request: bool) -> bool {
        let asks = self.unknown
            || !self.headers.is_empty()
            || !self.methods.is_empty()
            || !self.not_methods.is_empty()
            || [&self.hosts, &self.not_hosts, &self.paths, &self.not_paths]
                .iter()
                .any(|all| !all.is_empty());
        self.connection.as_ref().is_none_or(|m| m.holds(c)) && (!asks || of_request)
    }

    fn holds(&self, r: &RequestView<'_>, c: &Request, denies: bool) -> bool {
        if self.unknown {
            return false;
        }
        // A host with its port, or without: a rule may name either.
        let host = |m: &Text| {
            m.matches_any_case(r.authority) || m.matches_any_case(without_port(r.authority))
        };
        let path = |m: &Text| m.matches(r.path);
        let method =
            |m: &String| m == "*" || m == r.method.as_str() || pattern(m, r.method.as_str());
        let any = |all: &[Text], holds: &dyn Fn(&Text) -> bool| all.iter().any(holds);
        self.connection.as_ref().is_none_or(|m| m.holds(c))
            && (self.hosts.is_empty() || any(&self.hosts, &host))
            && !any(&self.not_hosts, &host)
            && (self.methods.is_empty() || self.methods.iter().any(method))
            && !self.not_methods.iter().any(method)
            && (self.paths.is_empty() || any(&self.paths, &path))
            && !any(&self.not_paths, &path)
            && self.headers.iter().all(|(name, yes, no)| {
                let Some(together) = r.header(name) else { return yes.is_empty() };
                let apart = r.apart(name);
                let (is_met, is_kept) = (
                    |line: &str| yes.is_empty() || yes.iter().any(|m| m.matches(line)),
                    |line: &str| !no.iter().any(|m| m.matches(line)),
                );
                // Which of several lines an application goes by nobody knows: one is enough to be denied, or all of
                // them together, and each must be allowed.
                if denies {
                    (is_met(&together) || apart.iter().any(|l| is_met(l)))
                        && (is_kept(&together) || apart.iter().any(|l| is_kept(l)))
                } else {
                    (is_met(&together) || !apart.is_empty())
                        && is_kept(&together)
                        && apart.iter().all(|l| is_met(l) && is_kept(l))
                }
            })
    }
}

fn pattern(pattern: &str, value: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => value.ends_with(end),
        (_, Some(start)) => value.starts_with(start),
        _ => false,
    }
}

/// `{*}` is one segment, `{**}` any number, and what is between them is itself (Istio's
/// `paths` of an Operation).
fn template(text: &str) -> Result<regex::Regex, BadText> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, after) = rest.split_at(at);
        out.push_str(&regex::escape(before));
        if let Some(more) = after.strip_prefix("{**}") {
            out.push_str(".*");
            rest = more;
        } else if let Some(more) = after.strip_prefix("{*}") {
            out.push_str("[^/]+");
            rest = more;
        } else {
            return Err(BadText::Regex(text.to_owned(), "neither {*} nor {**}".to_owned()));
        }
    }
    out.push_str(&regex::escape(rest));
    whole_regex(&out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_by_segment() {
        let t = template("/foo/{*}/bar/{**}").unwrap();
        assert!(t.is_match("/foo/a/bar/"));
        assert!(t.is_match("/foo/a/bar/x/y"));
        assert!(!t.is_match("/foo/a/b/bar/x"));
        assert!(!t.is_match("/foo//bar/x"));
        assert!(!template("/a.b").unwrap().is_match("/axb"));
        assert!(template("/{a}").is_err());
    }
}
