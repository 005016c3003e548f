//! A request's path and host: one form, which is its own form, or a refusal.

#![no_main]

use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use routes::execute::{normal, normalize};

fuzz_target!(|parts: (&str, &str)| {
    let (path, host) = parts;
    if let Ok(once) = normalize(path) {
        assert!(once == "*" || once.starts_with('/'), "{path:?}");
        assert!(!once.contains("//") && !once.contains('\\') && !once.contains('#'), "{once:?}");
        assert!(once.split('/').all(|s| s != "." && s != ".."), "{once:?}");
        assert_eq!(normalize(&once).as_deref(), Ok(&*once), "{path:?}");
    }
    let (Ok(uri), Ok(value)) = (path.parse(), host.parse()) else { return };
    let mut headers = HeaderMap::new();
    headers.insert("host", value);
    if let Ok(form) = normal(&uri, &headers) {
        assert!(!form.authority.bytes().any(|b| b.is_ascii_uppercase()), "{form:?}");
        headers.insert("host", form.authority.parse().expect("a host is a header's value"));
        let again = normal(&form.path.parse().expect("a normal path is a URI"), &headers);
        assert_eq!(again, Ok(form));
    }
});
