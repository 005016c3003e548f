//! Gateway API's objects, message by message; `tests/fields.rs` holds them to its own field lists.

pub mod gateway;
pub mod gateway_class;
pub mod grpc_route;
pub mod http_route;
pub(crate) mod validate;
