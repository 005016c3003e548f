//! Manifest files, which anybody with write access to a namespace may fill.

#![no_main]

use istio_api::parse_documents;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (objects, diagnostics) = parse_documents("fuzz.yaml", text);
    for d in &diagnostics {
        assert!(!d.found.is_empty() && !d.remedy.is_empty(), "{d:?} helps nobody");
    }
    let (again, _) = parse_documents("fuzz.yaml", text);
    assert_eq!(objects.len(), again.len());
});
