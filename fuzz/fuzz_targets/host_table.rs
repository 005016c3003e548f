//! A host table as a proxy is sent it: loaded or refused, and asked about a request.

#![no_main]

use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use routes::{
    execute::{Action, Destination, HostTable, RequestView, Source},
    proto,
};

fuzz_target!(|parts: (&[u8], &str)| {
    let (bytes, path) = parts;
    if let Ok(d) = proto::Destination::decode(bytes) {
        let _ = Destination::load(&d);
    }
    let _ = culvert_waypoint::fuzzing::listener(bytes, path);
    let _ = culvert_waypoint::fuzzing::telemetry(bytes);
    let load = |bytes: &[u8]| mesh::match_from_bytes(bytes).map_err(|e| e.to_string());
    let body = || bytes.to_vec().into();
    let Ok(table) = HostTable::load(body(), None, &load, 7) else { return };
    // The same again is taken as it was.
    let Ok(table) = HostTable::load(body(), Some(&table), &load, 7) else { unreachable!() };
    let headers = HeaderMap::new();
    let view = RequestView {
        method: &Method::GET,
        path,
        query: "a=b",
        authority: "host",
        scheme: "http",
        headers: &headers,
        sni: None,
        source: Source { address: None, namespace: "ns", labels: &[] },
    };
    let Some((route, matched)) = table.port(80).and_then(|p| p.route(&view)) else { return };
    if let Some(rewrite) = &route.rewrite {
        let _ = rewrite.path(path, matched);
    }
    match &route.action {
        Action::Forward(f) => {
            for _ in 0..3 {
                let _ = f.pick();
            }
        }
        Action::Redirect(r) => {
            let _ = r.location("http", "host", 80, path, "a=b", matched);
        }
        Action::Direct(_) => {}
    }
});
