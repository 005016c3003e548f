//! Virtual addresses for pods that are not enrolled: DNAT in each node, as kube-proxy would do it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub v4: Ipv4Addr,
    pub v6: Option<Ipv6Addr>,
    pub port: u16,
}

/// All services of a bed, by address and port.
#[derive(Default)]
pub(crate) struct Services(BTreeMap<(Ipv4Addr, u16), (Option<Ipv6Addr>, Vec<Backend>)>);

impl Services {
    pub fn set(
        &mut self,
        vip4: Ipv4Addr,
        vip6: Option<Ipv6Addr>,
        port: u16,
        backends: Vec<Backend>,
    ) {
        if backends.is_empty() {
            self.0.remove(&(vip4, port));
        } else {
            self.0.insert((vip4, port), (vip6, backends));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole table of one node: it replaces what was there, in one transaction.
    pub fn ruleset(&self, node: u8) -> String {
        let mut dnat = String::new();
        for (&(vip4, port), (vip6, backends)) in &self.0 {
            let v4: Vec<String> =
                backends.iter().map(|b| format!("{} . {}", b.v4, b.port)).collect();
            rules(&mut dnat, "ip", &vip4.to_string(), port, &v4);
            let v6: Vec<String> =
                backends.iter().filter_map(|b| Some(format!("{} . {}", b.v6?, b.port))).collect();
            if let (Some(vip6), false) = (vip6, v6.is_empty()) {
                rules(&mut dnat, "ip6", &vip6.to_string(), port, &v6);
            }
        }
        // Replies between two pods of one bridge do not visit the node's IP stack, so nothing would undo the DNAT:
        // the node puts itself between them.
        format!(
            "table inet culvert-bed\n\
             delete table inet culvert-bed\n\
             table inet culvert-bed {{\n\
             chain services {{\n{dnat}}}\n\
             chain prerouting {{\n type nat hook prerouting priority -100;\n jump services\n}}\n\
             chain output {{\n type nat hook output priority -100;\n jump services\n}}\n\
             chain postrouting {{\n type nat hook postrouting priority 100;\n\
             ct status dnat ip saddr 10.10.{node}.0/24 ip daddr 10.10.{node}.0/24 masquerade\n\
             ct status dnat ip6 saddr fd10:10:{node:x}::/64 ip6 daddr fd10:10:{node:x}::/64 masquerade\n\
             }}\n}}\n"
        )
    }
}

fn rules(out: &mut String, family: &str, vip: &str, port: u16, backends: &[String]) {
    let map: Vec<String> = backends.iter().enumerate().map(|(i, b)| format!("{i} : {b}")).collect();
    for protocol in ["tcp", "udp"] {
        let _ = writeln!(
            out,
            "{family} daddr {vip} {protocol} dport {port} \
             dnat {family} to numgen random mod {} map {{ {} }}",
            backends.len(),
            map.join(", ")
        );
    }
}
