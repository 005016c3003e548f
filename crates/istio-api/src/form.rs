//! The forms of words in Istio's API: labels, hosts, regular expressions, headers.

use regex::RegexBuilder;
use std::net::{IpAddr, Ipv4Addr};

/// Longest regular expression, in bytes.
const LONGEST_REGEX: usize = 1024;

/// What a compiled regular expression may take, in bytes: a hundred times what ordinary ones do.
const LARGEST_REGEX: usize = 1 << 20;

/// RFC 1123, with capitals.
pub fn is_label(s: &str) -> bool {
    let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    s.len() <= 63
        && s.bytes().all(inside)
        && s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && s.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// A host's name, short or whole: labels, of which the last is no number.
pub fn is_host(s: &str) -> bool {
    let name = s.strip_suffix('.').unwrap_or(s);
    let last = name.rsplit('.').next().unwrap_or_default();
    s.len() <= 255 && name.split('.').all(is_label) && !last.bytes().all(|b| b.is_ascii_digit())
}

/// As [`is_host`], or `*`, or with a first label that begins with `*`.
pub fn is_wildcard_host(s: &str) -> bool {
    if s == "*" {
        return true;
    }
    match s.strip_prefix('*') {
        None => is_host(s),
        Some(rest) => match rest.split_once('.') {
            Some((first, more)) => {
                let first = first.strip_prefix('-').unwrap_or(first);
                (first.is_empty() || is_label(first)) && is_host(more)
            }
            None => is_label(rest.strip_prefix('-').unwrap_or(rest)),
        },
    }
}

pub fn is_ip(s: &str) -> bool {
    s.parse::<IpAddr>().is_ok()
}

/// `<host or IP address>:<port>`
pub fn is_address(s: &str) -> bool {
    let Some((host, port)) = s.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let is_host = match bracketed {
        Some(host) => is_ip(host),
        None => is_host(host) || host.parse::<Ipv4Addr>().is_ok(),
    };
    is_host && port.parse::<u16>().is_ok_and(|p| p != 0)
}

/// Whether a host that one of them means may be meant by the other, too.
pub fn overlap(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (None, None) => a == b,
        (Some(tail), None) => b.ends_with(tail),
        (None, Some(tail)) => a.ends_with(tail),
        (Some(x), Some(y)) => x.ends_with(y) || y.ends_with(x),
    }
}

/// Why it is no regular expression. Both engines that matter read the same syntax, and take time
/// that grows with the text alone.
pub fn regex_error(s: &str) -> Option<String> {
    if s.is_empty() {
        return Some("it is empty".to_owned());
    }
    if s.len() > LONGEST_REGEX {
        return Some(format!("it has {} bytes, of {LONGEST_REGEX} at most", s.len()));
    }
    let compiled = RegexBuilder::new(s).size_limit(LARGEST_REGEX).build();
    compiled.err().map(|e| e.to_string().lines().last().unwrap_or_default().to_owned())
}

/// RFC 9110, section 5.6.2.
pub fn is_token(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A key of a label: `[prefix/]name`.
pub fn is_label_key(s: &str) -> bool {
    let (prefix, name) = s.split_once('/').map_or((None, s), |(p, n)| (Some(p), n));
    prefix.is_none_or(|p| is_host(p) && p.len() <= 253) && !name.is_empty() && is_label_value(name)
}

pub fn is_label_value(s: &str) -> bool {
    let alphanumeric = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    s.len() <= 63
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && alphanumeric(s.bytes().next())
        && alphanumeric(s.bytes().last())
}

/// What is wrong with a value that a proxy is to write into a header: `%` begins a variable.
pub fn header_value_error(s: &str) -> Option<&'static str> {
    if s.bytes().any(|b| b != b'\t' && b.is_ascii_control()) {
        return Some("control characters cannot be in a header");
    }
    let mut rest = s;
    while let Some((_, after)) = rest.split_once('%') {
        if let Some(next) = after.strip_prefix('%') {
            rest = next;
            continue;
        }
        let name = after.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        let (name, mut tail) = after.split_at_checked(name)?;
        if let Some(inside) = tail.strip_prefix('(') {
            match inside.split_once(')') {
                Some((_, end)) => tail = end,
                None => return Some("a variable's parenthesis is not closed"),
            }
        }
        match tail.strip_prefix('%') {
            Some(next) if !name.is_empty() => rest = next,
            _ => return Some("% begins a variable, such as %REQ(x-id)%: write %% for the sign"),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["a", "reviews.default", "A.example.com", "a.example.com.", "1a.b", "x-y.z"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a-", "a_b", "*.a", "10.0.0.1", "a.7", "é.fr"] {
            assert!(!is_host(bad), "{bad}");
        }
        for good in ["*", "*.example.com", "*a.com", "*-a.com", "a.b"] {
            assert!(is_wildcard_host(good), "{good}");
        }
        for bad in ["*.", "a*.com", "*.*.com", "**", "*.10"] {
            assert!(!is_wildcard_host(bad), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        for good in ["a:1", "a.b.example:65535", "10.0.0.1:80", "[::1]:80"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "a", ":80", "a:", "a:0", "a:65536", "a:http", "::1:80", "[a]:80", "a b:80"]
        {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn hosts_that_overlap() {
        assert!(overlap("*.foo.com", "a.foo.com") && overlap("a", "A") && overlap("*", "x.y"));
        assert!(overlap("*.com", "*.foo.com"));
        assert!(!overlap("*.foo.com", "foo.com") && !overlap("*.a.com", "*.b.com"));
    }

    #[test]
    fn regular_expressions_are_linear_and_bounded() {
        assert_eq!(regex_error("/v[0-9]+/.*"), None);
        for bad in ["", "(", "a(?=b)", "(a)\\1", "((a{100}){100}){100}"] {
            assert!(regex_error(bad).is_some(), "{bad}");
        }
        assert!(regex_error(&"a".repeat(LONGEST_REGEX + 1)).is_some());
    }

    #[test]
    fn header_values_have_variables() {
        for good in ["", "a b", "100%%", "%REQ(x-id)%", "%START_TIME%-%A(b)%"] {
            assert_eq!(header_value_error(good), None, "{good}");
        }
        for bad in ["a\nb", "50%", "%REQ(x", "%%%", "%REQ(x)"] {
            assert!(header_value_error(bad).is_some(), "{bad}");
        }
    }
}
