//! An upgrade by Helm: one agent takes over from the other on each node, and culvertd is exchanged.

use crate::world::Mesh;
use kubebed::chart;

impl Mesh {
    pub fn an_upgrade_refuses_no_connection(&self) {
        let loads = [
            self.load("client", "across", &self.address("web-2"), 8080),
            self.load("client", "within", &self.address("web-1"), 8080),
        ];
        // As good as another version: the pods are others.
        self.upgrade("agent.podAnnotations.number=two,culvertd.podAnnotations.number=two");
        self.rolled_out();
        for load in &loads {
            self.ends_well(load);
        }
        let annotations = "jsonpath={.items[*].metadata.annotations.number}";
        let system = crate::world::SYSTEM;
        let now = self.kubectl(&["get", "pods", "-n", system, "-o", annotations]);
        assert!(now.split(' ').filter(|n| *n == "two").count() >= 3, "{now}");
    }

    pub fn upgrade(&self, values: &str) {
        let chart = chart::dir();
        let chart = chart.to_str().unwrap();
        self.helm(&["upgrade", "culvert", chart, "--reuse-values", "--set", values]);
    }
}
