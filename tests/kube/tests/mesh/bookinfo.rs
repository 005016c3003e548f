//! Istio's sample: its four services start in the mesh, and a waypoint routes reviews by user.

use std::{collections::HashSet, net::IpAddr};

use anyhow::{Context as _, ensure};
use oci_image::Image;
use testbed::{binary, eventually};

use crate::world::{Mesh, SOON, account};

const IMAGE: &str = "localhost/bookinfo:bed";
const PROGRAM: &str = "/usr/local/bin/bookinfo";
const PAGE: &str = "http://productpage:9080/productpage";

/// Service, version, node.
const PODS: [(&str, &str, &str); 6] = [
    ("productpage", "v1", "n1"),
    ("details", "v1", "n2"),
    ("ratings", "v1", "n1"),
    ("reviews", "v1", "n1"),
    ("reviews", "v2", "n2"),
    ("reviews", "v3", "n2"),
];

impl Mesh {
    /// The answer is the addresses of pods of the mesh meanwhile.
    pub fn bookinfo_is_served_and_routed_by_user(&self) -> HashSet<IpAddr> {
        self.bookinfo_starts();
        // All versions, in turn.
        for version in ["v1", "v2", "v3"] {
            self.shows(&[], version);
        }
        for (from, to) in
            [("productpage", "details"), ("productpage", "reviews"), ("reviews", "ratings")]
        {
            let identity = |end: &str, of: &str| {
                format!("{end}.identity=\"spiffe://cluster.local/ns/default/sa/bookinfo-{of}\"")
            };
            self.logs(&[&identity("src", from), &identity("dst", to)]);
        }
        self.reviews_are_routed();
        for _ in 0..6 {
            self.shows_at_once(&[], "v1");
            self.shows_at_once(&["--user", "jason"], "v2");
        }
        let enrolled = self.addresses();
        self.bookinfo_ends();
        enrolled
    }

    fn bookinfo_starts(&self) {
        let image = Image::new(IMAGE).program_in("/usr/local/bin", &binary("bookinfo").unwrap());
        self.cluster.load(&image.unwrap()).unwrap();
        let mut all = vec![account("bookinfo-user")];
        for service in ["productpage", "details", "reviews", "ratings"] {
            all.push(account(&format!("bookinfo-{service}")));
            all.push(format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: {service}}}, spec: {{
                   selector: {{app: {service}}}, ports: [{{name: http, port: 9080}}]}}}}"
            ));
        }
        all.push(pod("user", "user", "", "n1", "[shell], stdin: true"));
        for (service, version, node) in PODS {
            let proof = self.token();
            let args =
                format!("[serve, --service, {service}, --version, {version}, --proof, '{proof}']");
            all.push(pod(&format!("{service}-{version}"), service, version, node, &args));
        }
        self.apply(&all.join("\n---\n"));
        self.running();
    }

    fn reviews_are_routed(&self) {
        self.apply(
            "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: bookinfo},
              spec: {gatewayClassName: istio-waypoint,
                     listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}\n---\n\
             {apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: reviews},
              spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}}\n---\n\
             {apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: reviews},
              spec: {hosts: [reviews], http: [
                {match: [{headers: {end-user: {exact: jason}}}], route: [{destination: {host: reviews, subset: v2}}]},
                {route: [{destination: {host: reviews, subset: v1}}]}]}}",
        );
        self.kubectl(&["label", "service", "reviews", "istio.io/use-waypoint=bookinfo"]);
        self.kubectl(&[
            "wait",
            "--for=condition=Programmed",
            "gateways.gateway.networking.k8s.io/bookinfo",
            "--timeout=120s",
        ]);
        self.has(
            "service/reviews",
            ".status.conditions[?(@.type==\"istio.io/WaypointBound\")].status",
            "True",
        );
        // From here on it stays so.
        self.shows(&["--user", "jason"], "v2");
        let settled = eventually(SOON, || {
            for _ in 0..5 {
                self.bookinfo_page(&[], "v1")?;
            }
            Ok(())
        });
        settled.with_context(|| self.state()).unwrap();
    }

    /// Sooner or later, as any version may answer.
    fn shows(&self, who: &[&str], version: &str) {
        let seen = eventually(SOON, || self.bookinfo_page(who, version));
        seen.with_context(|| self.state()).unwrap();
    }

    fn shows_at_once(&self, who: &[&str], version: &str) {
        self.bookinfo_page(who, version).with_context(|| self.state()).unwrap();
    }

    /// The whole page, with reviews by this version.
    fn bookinfo_page(&self, who: &[&str], version: &str) -> anyhow::Result<()> {
        let get = [&["exec", "user", "--", PROGRAM, "get", PAGE], who].concat();
        let said = self.cluster.api().kubectl(&get)?;
        let whole = said.contains("\"author\"") && said.contains("\"Reviewer2\"");
        ensure!(whole && !said.contains("\"error\""), "{said}");
        ensure!(said.contains(&format!("reviews-{version}")), "not of {version}: {said}");
        Ok(())
    }

    fn bookinfo_ends(&self) {
        for what in [
            "gateways.gateway.networking.k8s.io/bookinfo",
            "virtualservice/reviews",
            "destinationrule/reviews",
        ] {
            self.kubectl(&["delete", what]);
        }
        self.kubectl(&["wait", "--for=delete", "deployment/bookinfo", "--timeout=60s"]);
        self.kubectl(&["delete", "pods", "--selector", "part-of=bookinfo", "--timeout=60s"]);
        self.kubectl(&["delete", "services", "productpage", "details", "reviews", "ratings"]);
        self.kubectl(&[
            "wait",
            "--for=delete",
            "pods",
            "--selector",
            "gateway.networking.k8s.io/gateway-name=bookinfo",
            "--timeout=60s",
        ]);
    }
}

fn pod(name: &str, app: &str, version: &str, node: &str, args: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{
           app: {app}, version: '{version}', pod: {name}, part-of: bookinfo}}}}, spec: {{
           nodeSelector: {{kubernetes.io/hostname: {node}}}, terminationGracePeriodSeconds: 1,
           serviceAccountName: bookinfo-{app}, containers: [{{name: c, image: '{IMAGE}',
             imagePullPolicy: Never, command: ['{PROGRAM}'], args: {args}}}]}}}}"
    )
}
