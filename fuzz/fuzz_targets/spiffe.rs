//! SPIFFE ids, which come out of peers' certificates.

#![no_main]

use identity::SpiffeId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.to_string(), text, "an id has one spelling");
    assert_eq!(id.to_string().parse().as_ref(), Ok(&id));
    let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
    assert_eq!(again, Ok(id), "the parts of {text:?}");
});
