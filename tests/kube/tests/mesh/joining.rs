//! Pods that run join by their namespace's label, and what starts later is of the mesh from its start.

use crate::world::{CLIENT, Mesh, WEB};

impl Mesh {
    pub fn join(&self) {
        self.kubectl(&["label", "namespace", "default", "istio.io/dataplane-mode=ambient"]);
        for pod in ["web-1", "web-2", "client"] {
            self.becomes(pod, "enabled");
        }
    }

    pub fn traffic_goes_by_policy(&self) {
        for _ in 0..5 {
            self.gets("client", "web-2");
            self.gets("client", "web-1");
        }
        self.apply(
            "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nobody},
              spec: {selector: {matchLabels: {app: web}}, action: DENY,
                     rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]}}",
        );
        self.is_refused("client", &self.address("web-2"), 8080);
        self.kubectl(&["delete", "authorizationpolicy", "nobody"]);
        self.gets("client", "web-2");
    }

    /// The plugin in the node's CNI configuration holds it until it is captured.
    pub fn a_pod_that_starts_is_captured_from_the_start(&self) {
        // Its first act is a connection, and its first bytes are the token.
        let (web, token) = (self.address("web-2"), self.token());
        let script = format!(
            "exec 3<>/dev/tcp/{web}/8080 && printf \"GET /{token} HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3; exec sleep 10000"
        );
        self.pod("early", "client", "n1", &script, "");
        self.ready("early");
        self.becomes("early", "enabled");
        self.gets("early", "web-2");
        self.delete("early");
    }

    /// The kubelet's, which are plaintext from the node.
    pub fn probes_work_under_strict(&self) {
        self.apply(
            "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict},
              spec: {mtls: {mode: STRICT}}}",
        );
        self.server("late", "web", "n2");
        self.ready("late");
        self.becomes("late", "enabled");
        self.gets("client", "late");
        self.delete("late");
        self.kubectl(&["delete", "peerauthentication", "strict"]);
    }

    pub fn the_log_has_both_identities(&self) {
        self.logs(&[CLIENT, WEB]);
    }
}
