//! The `:authority` of a CONNECT: `ip:port` of a pod, or `hostname:port` through a gateway.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Authority {
    Address(SocketAddr),
    Hostname { host: String, port: u16 },
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AuthorityError {
    #[error("the authority has no port")]
    NoPort,
    #[error("the authority's port is not a number from 1 to 65535")]
    Port,
    #[error("the authority's host is neither an IP address nor a host name")]
    Host,
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (host, port) = s.rsplit_once(':').ok_or(AuthorityError::NoPort)?;
        // `u16::from_str` takes a leading plus sign.
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AuthorityError::Port);
        }
        let port = match port.parse::<u16>() {
            Ok(0) | Err(_) => return Err(AuthorityError::Port),
            Ok(port) => port,
        };
        if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            // A zone (fe80::1%eth0) means nothing on another node, and does not parse.
            let ip: std::net::Ipv6Addr = v6.parse().map_err(|_| AuthorityError::Host)?;
            return Ok(Authority::Address(SocketAddr::new(IpAddr::V6(ip).to_canonical(), port)));
        }
        if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
            return Ok(Authority::Address(SocketAddr::new(ip.into(), port)));
        }
        if !is_hostname(host) {
            return Err(AuthorityError::Host);
        }
        Ok(Authority::Hostname { host: host.to_ascii_lowercase(), port })
    }
}

/// RFC 1123, and underscores, which service names in the wild have.
fn is_hostname(host: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // All digits and dots would be an address that did not parse.
    host.len() <= 253 && host.split('.').all(label) && host.bytes().any(|b| b.is_ascii_alphabetic())
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Authority::Address(a) => a.fmt(f),
            Authority::Hostname { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names() {
        let ok = |s: &str| s.parse::<Authority>().unwrap();
        assert_eq!(ok("10.0.0.1:9080"), Authority::Address("10.0.0.1:9080".parse().unwrap()));
        assert_eq!(ok("[fd00::1]:80"), Authority::Address("[fd00::1]:80".parse().unwrap()));
        assert_eq!(ok("[::ffff:10.0.0.1]:80"), ok("10.0.0.1:80"));
        let name = Authority::Hostname { host: "reviews.default.svc".into(), port: 9080 };
        assert_eq!(ok("Reviews.default.svc:9080"), name);
    }

    #[test]
    fn what_is_refused() {
        for bad in [
            "",
            ":",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+80",
            "10.0.0.1:80:90",
            "[fe80::1%eth0]:80",
            "fd00::1:80",
            "[10.0.0.1]:80",
            "[fd00::1]",
            "10.0.0.256:80",
            "a..b:80",
            "user@host:80",
            "a/b:80",
            "host name:80",
            ":80",
        ] {
            assert!(bad.parse::<Authority>().is_err(), "{bad:?}");
        }
    }
}
