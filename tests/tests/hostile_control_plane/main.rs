//! A control plane that is broken or means harm, against a real agent with enrolled pods. Whatever it says: the last
//! good state stays, nothing widens, what is refused is named, and pods that have nothing to do with it notice
//! nothing.
//!
//! | what it does | test |
//! |---|---|
//! | duplicate resource | `bad_resources::duplicates_in_one_response_leave_the_last_good_one` |
//! | unknown type URL, wildcard and on-demand answers, removal of an absent host | `streams::what_nobody_asked_for_changes_nothing` |
//! | unknown `action`, `scope`, `tunnel_protocol`, `network_mode`; unknown fields and extensions | `bad_resources::a_bad_update_of_a_policy_…`, `…_of_a_workload_…`, `a_policy_that_was_never_understood_…` |
//! | unknown `status` | `bad_resources::a_status_of_the_future_is_not_health` |
//! | an ALLOW with a field of a later version | `bad_resources::an_allow_with_a_field_of_the_future_…` |
//! | a refused service or workload, never known before | `bad_resources::what_was_refused_is_not_reached_in_plaintext` |
//! | oversize: 50 MB, more than 200 MiB | `volume::fifty_megabytes_of_workloads_…`, `…_of_nonsense_…`, `a_message_past_the_limit_…` |
//! | truncated protobuf | `streams::messages_that_cannot_be_decoded_…`, and of one resource in `bad_resources` |
//! | deep nesting | `bad_resources::deep_nesting_is_rejected_and_the_agent_lives` |
//! | nonce replay | `streams::a_nonce_that_comes_again_…` |
//! | NACK storm | `volume::a_storm_of_bad_responses_gets_one_answer_each` |
//! | Address before Authorization and reverse; removal of a policy in use | `policies::addresses_may_come_before_policies_…`, `nothing_passes_before_both_types_have_come`, `what_is_taken_back_…` |
//! | a workload's record taken back | `policies::a_workload_that_is_taken_back_is_reached_by_nobody` |
//! | reconnect with (stale) versions, partial delta | `streams::a_stream_that_breaks_is_taken_up_with_what_is_held`, `the_last_good_state_stays_…` |
//! | stalls, breaks off at once, errors | `streams::a_control_plane_that_stalls_…`, `streams_that_break_at_once_…`, `errors_of_every_kind_…` |
//! | trust domains; `notNamespaces` from a plaintext peer | `policies::a_trust_domain_is_part_of_who_somebody_is`, `a_plaintext_peer_has_no_name_to_be_matched` |
//! | empty rules, match-all, empty match | `policies::policies_without_rules_and_rules_without_conditions` |
//! | CIDR /0, /33, mapped IPv4; port 0 | `policies::address_blocks_at_their_limits`, `bad_resources::…` |
//! | one address, two workloads | `streams::an_address_that_two_claim_…` |
//! | CA: wrong SAN, another pod's certificate or key, empty chain, no PEM, a chain that does not verify, expired, not yet valid, unreachable, slow-loris; until the certificate ends | `certificates::a_renewal_that_fails_…`, `a_first_certificate_that_cannot_be_used_…` |
//! | gone until certificates end; clocks that jump; a token that is no longer good; another root | `death::without_a_control_plane_…`, `clock`, `lifecycle::a_token_that_is_no_longer_good_…`, `roots` |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod bad_resources;
mod certificates;
mod policies;
mod scene;
mod streams;
mod volume;
