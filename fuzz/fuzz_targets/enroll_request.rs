//! What clients of the enrol socket say.

#![no_main]

use agent_api::enroll::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match parse(data) {
        Ok(request) => {
            let again = serde_json::to_vec(&request).expect("a request can be written");
            assert_eq!(parse(&again), Ok(request));
        }
        Err(why) => assert!(why.starts_with("the request is not understood: ")),
    }
});
