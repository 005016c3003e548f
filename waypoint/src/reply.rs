//! Answers that no application gave, with Envoy's flags and texts.

use crate::body::InBody;
use http::{HeaderValue, Response, StatusCode, header};
use rand::Rng as _;
use std::{fmt::Write as _, time::SystemTime};

/// Why a request is answered here.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: StatusCode,
    /// Envoy's response flags.
    pub flags: &'static str,
    /// For the client.
    pub body: String,
    /// For the log.
    pub why: String,
    /// Where it is not what the status stands for.
    grpc: Option<u32>,
    overloaded: bool,
}

impl Refusal {
    fn new(status: StatusCode, flags: &'static str, body: &str, why: String) -> Self {
        Self { status, flags, body: body.to_owned(), why, grpc: None, overloaded: false }
    }

    pub fn bad_request(why: String) -> Self {
        let body = format!("bad request: {why}");
        Self::new(StatusCode::BAD_REQUEST, "DPE", &body, why)
    }

    /// For another server of the gateway than the one that the TLS is with (RFC 9110, section 15.5.20).
    pub fn misdirected() -> Self {
        let why = "the host is not one of the server that the connection's TLS is for".to_owned();
        Self::new(StatusCode::MISDIRECTED_REQUEST, "NR", "", why)
    }

    pub fn denied(why: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "-", "RBAC: access denied", why)
    }

    pub fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NR", "", "no route matches".to_owned())
    }

    pub fn no_routes() -> Self {
        let why = "no routes for this service have come from the control plane".to_owned();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "NR", "no routes", why)
    }

    /// A destination that cannot be one.
    pub fn nowhere(why: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "NC", "no such destination", why.to_owned())
    }

    pub fn no_endpoint(cluster: &str) -> Self {
        let why = format!("{cluster} has no healthy endpoint");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UH", "no healthy upstream", why)
    }

    pub fn overflow(why: String) -> Self {
        let body =
            "upstream connect error or disconnect/reset before headers. reset reason: overflow";
        let mut r = Self::new(StatusCode::SERVICE_UNAVAILABLE, "UO", body, why);
        r.overloaded = true;
        r
    }

    pub fn not_connected(why: String) -> Self {
        let body = "upstream connect error or disconnect/reset before headers. reset reason: \
                    connection failure";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UF", body, why)
    }

    pub fn reset(why: String) -> Self {
        let body = "upstream connect error or disconnect/reset before headers. reset reason: \
                    connection termination";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UC", body, why)
    }

    pub fn timeout(why: String) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "UT", "upstream request timeout", why)
    }

    pub fn fault(status: StatusCode, grpc: Option<u32>) -> Self {
        let mut r =
            Self::new(status, "FI", "fault filter abort", "an abort is injected".to_owned());
        r.grpc = grpc;
        r
    }
}

/// The answer; to gRPC in its own form (trailers only).
pub fn local(r: &Refusal, is_grpc: bool) -> Response<InBody> {
    if is_grpc || r.grpc.is_some() {
        let status = r.grpc.unwrap_or_else(|| grpc_status(r.status));
        let mut response = Response::new(InBody::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(status));
        if let Ok(value) = HeaderValue::from_str(&percent_encoded(&r.body)) {
            headers.insert("grpc-message", value);
        }
        return response;
    }
    let mut response = Response::new(InBody::of(r.body.clone()));
    *response.status_mut() = r.status;
    let headers = response.headers_mut();
    if !r.body.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    if r.overloaded {
        headers.insert("x-envoy-overloaded", HeaderValue::from_static("true"));
    }
    response
}

/// As gRPC maps statuses of HTTP.
fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b' '..=b'~' if b != b'%' => out.push(char::from(b)),
            b => {
                let _ = write!(out, "%{b:02X}");
            }
        }
    }
    out
}

/// A UUID of version 4.
pub fn request_id() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = String::with_capacity(36);
    for (i, b) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        let digit = |d: u8| char::from(if d < 10 { b'0' + d } else { b'a' + d - 10 });
        out.extend([digit(b >> 4), digit(b & 0x0f)]);
    }
    out
}

/// With milliseconds, in UTC.
pub fn rfc3339(t: SystemTime) -> String {
    let since = t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", since.subsec_millis())
}

/// Days since 1970 as a date of the Gregorian calendar, by eras of 400 years from the first of March.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * of_year + 2) / 153;
    let day = of_year - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        let at = |s| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(s));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(at(1_798_761_599_000), "2026-12-31T23:59:59.000Z");
    }

    #[test]
    fn ids_are_uuids() {
        let id = request_id();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
        assert_ne!(id, request_id());
    }
}
