//! A Gateway becomes a proxy that routes what comes for a Service, and judges it.

use std::collections::HashSet;
use std::net::IpAddr;

use anyhow::{Context as _, ensure};
use testbed::eventually;

use crate::world::{CLIENT, Mesh, SOON};

const SHOP: &str = "10.96.0.90";

impl Mesh {
    /// Gives the addresses of all that was of the mesh meanwhile.
    pub fn a_waypoint_routes_and_judges(&self) -> HashSet<IpAddr> {
        self.server("v1", "shop", "n1");
        self.server("v2", "shop", "n2");
        self.service("shop", SHOP, "app: shop", "istio.io/use-waypoint: waypoint");
        // As the README has it.
        self.apply(
            "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint},
              spec: {gatewayClassName: istio-waypoint,
                     listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}",
        );
        self.kubectl(&[
            "wait",
            "--for=condition=Programmed",
            "gateways.gateway.networking.k8s.io/waypoint",
            "--timeout=120s",
        ]);
        self.kubectl(&["rollout", "status", "deployment/waypoint", "--timeout=60s"]);
        self.running();
        self.condition("service/shop", r"istio\.io/WaypointBound");
        self.routes();
        self.judges();
        let enrolled = self.addresses();
        self.its_log_has_the_client();
        self.goes_with_its_gateway();
        enrolled
    }

    fn condition(&self, what: &str, kind: &str) {
        let path = format!(".status.conditions[?(@.type==\"{}\")].status", kind.replace('\\', ""));
        self.has(what, &path, "True");
    }

    fn routes(&self) {
        self.apply(
            "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: shop},
              spec: {host: shop, subsets: [{name: one, labels: {pod: v1}}, {name: two, labels: {pod: v2}}]}}\n---\n\
             {apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: shop},
              spec: {hosts: [shop], http: [
                {match: [{headers: {x-version: {exact: two}}}], route: [{destination: {host: shop, subset: two}}]},
                {match: [{uri: {prefix: /elsewhere}}], rewrite: {uri: /}, route: [{destination: {host: web}}]},
                {route: [{destination: {host: shop, subset: one}}]}]}}",
        );
        self.condition("virtualservice/shop", "Accepted");
        self.condition("destinationrule/shop", "Accepted");
        // More than one of each: chance would show.
        for _ in 0..4 {
            self.answers("GET / HTTP/1.1", "200", "page of v1\n");
            self.answers(r"GET / HTTP/1.1\r\nx-version: two", "200", "page of v2\n");
            self.answers("GET /elsewhere HTTP/1.1", "200", "page of web-");
        }
        // By name, which the agent resolves.
        let name = "shop.default.svc.cluster.local";
        self.gets_at("client", name, 80, "v1");
    }

    fn judges(&self) {
        self.answers("GET /private HTTP/1.1", "404", "");
        self.apply(
            "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: private},
              spec: {targetRefs: [{group: '', kind: Service, name: shop}], action: DENY,
                     rules: [{to: [{operation: {paths: [/private*]}}]}]}}",
        );
        self.condition("authorizationpolicy/private", "WaypointAccepted");
        self.answers("GET /private HTTP/1.1", "403", "");
        self.answers("GET / HTTP/1.1", "200", "page of v1\n");
    }

    fn answers(&self, request: &str, status: &str, body: &str) {
        let seen = eventually(SOON, || {
            let said = self.ask("client", SHOP, 80, &format!(r"{request}\r\nhost: shop"))?;
            let is = said.split(' ').nth(1) == Some(status) && said.contains(body);
            ensure!(is, "{request}: {said:?}, not {status} with {body:?}");
            Ok(())
        });
        let logs = || self.kubectl(&["logs", "deployment/waypoint", "--tail=40"]);
        seen.with_context(|| format!("{}\n== waypoint\n{}", self.state(), logs())).unwrap();
    }

    fn its_log_has_the_client(&self) {
        let log = self.kubectl(&["logs", "deployment/waypoint"]);
        let of_the_client = |line: &&str| line.contains(CLIENT) && line.contains("/elsewhere");
        assert!(log.lines().any(|line| of_the_client(&line)), "{log}");
    }

    /// Kubernetes takes away what belongs to it, and the Service is reached without.
    fn goes_with_its_gateway(&self) {
        for what in [
            "authorizationpolicy/private",
            "virtualservice/shop",
            "destinationrule/shop",
            "gateways.gateway.networking.k8s.io/waypoint",
        ] {
            self.kubectl(&["delete", what]);
        }
        for what in ["deployment/waypoint", "service/waypoint", "serviceaccount/waypoint"] {
            self.kubectl(&["wait", "--for=delete", what, "--timeout=60s"]);
        }
        self.answers("GET / HTTP/1.1", "200", "page of v");
        self.kubectl(&["delete", "service", "shop"]);
        self.delete("v1");
        self.delete("v2");
    }
}
