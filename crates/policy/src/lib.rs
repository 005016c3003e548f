//! Authorization at L4: evaluate a connection against policies, and say why.
//!
//! The meaning is that of `istio.security.Authorization` (see [`Policy`]), with one difference: a
//! policy that a workload names and that is not known denies, where Istio's ztunnel goes on
//! without it. Evaluation is pure; nothing here knows where policies come from.

mod evaluate;
mod explain;
mod model;
mod set;

pub use evaluate::{Applicable, Decision, Verdict, evaluate};
pub use explain::{Applied, Explanation, Near, explain, in_words, what_would_change};
pub use model::{
    Action, Clause, Match, Peer, Policy, PolicyName, Request, Rule, Scope, ServiceAccountMatch,
    StringMatch,
};
pub use set::PolicySet;
