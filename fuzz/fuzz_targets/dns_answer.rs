//! What name servers answer: whatever it is, addresses in order or none, and soon.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for name in ["a.test", "", "*.test", "b"] {
        if let Some(addresses) = resolver::addresses_in(data, name) {
            assert!(addresses.is_sorted(), "{addresses:?}");
            // An address takes sixteen bytes of a message at least, with what is around it.
            assert!(addresses.len() <= data.len() / 15, "{}", addresses.len());
        }
    }
});
