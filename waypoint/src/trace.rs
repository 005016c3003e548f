//! Which trace a request is part of: W3C's `traceparent` (Trace Context, section 3.2), and B3, in one
//! header or in several.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;
use std::fmt::Write as _;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
/// Of a trace that it came with, and of no other (Trace Context, section 3.3).
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// Whether a header says which trace a request is part of.
pub fn is_of_it(name: &HeaderName) -> bool {
    [TRACEPARENT, STATE, B3].contains(name) || name.as_str().starts_with("x-b3-")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    pub trace: u128,
    /// Of the span that the request is part of.
    pub parent: Option<u64>,
    /// Of this proxy's own.
    pub span: u64,
    pub sampled: bool,
}

/// What a client says: none of it, where it is not well-formed.
struct Said {
    /// None: only whether it is sampled.
    ids: Option<(u128, u64)>,
    sampled: Option<bool>,
}

impl Context {
    /// The client's, or a new one, of which `ppm` millionths are sampled.
    pub fn of(headers: &HeaderMap, ppm: u32, rng: &mut impl Rng) -> Self {
        let said = w3c(headers).or_else(|| b3(headers)).or_else(|| b3_headers(headers));
        let span = rng.random_range(1..=u64::MAX);
        let new = (rng.random_range(1..=u128::MAX), None);
        let (trace, parent) = match said.as_ref().and_then(|s| s.ids) {
            Some((trace, parent)) => (trace, Some(parent)),
            None => new,
        };
        let decided = said.as_ref().and_then(|s| s.sampled);
        Self {
            trace,
            parent,
            span,
            sampled: decided.unwrap_or_else(|| rng.random_range(0..1_000_000) < ppm),
        }
    }

    /// Says so to whoever gets the request, in W3C's form and in those that the client used.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let (trace, span, sampled) = (self.trace, self.span, u8::from(self.sampled));
        let b3 = headers.contains_key(B3);
        let several = [TRACE_ID, SPAN_ID, SAMPLED, FLAGS].iter().any(|n| headers.contains_key(n));
        if self.parent.is_none() {
            headers.remove(STATE);
        }
        headers.remove(PARENT);
        headers.remove(FLAGS);
        let mut set = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        set(TRACEPARENT, format!("00-{trace:032x}-{span:016x}-{sampled:02x}"));
        if b3 {
            let mut value = format!("{trace:032x}-{span:016x}-{sampled}");
            if let Some(parent) = self.parent {
                let _ = write!(value, "-{parent:016x}");
            }
            set(B3, value);
        }
        if several {
            set(TRACE_ID, format!("{trace:032x}"));
            set(SPAN_ID, format!("{span:016x}"));
            set(SAMPLED, sampled.to_string());
            if let Some(parent) = self.parent {
                set(PARENT, format!("{parent:016x}"));
            }
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Lower-case digits of just these lengths, and not all of them zero.
fn id<T: TryFrom<u128> + PartialEq + Default>(text: &str, lengths: &[usize]) -> Option<T> {
    let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let fits = digits && lengths.contains(&text.len());
    let id = T::try_from(fits.then(|| u128::from_str_radix(text, 16).ok()).flatten()?).ok()?;
    (id != T::default()).then_some(id)
}

/// Two lower-case digits.
fn octet(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (digits && text.len() == 2).then(|| u8::from_str_radix(text, 16).ok())?
}

fn w3c(headers: &HeaderMap) -> Option<Said> {
    let mut parts = text(headers, &TRACEPARENT)?.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // A later version may have more parts.
    if version == "ff" || version == "00" && parts.next().is_some() {
        return None;
    }
    octet(version)?;
    let ids = Some((id(trace, &[32])?, id(span, &[16])?));
    Some(Said { ids, sampled: Some(octet(flags)? & 1 == 1) })
}

fn decision(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

fn b3(headers: &HeaderMap) -> Option<Said> {
    let value = text(headers, &B3)?;
    if let Some(sampled) = decision(value) {
        return Some(Said { ids: None, sampled: Some(sampled) });
    }
    let mut parts = value.split('-');
    let ids = Some((id(parts.next()?, &[16, 32])?, id(parts.next()?, &[16])?));
    Some(Said { ids, sampled: parts.next().and_then(decision) })
}

fn b3_headers(headers: &HeaderMap) -> Option<Said> {
    let debug = text(headers, &FLAGS) == Some("1");
    let sampled = text(headers, &SAMPLED).and_then(decision).or(debug.then_some(true));
    let ids =
        || Some((id(text(headers, &TRACE_ID)?, &[16, 32])?, id(text(headers, &SPAN_ID)?, &[16])?));
    let ids = ids();
    (ids.is_some() || sampled.is_some()).then_some(Said { ids, sampled })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::{SeedableRng as _, rngs::SmallRng};

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap()))
            .collect()
    }

    fn of(all: &[(&'static str, &str)], ppm: u32) -> (Context, HeaderMap) {
        let mut headers = headers(all);
        let c = Context::of(&headers, ppm, &mut SmallRng::seed_from_u64(1));
        c.apply(&mut headers);
        (c, headers)
    }

    #[test]
    fn a_trace_goes_on_in_the_form_in_which_it_came() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let b3 = format!("{TRACE}-{SPAN}-1");
        for all in [
            &[("traceparent", parent.as_str())][..],
            &[("b3", b3.as_str())],
            &[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")],
        ] {
            let (c, out) = of(all, 0);
            assert_eq!(format!("{:032x}", c.trace), TRACE, "{all:?}");
            assert_eq!(format!("{:016x}", c.parent.unwrap()), SPAN);
            assert!(c.sampled);
            let own = format!("{:016x}", c.span);
            assert_eq!(out["traceparent"], format!("00-{TRACE}-{own}-01"));
            for (name, _) in all {
                let value = out[*name].to_str().unwrap();
                assert!(value.contains(&own) || value == TRACE || value == "1", "{name}: {value}");
            }
        }
        let short = of(&[("x-b3-traceid", SPAN), ("x-b3-spanid", SPAN)], 0).0;
        assert_eq!(format!("{:x}", short.trace), SPAN);
    }

    #[test]
    fn every_form_that_a_client_used_says_the_same() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let other = "f".repeat(32);
        let old = format!("{other}-{SPAN}-0");
        let all = [
            ("traceparent", parent.as_str()),
            ("tracestate", "a=b"),
            ("b3", &old),
            ("x-b3-traceid", &other),
            ("x-b3-flags", "1"),
        ];
        let (c, out) = of(&all, 0);
        let own = format!("{:016x}", c.span);
        assert_eq!(out["b3"], format!("{TRACE}-{own}-1-{SPAN}"));
        assert_eq!(
            (&out["x-b3-traceid"], &out["x-b3-spanid"]),
            (&TRACE.parse().unwrap(), &own.parse().unwrap())
        );
        assert_eq!(out["tracestate"], "a=b");
        assert!(!out.contains_key("x-b3-flags"), "it would ask for more than was decided");
        // What belongs to a trace does not go on in another.
        assert!(
            !of(&[("traceparent", "00-x"), ("tracestate", "a=b")], 0).1.contains_key("tracestate")
        );
        assert!(all.iter().all(|(n, _)| is_of_it(&HeaderName::from_static(n))));
    }

    #[test]
    fn whoever_decided_has_decided_and_others_are_drawn() {
        let undecided = format!("00-{TRACE}-{SPAN}-00");
        assert!(!of(&[("traceparent", &undecided)], 1_000_000).0.sampled);
        assert!(!of(&[("b3", "0")], 1_000_000).0.sampled);
        assert!(of(&[("b3", "d")], 0).0.sampled);
        assert!(of(&[], 1_000_000).0.sampled);
        assert!(!of(&[], 0).0.sampled);
    }

    #[test]
    fn what_is_not_well_formed_begins_a_new_trace() {
        for bad in [
            format!("00-{TRACE}-{SPAN}"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-+1"),
            format!("+0-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            "00--".to_owned(),
        ] {
            assert_eq!(of(&[("traceparent", &bad)], 0).0.parent, None, "{bad}");
        }
        assert_eq!(of(&[("b3", "x-y-1")], 0).0.parent, None);
    }
}
