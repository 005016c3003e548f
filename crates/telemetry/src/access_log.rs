//! The access log: one line per connection, at its end, in ztunnel's field names.

use crate::{CloseReason, Direction, FlowRecord};
use std::fmt::Write as _;

/// `key=value` pairs; a field that is not known is left out, strings are quoted.
pub fn access_log_line(r: &FlowRecord) -> String {
    let mut line = String::with_capacity(512);
    let mut field = |key: &str, value: &str| {
        if !value.is_empty() {
            let _ = write!(line, "{key}={value:?} ");
        }
    };
    if let Some(a) = r.source.address {
        field("src.addr", &a.to_string());
    }
    field("src.workload", &r.source.workload);
    field("src.namespace", &r.source.namespace);
    field("src.identity", r.source.identity.as_deref().unwrap_or_default());
    field("src.cluster", &r.source.cluster);
    if let Some(a) = r.destination.address {
        field("dst.addr", &a.to_string());
    }
    if let Some(a) = r.hbone_address {
        field("dst.hbone_addr", &a.to_string());
    }
    if let Some(s) = &r.service {
        field("dst.service", &s.hostname);
    }
    field("dst.workload", &r.destination.workload);
    field("dst.namespace", &r.destination.namespace);
    field("dst.identity", r.destination.identity.as_deref().unwrap_or_default());
    field("dst.cluster", &r.destination.cluster);
    let direction = match r.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    };
    let _ = write!(
        line,
        "direction={direction:?} bytes_sent={} bytes_recv={} duration=\"{}ms\"",
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
    line
}
