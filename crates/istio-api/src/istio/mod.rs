//! Istio's objects, message by message. `tests/fields.rs` holds them to Istio's own field lists.

pub mod destination_rule;
pub mod gateway;
pub mod mesh_config;
pub mod telemetry;
pub mod virtual_service;
