//! The access log: one line per connection, at its end, in ztunnel's field names.

use crate::{CloseReason, Direction, FlowRecord};
use std::{fmt::Write as _, net::SocketAddr};

/// `key=value` pairs; a field that is not known is left out, strings are quoted.
pub fn access_log_line(r: &FlowRecord) -> String {
    let mut line = String::new();
    write_access_log(&mut line, r);
    line
}

/// The same at the end of `line`.
pub fn write_access_log(line: &mut String, r: &FlowRecord) {
    address(line, "src.addr", r.source.address);
    field(line, "src.workload", &r.source.workload);
    field(line, "src.namespace", &r.source.namespace);
    field(line, "src.identity", r.source.identity.as_deref().unwrap_or_default());
    field(line, "src.cluster", &r.source.cluster);
    address(line, "dst.addr", r.destination.address);
    address(line, "dst.hbone_addr", r.hbone_address);
    if let Some(s) = &r.service {
        field(line, "dst.service", &s.hostname);
    }
    field(line, "dst.workload", &r.destination.workload);
    field(line, "dst.namespace", &r.destination.namespace);
    field(line, "dst.identity", r.destination.identity.as_deref().unwrap_or_default());
    field(line, "dst.cluster", &r.destination.cluster);
    let direction = match r.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    };
    let _ = write!(
        line,
        "direction=\"{direction}\" bytes_sent={} bytes_recv={} duration=\"{}ms\"",
        r.sent, r.received, r.duration_ms
    );
    let error = match &r.close {
        Some(CloseReason::Failed(why) | CloseReason::Reset(why)) => Some(why.clone()),
        Some(CloseReason::Denied(why)) => Some(format!("denied by policy: {why}")),
        Some(CloseReason::Stopped) => Some("the pod or its agent went away".to_owned()),
        Some(CloseReason::Finished) | None => None,
    };
    if let Some(error) = error {
        let _ = write!(line, " error={error:?}");
    }
}

fn address(line: &mut String, key: &str, value: Option<SocketAddr>) {
    if let Some(value) = value {
        let _ = write!(line, "{key}=\"{value}\" ");
    }
}

fn field(line: &mut String, key: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    line.push_str(key);
    // Nearly every name: character by character is five times as much work.
    if value.bytes().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\')) {
        line.push_str("=\"");
        line.push_str(value);
        line.push_str("\" ");
    } else {
        let _ = write!(line, "={value:?} ");
    }
}
