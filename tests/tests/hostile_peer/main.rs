//! Peers that mean no good, against real agents: hostile clients at port 15008 of an enrolled pod, and hostile servers
//! that an enrolled pod's agent dials. Each loses its stream or its connection, with a reason; the agent's memory and
//! answers are bounded; and a client that minds its own business notices nothing (`den::Den::undisturbed`, after each).
//!
//! What a real agent adds nothing to is in `crates/hbone/tests` (`abuse`, `requests`, `identities`).
//!
//! | HTTP/2 and HBONE | test |
//! |---|---|
//! | Rapid Reset, 10,000 in one connection | `floods::floods_end_their_connection_or_are_answered_one_for_one` |
//! | the same, paced so that each stream is taken up | `floods::streams_that_are_reset_leave_no_work_behind` |
//! | CONTINUATION without END_HEADERS | `floods::floods_…`, `servers::answers_that_break_the_rules_…` |
//! | one byte a DATA frame | `floods::a_byte_a_frame_arrives`; hbone `abuse::floods_of_small_frames_stall_nothing` |
//! | empty DATA, PING, SETTINGS, PRIORITY, WINDOW_UPDATE(0), overflow of 2^31 | `floods::floods_…`, `a_broken_stream_leaves_its_connection_alone` |
//! | answers that the flooder does not read | `floods::a_flooder_that_does_not_read_is_not_read_from`, `a_client_that_reads_nothing_…` |
//! | HPACK bomb, cookie crumbs | `floods::header_bombs_are_not_unpacked`, `servers::answers_…` |
//! | padding longer than its frame | `floods::floods_…`, `servers::answers_…` |
//! | header list over 64 KiB on CONNECT, over 16 KiB in a response | `floods::header_bombs_…`, `servers::answers_…` |
//! | GOAWAY(0) under way, with SETTINGS(0 streams), repeated | `servers::a_server_that_always_goes_away_is_tried_three_times`, `answers_…`; from a client `floods::floods_…` |
//! | stalled TLS, half-open TCP, no preface | `handshakes::clients_that_stall_are_given_up_wherever_they_stall`, `servers::servers_that_keep_a_client_waiting_…` |
//! | a wrong preface, other protocols (HTTP/1, SOCKS5, PROXY) | `handshakes::what_is_no_tls_and_no_http2_is_refused_at_once` |
//! | CONNECT never answered; 1xx and PINGs instead | `servers::servers_that_keep_a_client_waiting_are_given_up` |
//! | `:path`, `:scheme`; no, odd and foreign authorities; ports 0 and 65536; zones; the neighbour's address | `requests::what_is_no_plain_connect_is_refused`, `authorities_that_are_not_the_pods_own_are_refused` |
//! | reserved ports; 15000, 15020, 15021 (an application's, not the agent's) | `requests::authorities_…` |
//! | other methods, extended CONNECT | `requests::what_is_no_plain_connect_is_refused` |
//! | 101 and upgrades (HTTP/1 is only in the agent's own endpoints) | `handshakes::the_agents_own_http_is_not_upgraded` |
//! | Host beside the authority, twice, in upper case, with a dot or a port; NUL and line breaks | `requests::what_is_no_plain_connect_is_refused` |
//! | `baggage` of 10 MB, with bad escapes, duplicates, no UTF-8 | `requests::baggage_…`, `floods::header_bombs_…` |
//!
//! | TLS and identity | test |
//! |---|---|
//! | no URI, two, DNS beside it, NUL, OtherName, upper case, longer path, no domain, escaped slash | `certificates::certificates_that_are_nobodys_are_refused_with_a_reason`, of servers `servers::servers_that_are_somebody_else_…` |
//! | expired, not yet valid, wrong usage, MD5, SHA-1, ed25519, P-521, deep chain, missing intermediate, self-signed | the same |
//! | RSA-1024, SHA-1 by another library, TLS 1.2 | `certificates::weak_keys_and_old_versions_are_refused` |
//! | renewal under live streams | `certificates::renewal_leaves_thousands_of_live_streams_alone` |
//! | what a CA may answer | `hostile_control_plane`: `certificates` |
//! | TLS 1.2 alone, groups without ML-KEM, absurd SNI, other ALPN; renegotiation is not in TLS 1.3 | `certificates::tls_is_1_3_with_h2_and_nothing_before_it`, `handshakes::server_names_that_are_none_…` |
//! | 0-RTT | `certificates::no_ticket_is_given_with_which_early_data_could_be_sent` |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod certificates;
mod den;
mod floods;
mod handshakes;
mod requests;
mod servers;
