//! An ingress gateway: the same program in a pod that Istio's Gateways select.

use crate::{Mesh, Spec, Waypoint};

impl Mesh {
    /// A gateway's pod with the label `istio: ingressgateway`; it listens where Gateways say.
    pub fn gateway(&self, node: usize, name: &str) -> Waypoint {
        self.gateway_with(node, name, "ingressgateway", &[])
    }

    /// The same with another value of that label, and more arguments for the program.
    pub fn gateway_with(&self, node: usize, name: &str, label: &str, args: &[&str]) -> Waypoint {
        let token = format!("token-of-gateway-{name}-in-{}", self.bed.id());
        self.add_token(&format!("default/{name}"), &token);
        let spec = Spec::named(name)
            .label("gateway.networking.k8s.io/gateway-name", name)
            .label("istio", label)
            .label("istio.io/dataplane-mode", "none");
        let pod = self.pod(node, spec);
        let service = self.service_of(name, "http", 80, 8080, &[&pod]);
        let args = args.iter().map(|&a| a.to_owned()).collect();
        let mut gateway = Waypoint { pod, service, args, process: None };
        gateway.start(self, &token);
        gateway
    }
}
