//! Names: what an enrolled pod's resolver gets to hear, and from whom.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use culvert_tests::Mesh;
use std::{net::IpAddr, time::Duration};
use testbed::eventually;

const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { namespace: default, name: outside }
spec:
  hosts: [api.outside.example]
  ports: [{ number: 80, name: http, protocol: HTTP }]
  resolution: STATIC
  endpoints: [{ address: 192.0.2.7 }]
";

#[test]
fn a_host_of_a_service_entry_has_addresses_of_its_own() {
    let mesh = Mesh::new("dns-entry");
    let a = mesh.enrolled_pod(1, "a");
    mesh.apply("entry.yaml", ENTRY);
    let puppet = a.puppet().unwrap();
    let found =
        eventually(Duration::from_secs(10), || Ok(puppet.resolve("api.outside.example")?)).unwrap();
    let v4: Vec<IpAddr> = found.iter().filter(|ip| ip.is_ipv4()).copied().collect();
    assert!(matches!(v4[..], [IpAddr::V4(ip)] if ip.octets()[..2] == [240, 240]), "{found:?}");
    let v6: Vec<IpAddr> = found.iter().filter(|ip| ip.is_ipv6()).copied().collect();
    assert!(matches!(v6[..], [IpAddr::V6(ip)] if ip.segments()[..2] == [0x2001, 2]), "{found:?}");
}
