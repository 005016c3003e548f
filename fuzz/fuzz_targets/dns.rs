//! DNS messages, from pods: what is answered is well-formed, fits, and belongs to the question.

#![no_main]

use dns::{Answer, Query, TCP_LIMIT, Type, refuse};
use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;

const HEADER: usize = 12;

fuzz_target!(|data: &[u8]| {
    // How many addresses, then the message.
    let Some((addresses, message)) = data.split_first() else { return };
    let Some(query) = Query::parse(message) else { return };
    let name = query.name();
    assert!(!name.is_empty() && name.len() < 255 && !name.ends_with('.'));
    assert_eq!(name, name.to_lowercase());
    for limit in [query.udp_limit(), TCP_LIMIT] {
        assert!((512..=TCP_LIMIT).contains(&limit));
        for canonical in [None, Some("a.canonical.example"), Some(name)] {
            let mut answer = Answer::new(&query, limit);
            if let Some(canonical) = canonical {
                assert!(answer.alias(canonical), "{canonical:?} is a name");
            }
            for n in 0..*addresses {
                answer.address(IpAddr::from([192, 0, 2, n]));
                answer.address(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)]));
            }
            let answer = answer.finish();
            check(&query, message, &answer, limit);
            let records = u16::from_be_bytes([answer[6], answer[7]]);
            let wanted = if matches!(query.kind(), Type::Other(_)) { 0 } else { *addresses };
            let wanted = u16::from(wanted) + u16::from(canonical.is_some());
            let truncated = answer[2] & 2 != 0;
            assert!(if truncated { records < wanted } else { records == wanted });
        }
    }
    check(&query, message, &refuse(&query), 512);
});

fn check(query: &Query<'_>, asked: &[u8], answer: &[u8], limit: usize) {
    assert!(answer.len() <= limit, "{} bytes of {limit}", answer.len());
    assert_eq!(answer[..2], asked[..2], "the id");
    assert_eq!(answer[2] & 0b1111_1000, 0b1000_0000, "an answer, of opcode 0");
    assert_eq!(answer[2] & 1, asked[2] & 1, "recursion desired, or not");
    assert_eq!(answer[4..6], [0, 1], "one question");
    assert_eq!(answer[11], asked[11], "EDNS if it was asked with it");
    // The question, as it was asked: the name's length is its text's and two more.
    let question = HEADER + query.name().len() + 2 + 4;
    assert_eq!(answer[HEADER..question], asked[HEADER..question]);
    assert!(Query::parse(answer).is_none(), "an answer is not a question");
}
