//! The headers of a CONNECT beside its authority: `baggage` (who is calling, for telemetry) and
//! `forwarded` (for whom). Neither decides anything here: a peer can write what it likes in them.

use std::{fmt::Write as _, net::SocketAddr};

/// Longest `baggage` that is looked at, in bytes (W3C Baggage, section 3.3.2).
const MAX_BAGGAGE: usize = 8192;

/// Longest name that is taken from it, in bytes: the longest that Kubernetes gives anything. Names
/// become labels of metrics, several times each, and are kept for as long as those are.
const MAX_NAME: usize = 253;

/// Telemetry about the calling workload (W3C Baggage).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Baggage {
    pub cluster: Option<String>,
    pub namespace: Option<String>,
    pub workload: Option<String>,
    /// `deployment`, `cronjob`, `job` or `pod`.
    pub workload_type: Option<&'static str>,
    pub service: Option<String>,
    pub revision: Option<String>,
    pub region: Option<String>,
    pub zone: Option<String>,
}

const WORKLOAD_KEYS: [(&str, &str); 4] = [
    ("k8s.deployment.name", "deployment"),
    ("k8s.cronjob.name", "cronjob"),
    ("k8s.job.name", "job"),
    ("k8s.pod.name", "pod"),
];

impl Baggage {
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(160);
        let workload_key = WORKLOAD_KEYS
            .iter()
            .find(|(_, t)| Some(*t) == self.workload_type)
            .map_or("k8s.deployment.name", |(k, _)| k);
        for (key, value) in [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (workload_key, &self.workload),
            ("service.name", &self.service),
            ("service.version", &self.revision),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ] {
            if let Some(v) = value
                && !v.is_empty()
            {
                if !out.is_empty() {
                    out.push(',');
                }
                out.push_str(key);
                out.push('=');
                percent_encode(v, &mut out);
            }
        }
        out
    }

    /// What can be read of `header`; a member that cannot is passed over, and of a key that comes
    /// twice the first counts.
    pub fn decode(header: &str) -> Self {
        let mut b = Baggage::default();
        if header.len() > MAX_BAGGAGE {
            return b;
        }
        for member in header.split(',') {
            let pair = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = pair.split_once('=') else { continue };
            let name = percent_decode(value.trim()).filter(|name| name.len() <= MAX_NAME);
            let Some(value) = name else { continue };
            let key = key.trim();
            if let Some((_, kind)) = WORKLOAD_KEYS.iter().find(|(k, _)| *k == key) {
                if b.workload.is_none() {
                    b.workload = Some(value);
                    b.workload_type = Some(kind);
                }
                continue;
            }
            let field = match key {
                "k8s.cluster.name" => &mut b.cluster,
                "k8s.namespace.name" => &mut b.namespace,
                "service.name" => &mut b.service,
                "service.version" => &mut b.revision,
                "cloud.region" => &mut b.region,
                "cloud.availability_zone" => &mut b.zone,
                _ => continue,
            };
            field.get_or_insert(value);
        }
        b
    }
}

fn percent_encode(value: &str, out: &mut String) {
    for byte in value.bytes() {
        // baggage-octet, without '%' itself.
        if matches!(byte, 0x21 | 0x23..=0x24 | 0x26..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e)
        {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

fn percent_decode(value: &str) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (hi, lo) = (hex(bytes.next()?)?, hex(bytes.next()?)?);
        out.push(hi << 4 | lo);
    }
    String::from_utf8(out).ok()
}

/// The `forwarded` header (RFC 7239): the client's address, and the service it asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forwarded {
    pub client: SocketAddr,
    pub host: Option<String>,
}

impl Forwarded {
    pub fn encode(&self) -> String {
        match &self.host {
            Some(host) => format!("for=\"{}\";host={host}", self.client),
            None => format!("for=\"{}\"", self.client),
        }
    }

    /// The first element of the header, if it can be read.
    pub fn decode(header: &str) -> Option<Self> {
        let first = header.split(',').next()?;
        let mut client = None;
        let mut host = None;
        for pair in first.split(';') {
            let (key, value) = pair.split_once('=')?;
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                "for" => client = value.parse().ok(),
                // What is no host's name would read differently once it is passed on.
                "host" if value.bytes().all(host_byte) => host = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(Forwarded { client: client?, host })
    }
}

fn host_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._:[]".contains(&b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn baggage_survives_the_round_trip() {
        let b = Baggage {
            cluster: Some("Kubernetes".into()),
            namespace: Some("default".into()),
            workload: Some("reviews-v1".into()),
            workload_type: Some("deployment"),
            service: Some("a, b;c=d%".into()),
            revision: Some("v1".into()),
            region: None,
            zone: Some("ü".into()),
        };
        assert_eq!(Baggage::decode(&b.encode()), b);
    }

    #[test]
    fn bad_baggage_is_passed_over() {
        assert_eq!(Baggage::decode("a=%zz,,=,service.name=%ff,service.name"), Baggage::default());
        assert_eq!(
            Baggage::decode(&format!("service.name={}", "x".repeat(9000))),
            Baggage::default()
        );
        let twice = Baggage::decode("service.name=a,service.name=b");
        assert_eq!(twice.service.unwrap(), "a");
    }

    #[test]
    fn forwarded_survives_the_round_trip() {
        let f = Forwarded { client: "[fd00::1]:80".parse().unwrap(), host: Some("h.ns".into()) };
        assert_eq!(Forwarded::decode(&f.encode()), Some(f));
        assert_eq!(Forwarded::decode("nonsense"), None);
        let odd = Forwarded::decode("for=\"10.0.0.1:80\";host=\" a \"").unwrap();
        assert_eq!(odd.host, None);
    }
}
