//! What a proxy does with compiled routes: tables that are loaded once and asked per request.
//! Decisions only; I/O, clocks and chance are the caller's.

mod change;
mod cors;
mod destination;
mod find;
mod path;
mod policy;
mod request;
mod split;
mod table;
mod tcp;
mod text;

pub use change::{Changed, HeaderChange, Redirect, Rewrite};
pub use cors::{Cors, Preflight};
pub use destination::{
    Destination, DestinationPort, HashKey, HashOf, Locality, Outlier, Subset, TrafficPolicy,
};
pub use path::{BadPath, normalize};
pub use policy::{HttpPolicies, HttpVerdict, LoadMatch};
pub use request::{BadRequest, Normal, RequestView, SNI, Source, normal, without_port};
pub use split::Split;
pub use table::{
    Abort, Action, Bad, DirectResponse, Fault, Forward, HostTable, Mirror, PortTable, Retry, Route,
    Share, Target, Weighted,
};
pub use tcp::{TcpRoute, TcpView};
pub use text::{BadText, Text};
