//! A rule as a waypoint judges it: what a connection has as `istio.security.Match`, and what a
//! request has beside it.

use super::{condition as of_connection, operation, source};
use istio_api::{Condition, MeshConfig, Operation, Rule, Source};
use prost::Message as _;
use routes::{
    execute::SNI,
    proto::{
        HeaderValues, PathMatch, PolicyClause, PolicyMatch, PolicyRule, StringMatch, path_match,
        string_match::Kind,
    },
};
use xds::proto::security::Match;

pub fn rule(r: &Rule, namespace: &str, mesh: &MeshConfig) -> PolicyRule {
    let mut clauses = Vec::new();
    if !r.from.is_empty() {
        let matches = r.from.iter().map(|f| of_source(&f.source, namespace, mesh)).collect();
        clauses.push(PolicyClause { matches });
    }
    if !r.to.is_empty() {
        let matches = r.to.iter().map(|t| of_operation(&t.operation)).collect();
        clauses.push(PolicyClause { matches });
    }
    clauses.extend(
        r.when.iter().map(|c| PolicyClause { matches: vec![of_condition(c, namespace, mesh)] }),
    );
    PolicyRule { clauses }
}

fn encoded(m: &Match) -> Vec<u8> {
    m.encode_to_vec()
}

/// Within the mesh the connection's source is the request's: `remoteIpBlocks` are `ipBlocks`. No
/// token is read here, so no request has a principal of its own.
fn of_source(s: &Source, namespace: &str, mesh: &MeshConfig) -> PolicyMatch {
    let mut m = source(s, namespace, mesh);
    let mut never = !s.request_principals.is_empty();
    if !s.remote_ip_blocks.is_empty() {
        // Where both are asked for, both must hold.
        m.source_ips = match s.ip_blocks.is_empty() {
            true => super::blocks(&s.remote_ip_blocks),
            false => super::in_both(&s.ip_blocks, &s.remote_ip_blocks),
        };
        // No address is in none, and a list of none would ask for nothing.
        never |= m.source_ips.is_empty();
    }
    m.not_source_ips.extend(super::blocks(&s.not_remote_ip_blocks));
    PolicyMatch { connection: encoded(&m), unknown: never, ..PolicyMatch::default() }
}

fn of_operation(o: &Operation) -> PolicyMatch {
    let hosts = |all: &[String]| all.iter().map(|h| pattern(&h.to_ascii_lowercase())).collect();
    PolicyMatch {
        connection: encoded(&operation(o)),
        hosts: hosts(&o.hosts),
        not_hosts: hosts(&o.not_hosts),
        methods: o.methods.clone(),
        not_methods: o.not_methods.clone(),
        paths: o.paths.iter().map(|p| path(p)).collect(),
        not_paths: o.not_paths.iter().map(|p| path(p)).collect(),
        ..PolicyMatch::default()
    }
}

fn of_condition(c: &Condition, namespace: &str, mesh: &MeshConfig) -> PolicyMatch {
    if let Some(m) = of_connection(c, namespace, mesh) {
        return PolicyMatch { connection: encoded(&m), ..PolicyMatch::default() };
    }
    let header = c.key.strip_prefix("request.headers[").and_then(|k| k.strip_suffix(']'));
    let sni = (c.key == "connection.sni").then_some(SNI);
    if let Some(name) = header.or(sni) {
        // Names of hosts have no case.
        let value = |v: &String| match sni {
            Some(_) => pattern(&v.to_ascii_lowercase()),
            None => pattern(v),
        };
        let values = HeaderValues {
            name: name.to_ascii_lowercase(),
            values: c.values.iter().map(value).collect(),
            not_values: c.not_values.iter().map(value).collect(),
        };
        return PolicyMatch { headers: vec![values], ..PolicyMatch::default() };
    }
    if c.key == "remote.ip" {
        let m = Match {
            source_ips: super::blocks(&c.values),
            not_source_ips: super::blocks(&c.not_values),
            ..Match::default()
        };
        return PolicyMatch { connection: encoded(&m), ..PolicyMatch::default() };
    }
    // Of a token (request.auth.*): it is never there. A positive never holds, and negatives alone always do.
    PolicyMatch { unknown: !c.values.is_empty(), ..PolicyMatch::default() }
}

fn pattern(s: &str) -> StringMatch {
    let kind = if s == "*" {
        Kind::Present(true)
    } else if let Some(suffix) = s.strip_prefix('*') {
        Kind::Suffix(suffix.to_owned())
    } else if let Some(prefix) = s.strip_suffix('*') {
        Kind::Prefix(prefix.to_owned())
    } else {
        Kind::Exact(s.to_owned())
    };
    StringMatch { kind: Some(kind) }
}

fn path(p: &str) -> PathMatch {
    let kind = if p.contains('{') {
        path_match::Kind::Template(p.to_owned())
    } else {
        path_match::Kind::Text(pattern(p))
    };
    PathMatch { kind: Some(kind) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn blocks(all: &[&str]) -> Vec<String> {
        all.iter().map(|b| (*b).to_owned()).collect()
    }

    /// As many blocks as the source's address may be in, and whether it may be at all.
    fn asked(ip: &[&str], remote: &[&str]) -> (Vec<u32>, bool) {
        let source =
            Source { ip_blocks: blocks(ip), remote_ip_blocks: blocks(remote), ..Source::default() };
        let m = of_source(&source, "ns", &MeshConfig::default());
        let connection = Match::decode(&*m.connection).unwrap();
        (connection.source_ips.iter().map(|b| b.length).collect(), m.unknown)
    }

    #[test]
    fn of_two_lists_of_addresses_both_must_have_it() {
        assert_eq!(asked(&["10.0.0.0/8"], &[]), (vec![8], false));
        assert_eq!(asked(&[], &["10.1.2.3"]), (vec![32], false));
        assert_eq!(asked(&["10.0.0.0/8", "fd00::/8"], &["10.1.2.3"]), (vec![32], false));
        assert_eq!(asked(&["10.1.0.0/16"], &["10.0.0.0/8", "10.1.2.0/24"]), (vec![16, 24], false));
        // Nobody is in none: that is not the same as not being asked.
        assert_eq!(asked(&["10.0.0.0/8"], &["192.168.0.1"]), (vec![], true));
    }

    /// What a rule in Istio's words asks of requests, a clause each.
    fn clauses(rule: &str) -> Vec<PolicyMatch> {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: ns}}\n\
             spec: {{targetRefs: [{{kind: Service, group: \"\", name: a}}], rules: [{rule}]}}"
        );
        let (objects, diagnostics) = istio_api::parse_documents("p.yaml", &text);
        assert!(diagnostics.iter().all(|d| !d.code.is_error()), "{diagnostics:?}");
        let istio_api::Spec::AuthorizationPolicy(p) = &objects[0].spec else {
            panic!("{objects:?}")
        };
        let made = super::rule(&p.rules[0], "ns", &MeshConfig::default());
        made.clauses.into_iter().map(|c| c.matches[0].clone()).collect()
    }

    fn one(text: &str) -> Vec<StringMatch> {
        vec![pattern(text)]
    }

    #[test]
    fn operations_are_asked_of_requests_and_ports_of_their_connection() {
        let m = clauses(
            "{to: [{operation: {hosts: [A.example, \"*.b\"], notHosts: [\"c*\"], methods: [GET], \
             notMethods: [PUT], paths: [/x, \"/y/{*}\"], notPaths: [\"*z\"], ports: [\"80\"], \
             notPorts: [\"81\"]}}]}",
        );
        let m = &m[0];
        assert_eq!(m.hosts, [one("a.example"), one("*.b")].concat());
        assert_eq!(m.not_hosts[0].kind, Some(Kind::Prefix("c".to_owned())));
        assert_eq!((&m.methods, &m.not_methods), (&blocks(&["GET"]), &blocks(&["PUT"])));
        let kinds: Vec<_> = m.paths.iter().map(|p| p.kind.clone()).collect();
        let template = path_match::Kind::Template("/y/{*}".to_owned());
        assert_eq!(kinds, [Some(path_match::Kind::Text(pattern("/x"))), Some(template)]);
        let suffix = StringMatch { kind: Some(Kind::Suffix("z".to_owned())) };
        assert_eq!(m.not_paths[0].kind, Some(path_match::Kind::Text(suffix)));
        let connection = Match::decode(&*m.connection).unwrap();
        assert_eq!(
            (connection.destination_ports, connection.not_destination_ports),
            (vec![80], vec![81])
        );
        assert!(!m.unknown);
    }

    #[test]
    fn conditions_are_of_headers_names_and_addresses_and_what_is_of_tokens_is_never_met() {
        let when = |condition: &str| clauses(&format!("{{when: [{{{condition}}}]}}")).remove(0);
        let m = when("key: \"request.headers[X-Role]\", values: [admin], notValues: [\"a*\"]");
        let header = &m.headers[0];
        assert_eq!((header.name.as_str(), &header.values), ("x-role", &one("admin")));
        assert_eq!(header.not_values, one("a*"));
        let m = when("key: connection.sni, values: [A.Example]");
        assert_eq!((m.headers[0].name.as_str(), m.unknown), (SNI, false));
        assert_eq!(m.headers[0].values, one("a.example"));
        let ips = |m: &PolicyMatch| Match::decode(&*m.connection).unwrap().source_ips.len();
        assert_eq!(ips(&when("key: remote.ip, values: [10.0.0.0/8, \"fd00::/8\"]")), 2);
        assert_eq!(ips(&when("key: source.ip, values: [10.0.0.1]")), 1);
        assert!(when("key: \"request.auth.claims[x]\", values: [a]").unknown);
        assert!(!when("key: request.auth.principal, notValues: [a]").unknown);
        let source = clauses("{from: [{source: {requestPrincipals: [\"*\"]}}]}");
        assert!(source[0].unknown);
    }
}
