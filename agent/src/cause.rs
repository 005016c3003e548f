//! What is likely to be behind an error, in words for whoever reads the log.

/// An error of a handshake, with what usually is behind such a one.
pub fn with_likely_cause(said: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|w| said.contains(w));
    let cause = if has(&["NotValidYet", "not valid yet"]) {
        " (the other certificate begins later than now: do the two nodes' clocks agree?)"
    } else if has(&["Expired", "expired"]) {
        " (a certificate has run out: does the other node's agent reach the control plane, and do \
         the two nodes' clocks agree?)"
    } else if has(&["UnknownIssuer", "UnknownCA", "UnknownCa"]) {
        " (the two ends do not have the same roots: was the mesh's root replaced?)"
    } else {
        ""
    };
    format!("{said}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_either_end_name_what_is_behind_them() {
        for (said, cause) in [
            ("invalid peer certificate: certificate not valid yet", "clocks agree"),
            ("invalid peer certificate: Expired", "has run out"),
            ("received fatal alert: CertificateExpired", "has run out"),
            ("invalid peer certificate: UnknownIssuer", "same roots"),
            ("received fatal alert: UnknownCA", "same roots"),
        ] {
            let all = with_likely_cause(said);
            assert!(all.starts_with(said) && all.contains(cause), "{all}");
        }
        assert_eq!(with_likely_cause("connection reset"), "connection reset");
    }
}
