//! `baggage` and `forwarded`: read from any peer, so neither may panic or say something else when
//! it is passed on.

#![no_main]

use hbone::{Baggage, Forwarded};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let baggage = Baggage::decode(text);
    let encoded = baggage.encode();
    assert!(encoded.bytes().all(|b| b.is_ascii_graphic()), "{encoded:?} fits no header");
    // What decoding makes longer than the limit is not read back; empty values are not written.
    if encoded.len() <= 8192 {
        assert_eq!(Baggage::decode(&encoded).encode(), encoded, "of {text:?}");
    }
    if let Some(forwarded) = Forwarded::decode(text) {
        let encoded = forwarded.encode();
        assert_eq!(Forwarded::decode(&encoded), Some(forwarded), "{encoded:?} of {text:?}");
    }
});
