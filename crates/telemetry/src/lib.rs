//! One [`FlowRecord`] per connection, and what is made of it: L4 metrics and the access log, in
//! Istio's names and labels.

mod access_log;
mod format;
mod grpc;
pub mod log;
mod metrics;
pub mod otlp;
mod record;
mod request;
mod shares;

pub use access_log::access_log_line;
pub use format::{Format, Logged};
pub use grpc::Messages;
pub use metrics::{Metrics, Series, SeriesLimits};
pub use record::{
    CloseReason, Direction, Endpoint, FlowRecord, Reporter, ResponseFlags, ServiceName, Transport,
};
pub use request::{GRPC_UNKNOWN, RequestMetrics, RequestRecord};
pub use shares::Whose;
