//! Whether an attempt that went wrong is made again, and when: Envoy's conditions. Pure.

use http::HeaderMap;
use routes::execute::Retry;
use std::time::Duration;

/// Longest pause before a retry, in base intervals (Envoy's default).
const LONGEST_BACKOFF: u32 = 10;

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

/// The attempts at one request, one after the other.
pub struct Attempts<'a> {
    retry: Option<&'a Retry>,
    ended: u32,
}

impl<'a> Attempts<'a> {
    pub fn new(retry: Option<&'a Retry>) -> Self {
        Self { retry, ended: 0 }
    }

    /// The number of the one under way, from 1.
    pub fn number(&self) -> u32 {
        self.ended.saturating_add(1)
    }

    /// The one under way has ended so. The pause before the next, or none: what there is is the answer.
    /// `room` is asked last, and only where one is wanted, as is `draw`, of 0 to 1: the jitter, which is
    /// full, as Envoy's, over pauses that double.
    pub fn next(
        &mut self,
        tried: Tried<'_>,
        room: impl FnOnce() -> bool,
        draw: impl FnOnce() -> f64,
    ) -> Option<Duration> {
        let retry = self.retry?;
        if self.ended >= retry.attempts || !wanted(retry, tried) || !room() {
            return None;
        }
        let grown = 2_u32.saturating_pow(self.ended.min(16)).min(LONGEST_BACKOFF);
        self.ended += 1;
        Some(retry.backoff.saturating_mul(grown).mul_f64(draw().clamp(0.0, 1.0)))
    }
}

fn wanted(retry: &Retry, tried: Tried<'_>) -> bool {
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

    /// Requests at once, whose attempts take their time and end in whatever way, under one budget and a
    /// clock that the test turns.
    #[test]
    fn attempts_keep_to_their_number_their_pauses_their_budget_and_their_time() {
        use sim::simulate;
        use std::collections::BTreeMap;
        const REQUESTS: usize = 30;
        const OFTEN: [&str; 6] =
            ["5xx", "connect-failure", "refused-stream", "reset", "gateway-error", "retriable-4xx"];
        simulate(|run| {
            let on: Vec<&str> = run.some(OFTEN.to_vec());
            let mut asked = retry(&on, &[]);
            asked.attempts = run.pick(&[0, 1, 2, 5]);
            asked.backoff = Duration::from_millis(25);
            let (budget, limit) = (run.pick(&[0, 1, 3, 100]), run.pick(&[50_u64, 500, 100_000]));
            run.note(format!("{asked:?}, {budget} retries at a time, {limit} ms in all"));
            let none = HeaderMap::new();
            let outcomes = [
                Tried::NotConnected,
                Tried::Refused,
                Tried::Reset,
                Tried::TimedOut,
                Tried::Answered(200, &none),
                Tried::Answered(409, &none),
                Tried::Answered(500, &none),
                Tried::Answered(503, &none),
            ];
            // By the millisecond at which an attempt ends.
            let mut clock: BTreeMap<(u64, usize), Tried<'_>> = BTreeMap::new();
            let mut requests: Vec<(Attempts<'_>, bool)> =
                (0..REQUESTS).map(|_| (Attempts::new(Some(&asked)), false)).collect();
            let mut under_way = 0;
            for n in 0..REQUESTS {
                clock.insert((run.pick(&[1, 5, 30, 200]), n), run.pick(&outcomes));
            }
            while let Some(((now, n), tried)) = clock.pop_first() {
                let (attempts, is_retry) = requests.get_mut(n).unwrap();
                let (number, was_retry) = (attempts.number(), std::mem::take(is_retry));
                // One retry ends where the next begins.
                under_way -= u32::from(was_retry);
                if now > limit {
                    run.note(format!("{now}: {n} has had its time"));
                    continue;
                }
                let room = under_way < budget;
                let draw = run.pick(&[0.0, 0.5, 1.0]);
                let mut was_asked = false;
                let next = attempts.next(
                    tried,
                    || {
                        was_asked = true;
                        room
                    },
                    || draw,
                );
                run.note(format!("{now}: {n} has {tried:?} of its attempt {number}: {next:?}"));
                let may = wanted(&asked, tried) && number <= asked.attempts;
                assert_eq!((was_asked, next.is_some()), (may, may && room));
                let Some(pause) = next else { continue };
                let longest = 25 * 2_u64.pow(number - 1).min(10);
                assert_eq!(pause, Duration::from_millis(longest).mul_f64(draw));
                assert_eq!(attempts.number(), number + 1);
                *is_retry = true;
                under_way += 1;
                assert!(under_way <= budget);
                let ends = now + u64::try_from(pause.as_millis()).unwrap();
                clock.insert((ends + run.pick(&[1, 5, 30, 200]), n), run.pick(&outcomes));
            }
            // Every place has been given back.
            assert_eq!(under_way, 0);
        });
    }
}
