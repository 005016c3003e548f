//! Whether an attempt that went wrong is made again: Envoy's conditions. Pure.

use http::HeaderMap;
use routes::execute::Retry;

/// How an attempt ended, before any of its answer has gone to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tried<'a> {
    /// No connection: nothing of the request has reached anybody.
    NotConnected,
    /// The endpoint said that it has not looked at it.
    Refused,
    /// It broke off without an answer.
    Reset,
    TimedOut,
    Answered(u16, &'a HeaderMap),
}

pub fn wanted(retry: &Retry, tried: Tried<'_>) -> bool {
    let on = |condition| retry.is_on(condition);
    match tried {
        Tried::NotConnected => {
            on("connect-failure") || on("5xx") || on("reset") || on("reset-before-request")
        }
        Tried::Refused => {
            on("refused-stream") || on("5xx") || on("reset") || on("reset-before-request")
        }
        Tried::Reset => on("reset") || on("5xx"),
        // Of one attempt; time for all of them that has run out is the end.
        Tried::TimedOut => on("5xx") || on("gateway-error") || on("reset"),
        Tried::Answered(status, headers) => {
            (500..600).contains(&status) && on("5xx")
                || matches!(status, 502..=504) && on("gateway-error")
                || status == 409 && on("retriable-4xx")
                || retry.statuses.contains(&status)
                || grpc_wanted(retry, headers)
        }
    }
}

/// gRPC's statuses, where they come with the head of the answer.
fn grpc_wanted(retry: &Retry, headers: &HeaderMap) -> bool {
    let status = headers.get("grpc-status").and_then(|v| v.to_str().ok());
    let condition = match status {
        Some("1") => "cancelled",
        Some("4") => "deadline-exceeded",
        Some("8") => "resource-exhausted",
        Some("13") => "internal",
        Some("14") => "unavailable",
        _ => return false,
    };
    retry.is_on(condition)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn retry(on: &[&str], statuses: &[u16]) -> Retry {
        Retry {
            attempts: 1,
            per_try_timeout: None,
            on: on.iter().map(|s| (*s).to_owned()).collect(),
            statuses: statuses.to_vec(),
            backoff: Duration::ZERO,
            same_host_again: false,
        }
    }

    #[test]
    fn only_what_is_asked_for_is_tried_again() {
        let none = HeaderMap::new();
        let of = |on: &[&str], tried| wanted(&retry(on, &[]), tried);
        assert!(of(&["connect-failure"], Tried::NotConnected));
        assert!(!of(&["connect-failure"], Tried::Reset));
        assert!(of(&["5xx"], Tried::Answered(500, &none)));
        assert!(!of(&["5xx"], Tried::Answered(404, &none)));
        assert!(!of(&["gateway-error"], Tried::Answered(500, &none)));
        assert!(of(&["gateway-error"], Tried::Answered(503, &none)));
        assert!(of(&["retriable-4xx"], Tried::Answered(409, &none)));
        assert!(!of(&[], Tried::TimedOut));
        assert!(wanted(&retry(&[], &[418]), Tried::Answered(418, &none)));
        let unavailable: HeaderMap =
            [("grpc-status".parse().unwrap(), "14".parse().unwrap())].into_iter().collect();
        assert!(of(&["unavailable"], Tried::Answered(200, &unavailable)));
        assert!(!of(&["cancelled"], Tried::Answered(200, &unavailable)));
    }
}
