//! Lines of an agent's access log, read back.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

#[derive(Clone, Debug)]
pub struct Line {
    pub at: SystemTime,
    pub inbound: bool,
    pub from: Option<SocketAddr>,
    pub to: Option<SocketAddr>,
    pub source: Option<String>,
    pub destination: Option<String>,
    pub duration: Duration,
    pub error: Option<String>,
}

impl Line {
    /// `<time> <level> access: key="value" ...`; anything else is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, fields) = text.split_once(" access: ")?;
        let at = time(head.split_whitespace().next()?)?;
        let fields = pairs(fields);
        let get = |name: &str| fields.get(name).cloned();
        let milliseconds = get("duration")?.trim_end_matches("ms").parse().ok()?;
        Some(Self {
            at,
            inbound: get("direction")? == "inbound",
            from: get("src.addr").and_then(|a| a.parse().ok()),
            to: get("dst.addr").and_then(|a| a.parse().ok()),
            source: get("src.identity"),
            destination: get("dst.identity"),
            duration: Duration::from_millis(milliseconds),
            error: get("error"),
        })
    }

    pub fn opened(&self) -> SystemTime {
        self.at - self.duration
    }
}

fn pairs(mut text: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    while let Some((key, rest)) = text.trim_start().split_once('=') {
        let mut value = String::new();
        let mut end = rest.len();
        match rest.strip_prefix('"') {
            None => {
                end = rest.find(' ').unwrap_or(end);
                value.push_str(&rest[..end]);
            }
            Some(quoted) => {
                let mut chars = quoted.char_indices();
                while let Some((i, c)) = chars.next() {
                    match c {
                        '"' => {
                            end = i + 2;
                            break;
                        }
                        '\\' => value.extend(chars.next().map(|(_, c)| c)),
                        c => value.push(c),
                    }
                }
            }
        }
        all.insert(key.to_owned(), value);
        text = &rest[end..];
    }
    all
}

/// `2026-11-21T00:15:09.123456Z`
fn time(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let date: Vec<u64> = date.split('-').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let clock: Vec<f64> = clock.split(':').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let ([year, month, day], [h, m, s]) = (date.as_slice(), clock.as_slice()) else { return None };
    // Days since 1970-03-01 of a calendar whose years begin in March, so that leap days end them.
    let (y, m0) = if *month > 2 { (*year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m0 * 153 + 2) / 5 + day - 1;
    let since = days.checked_sub(719_468)? * 86_400;
    Some(
        SystemTime::UNIX_EPOCH
            + Duration::from_secs(since)
            + Duration::from_secs_f64(h * 3600.0 + m * 60.0 + s),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back() {
        let text = r#"2026-11-21T00:15:09.250000Z  WARN access: src.addr="10.10.1.2:40000" src.identity="spiffe://a/ns/b/sa/c" dst.addr="10.10.2.2:8080" direction="outbound" bytes_sent=1 bytes_recv=2 duration="30ms" error="it said \"no\" = never""#;
        let line = Line::parse(text).unwrap();
        assert_eq!(line.at, SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_220_109_250));
        assert_eq!(line.from, Some("10.10.1.2:40000".parse().unwrap()));
        assert_eq!(line.source.as_deref(), Some("spiffe://a/ns/b/sa/c"));
        assert_eq!((line.inbound, line.duration), (false, Duration::from_millis(30)));
        assert_eq!(line.error.as_deref(), Some("it said \"no\" = never"));
        assert!(Line::parse("2026-11-21T00:15:09.250000Z  INFO agent started").is_none());
    }
}
