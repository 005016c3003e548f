//! Pods that are not one container that runs for ever, and pods that do not join.

use crate::world::{CLIENT, Mesh, WEB, account};

impl Mesh {
    pub fn init_containers_and_jobs_are_of_the_mesh(&self) {
        let (web, token) = (self.address("web-2"), self.token());
        let speak = format!(
            "exec 3<>/dev/tcp/{web}/8080 && printf \"GET /{token} HTTP/1.0\\r\\n\\r\\n\" >&3 && read -r line <&3 && [[ $line == HTTP* ]]"
        );
        let (first, then) =
            (self.container("first", &speak), self.container("c", "exec sleep 10000"));
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: with-init, labels: {{app: client}}}}, spec: {{
               nodeSelector: {{kubernetes.io/hostname: n1}}, terminationGracePeriodSeconds: 1,
               serviceAccountName: client, initContainers: [{first}], containers: [{then}]}}}}"
        ));
        self.ready("with-init");
        let tries = ".status.initContainerStatuses[0].restartCount";
        assert_eq!(self.field("pod/with-init", tries), "0", "the first word got through");
        self.logs(&["with-init", CLIENT, WEB]);
        self.delete("with-init");

        let only = self.container("c", &speak);
        self.apply(&format!(
            "{{apiVersion: batch/v1, kind: Job, metadata: {{name: once}}, spec: {{backoffLimit: 0, template: {{
               metadata: {{labels: {{app: client}}}},
               spec: {{nodeSelector: {{kubernetes.io/hostname: n1}}, restartPolicy: Never,
                 serviceAccountName: client, containers: [{only}]}}}}}}}}"
        ));
        self.kubectl(&["wait", "--for=condition=Complete", "job/once", "--timeout=120s"]);
        self.logs(&["src.workload=\"once\"", CLIENT, WEB]);
        // Its sandbox goes when it has ended, and the agent lets go of it then.
        self.logs(&["pod un-enrolled", "/once-"]);
        self.kubectl(&["delete", "job", "once", "--timeout=60s"]);
        let pods = ["wait", "--for=delete", "pod", "-l", "job-name=once", "--timeout=60s"];
        self.kubectl(&pods);
    }

    /// As Istio documents: in the node's network, with a sidecar, or with a word of their own.
    pub fn pods_that_do_not_join_are_left_alone(&self) {
        self.apart("on-host", "", "", "hostNetwork: true,", &self.serves("on-host", 18081));
        let waits = "exec sleep 10000";
        self.apart("opted-out", "istio.io/dataplane-mode: none", "", "", waits);
        let sidecar = "sidecar.istio.io/status: \"{}\"";
        self.apart("with-sidecar", "", sidecar, "", waits);
        let port = ", ports: [{containerPort: 8080, hostPort: 18080}]";
        self.pod("ported", "web", "n2", &self.serves("ported", 8080), port);
        for pod in ["on-host", "opted-out", "with-sidecar", "ported"] {
            self.ready(pod);
        }
        self.becomes("ported", "enabled");
        for pod in ["on-host", "opted-out", "with-sidecar"] {
            let capture = self.link();
            self.gets(pod, "web-2");
            let verdict = self.judge(capture, &self.addresses());
            assert!(!verdict.tokens.is_empty(), "{pod} speaks as it does: {verdict}");
            self.becomes(pod, "");
        }
        // A pod of the mesh reaches what is not of it.
        self.gets_at("client", &self.address("on-host"), 18081, "on-host");
        let node = self.cluster.nodes()[1].bed().ipv4().to_string();
        for pod in ["on-host", "opted-out"] {
            self.gets_at(pod, &node, 18080, "ported");
        }
        // A node's address is nobody's of the mesh: it would come in plaintext from a pod that speaks HBONE.
        self.is_refused("client", &node, 18080);
        for pod in ["on-host", "opted-out", "with-sidecar", "ported"] {
            self.delete(pod);
        }
    }

    fn apart(&self, name: &str, labels: &str, annotations: &str, spec: &str, script: &str) {
        let (container, account) = (self.container("c", script), account("apart"));
        self.apply(&format!(
            "{account}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{{labels}}}, annotations: {{{annotations}}}}},
               spec: {{nodeSelector: {{kubernetes.io/hostname: n1}}, terminationGracePeriodSeconds: 1,
                 serviceAccountName: apart, {spec} containers: [{container}]}}}}"
        ));
    }
}
