//! What the notes and the logs say together.

use crate::{
    access_log::Line,
    attempts::{Attempt, Expected},
    cast::{ACCOUNTS, own_port, principal},
    report::Outcome,
    scene::{Notes, Scene},
    watch::{BOUNDS, Sample},
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// What an end hears late, and what a killed agent did not write any more.
const SLACK: Duration = Duration::from_secs(2);
/// Between what an application sees and the line about it.
const LATE: Duration = Duration::from_secs(15);

pub fn judge(scene: &Scene, samples: &[(usize, Sample)], rest: Vec<String>) -> Outcome {
    let logs: Vec<Vec<Line>> = scene
        .mesh
        .agents()
        .iter()
        .map(|a| a.access_log().iter().filter_map(|l| Line::parse(l)).collect())
        .collect();
    let notes = scene.notes();
    let mut outcome = Outcome {
        attempts: notes.attempts.len(),
        succeeded: notes.attempts.iter().filter(|a| a.error.is_none()).count(),
        guests: scene.guests_seen.load(std::sync::atomic::Ordering::Relaxed),
        policies: notes.reigns.len(),
        logged: logs.iter().map(Vec::len).sum(),
        pieces: notes.wire.pieces,
        packets: notes.wire.packets,
        hbone_bytes: notes.wire.hbone_bytes,
        ..Outcome::default()
    };
    for name in &notes.weather {
        *outcome.weather.entry(name).or_default() += 1;
    }
    outcome.violations.extend(notes.broken.iter().cloned());
    outcome.violations.extend(notes.wire.findings.iter().map(|f| format!("leak checker: {f}")));
    outcome.violations.extend(rest.iter().map(|r| format!("left at the end: {r}")));
    if notes.wire.hbone_bytes == 0 {
        outcome.violations.push("the leak checker has seen no HBONE: it saw nothing".to_owned());
    }
    identities(&notes, &logs, &mut outcome);
    attempts(&notes, &logs, &mut outcome);
    slopes(samples, &mut outcome);
    outcome
}

/// Of every connection that came about: the identities in the log are those of the pods that had
/// the addresses, and a port that admits one identity has admitted no other.
fn identities(notes: &Notes, logs: &[Vec<Line>], outcome: &mut Outcome) {
    let ports: HashMap<u16, String> =
        (0..ACCOUNTS.len()).map(|n| (own_port(n), format!("spiffe://{}", principal(n)))).collect();
    for line in logs.iter().flatten() {
        // What failed never carried anything; its identities are what was hoped for.
        if line.error.is_some() {
            continue;
        }
        outcome.identities += 1;
        for (end, address, identity) in
            [("source", line.from, &line.source), ("destination", line.to, &line.destination)]
        {
            let Some(address) = address else { continue };
            let Some(identity) = identity else {
                outcome.violations.push(format!("no identity of the {end}: {line:?}"));
                continue;
            };
            if !has_had(notes, address.ip(), identity, line) {
                outcome.violations.push(format!("wrong identity of the {end}: {line:?}"));
            }
        }
        let admits = line.to.and_then(|to| ports.get(&to.port()));
        if line.inbound && admits.is_some_and(|a| Some(a) != line.source.as_ref()) {
            outcome.violations.push(format!("an identity on another's port: {line:?}"));
        }
    }
}

fn has_had(notes: &Notes, ip: IpAddr, identity: &str, line: &Line) -> bool {
    notes.tenancies.iter().any(|t| {
        t.addresses.contains(&ip)
            && t.identity == identity
            && t.span.meets(line.opened(), line.at, Duration::ZERO)
    })
}

fn attempts(notes: &Notes, logs: &[Vec<Line>], outcome: &mut Outcome) {
    let mut by_source: Vec<HashMap<IpAddr, Vec<&Line>>> = Vec::new();
    for log in logs {
        let mut index: HashMap<IpAddr, Vec<&Line>> = HashMap::new();
        for line in log.iter().filter(|l| !l.inbound) {
            if let Some(from) = line.from {
                index.entry(from.ip()).or_default().push(line);
            }
        }
        by_source.push(index);
    }
    let mut refused: HashMap<(IpAddr, SocketAddr), Vec<&Line>> = HashMap::new();
    let by_policy = |l: &&Line| {
        l.inbound && l.error.as_ref().is_some_and(|e| e.starts_with("denied by policy"))
    };
    for line in logs.iter().flatten().filter(by_policy) {
        if let (Some(from), Some(to)) = (line.from, line.to) {
            refused.entry((from.ip(), to)).or_default().push(line);
        }
    }
    for a in &notes.attempts {
        let expected = expected(notes, a);
        let Some(error) = &a.error else {
            if expected == Expected::Refused {
                outcome.violations.push(format!("admitted, and should not have been: {a:?}"));
            }
            continue;
        };
        if error.contains("WRONG") {
            outcome.violations.push(format!("{error}: {a:?}"));
        }
        let lines = by_source[a.node - 1].get(&a.from.ip());
        let cause = cause(notes, a, lines.map_or(&[][..], Vec::as_slice));
        let Some(mut cause) = cause else {
            outcome.violations.push(format!("no line says why it was refused: {a:?}"));
            continue;
        };
        let by_policy = cause.contains("policy refused");
        if by_policy {
            // The destination's log has the policy's name.
            let killed = notes.outages.iter().any(|o| o.span.meets(a.begun, a.ended, SLACK));
            match refused.get(&(a.from.ip(), a.to)).and_then(|all| near(a, all)) {
                Some(policy) => cause = policy,
                None if killed => {}
                None => outcome.violations.push(format!("no line names the policy: {a:?}")),
            }
        }
        let changing = notes.changes.iter().any(|c| c.meets(a.begun, a.ended, SLACK));
        if expected == Expected::Allowed && by_policy && !changing {
            outcome.violations.push(format!("refused by policy, which admits it: {a:?}"));
        }
        let kind = match (expected, by_policy) {
            (Expected::Refused, true) => "as it should be",
            (_, true) => "while policies change",
            _ => "",
        };
        *outcome.causes.entry((cause, kind)).or_default() += 1;
    }
}

/// The error of a line of that time.
fn near(a: &Attempt, lines: &[&Line]) -> Option<String> {
    let near = |l: &&&Line| l.at + SLACK >= a.begun && l.at <= a.ended + SLACK;
    lines.iter().filter(near).find_map(|l| l.error.as_deref()).map(named)
}

/// On the volatile port, what the policy of that time says, where it is sure which one that was.
fn expected(notes: &Notes, a: &Attempt) -> Expected {
    if a.expected != Expected::AsPolicySays {
        return a.expected;
    }
    match notes.reigns.iter().find(|r| r.span.holds(a.begun, a.ended)) {
        Some(r) if r.admitted.contains(&a.identity) => Expected::Allowed,
        Some(_) => Expected::Refused,
        None => Expected::Either,
    }
}

/// The name of what went wrong: the log's, or that there was no agent to write one.
fn cause(notes: &Notes, a: &Attempt, lines: &[&Line]) -> Option<String> {
    let same = |line: &&&Line| {
        let from = a.from.port() == 0 || line.from.is_some_and(|f| f.port() == a.from.port());
        from && line.to == Some(a.to)
            && line.at + SLACK >= a.begun
            && line.opened() <= a.ended + SLACK
            && line.at <= a.ended + LATE
    };
    let found: Vec<&&Line> = lines.iter().filter(same).collect();
    if let Some(error) = found.iter().find_map(|l| l.error.as_deref()) {
        return Some(named(error));
    }
    // A process that dies closes its connections as if it had nothing more to say.
    if !found.is_empty() && a.expected == Expected::Either {
        return Some("the server ended".to_owned());
    }
    let away = |node: usize| {
        notes.outages.iter().any(|o| o.node == node && o.span.meets(a.begun, a.ended, SLACK))
    };
    away(a.node).then(|| "no agent on the client's node".to_owned())
}

/// Without what differs from one connection to the next: addresses, numbers, and what comes after
/// a link.
fn named(error: &str) -> String {
    let bare = |w: &str| w.trim_matches(|c: char| "(),:".contains(c)).to_owned();
    let words = error
        .split_whitespace()
        .take_while(|w| !w.starts_with("http"))
        .filter(|w| bare(w).parse::<SocketAddr>().is_err())
        .map(|w| w.trim_end_matches(|c: char| c.is_ascii_digit()));
    words.filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The median of the first third against that of the last.
fn slopes(samples: &[(usize, Sample)], outcome: &mut Outcome) {
    for node in [1, 2] {
        let of: Vec<&Sample> = samples.iter().filter(|(n, _)| *n == node).map(|(_, s)| s).collect();
        let third = of.len() / 3;
        if third == 0 {
            outcome.violations.push(format!("n{node} has not been sampled"));
            continue;
        }
        for (what, part, some) in BOUNDS {
            let first = median(&of[..third], what);
            let last = median(&of[of.len() - third..], what);
            let bound = first * (1.0 + part) + some;
            if last > bound {
                outcome.violations.push(format!("n{node}: {what} grew from {first} to {last}"));
            }
            outcome.slopes.push((format!("n{node}: {what}"), first, last, bound));
        }
    }
}

fn median(samples: &[&Sample], what: &str) -> f64 {
    let mut values: Vec<u64> = samples.iter().filter_map(|s| s.get(what)).copied().collect();
    values.sort_unstable();
    values[values.len() / 2] as f64
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn causes_lose_their_addresses() {
        assert_eq!(named("10.10.2.2:15008: timed out (is it?)"), "timed out (is it?)");
        assert_eq!(named("[fd10:10:2::2]:15008: timed out"), "timed out");
        assert_eq!(named("policy default/volatile17 is not"), "policy default/volatile is not");
    }
}
