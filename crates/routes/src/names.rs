//! Hosts as objects write them, and who may be seen from where.

use std::fmt;

/// `namespace/hostname`: what a service is known by.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceName {
    pub namespace: String,
    pub hostname: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A waypoint or gateway: the Gateway object that stands for its pods.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ProxyName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ProxyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A short name is a service of the rule's own namespace; any other is whole. Lower case.
pub fn whole(host: &str, namespace: &str, domain: &str) -> String {
    let host = host.to_ascii_lowercase();
    if host.contains('.') || host.contains('*') || host.contains(':') {
        host
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// `*.example.com` matches what ends in `.example.com`; `*` everything.
pub fn matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            pattern == "*"
                || host.len() > suffix.len() && !host.starts_with('.') && host.ends_with(suffix)
        }
        None => pattern == host,
    }
}

/// The patterns that match a host, the most specific first.
pub fn patterns(host: &str) -> impl Iterator<Item = String> {
    let wild =
        host.char_indices().filter(|(_, c)| *c == '.').map(|(at, _)| format!("*{}", &host[at..]));
    std::iter::once(host.to_owned()).chain(wild).chain(["*".to_owned()])
}

/// Whether an object of `own` with this exportTo is seen from `from`.
pub fn exported(export_to: &[String], own: &str, from: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|e| match e.as_str() {
            "*" => true,
            "." => own == from,
            namespace => namespace == from,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_of_their_rules_namespace() {
        assert_eq!(whole("Reviews", "shop", "cluster.local"), "reviews.shop.svc.cluster.local");
        assert_eq!(whole("a.example.com", "shop", "cluster.local"), "a.example.com");
        assert_eq!(whole("*", "shop", "cluster.local"), "*");
    }

    #[test]
    fn patterns_go_from_the_special_to_the_general() {
        let all: Vec<String> = patterns("a.b.c").collect();
        assert_eq!(all, ["a.b.c", "*.b.c", "*.c", "*"]);
        assert!(all.iter().all(|p| matches(p, "a.b.c")));
        assert!(!matches("*.b.c", "b.c"));
        assert!(!matches("*.b.c", ".b.c"));
    }

    #[test]
    fn export_is_to_all_unless_it_says_otherwise() {
        let to = |e: &[&str]| e.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert!(exported(&to(&[]), "a", "b"));
        assert!(exported(&to(&["*"]), "a", "b"));
        assert!(!exported(&to(&["."]), "a", "b"));
        assert!(exported(&to(&["."]), "a", "a"));
        assert!(exported(&to(&["c", "b"]), "a", "b"));
    }
}
