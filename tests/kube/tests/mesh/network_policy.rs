//! What an engine of network policies sees of pods of the mesh. The cluster has none: its rules are put where such an
//! engine puts them.

use crate::world::Mesh;

impl Mesh {
    /// By the pod's address, and by the port of HBONE beside the application's own.
    pub fn a_network_policy_holds(&self) {
        self.client("beside", "n2");
        self.client("unwelcome", "n2");
        self.ready("beside");
        self.ready("unwelcome");
        for pod in ["beside", "unwelcome"] {
            self.becomes(pod, "enabled");
        }
        let web = self.address("web-2");
        let client = self.address("client");
        // The application's port alone is not what comes from another node.
        self.admit(&[&client], "8080");
        self.is_refused("client", &web, 8080);
        self.admit(&[&client, &self.address("beside")], "{8080, 15008}");
        self.gets("client", "web-2");
        // Past the agent, after the first.
        for _ in 0..5 {
            self.gets("beside", "web-2");
        }
        self.is_refused("unwelcome", &web, 8080);
        self.is_refused("web-1", &web, 8080);
        self.on_the_node("delete table inet engine");
        self.gets("unwelcome", "web-2");
        self.delete("beside");
        self.delete("unwelcome");
    }

    /// Nobody else is let through to `web-2` from here on. Said at once, where an engine would say nothing.
    fn admit(&self, from: &[&str], ports: &str) {
        let (web, from) = (self.address("web-2"), from.join(", "));
        self.on_the_node(&format!(
            "table inet engine
             delete table inet engine
             table inet engine {{
               chain forward {{
                 type filter hook forward priority filter;
                 ip saddr {{{from}}} ip daddr {web} tcp dport {ports} accept
                 ip daddr {web} meta l4proto tcp reject with tcp reset
               }}
             }}"
        ));
    }

    fn on_the_node(&self, rules: &str) {
        self.cluster.nodes()[1].shell(&format!("nft '{rules}'")).unwrap();
    }
}
