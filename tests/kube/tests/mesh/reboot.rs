//! A node loses its power, with a capture on the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::{Bed, eventually};

use crate::world::{CLIENT, Mesh, SYSTEM, WEB};

/// Sandboxes that wait for the agent are tried again by the kubelet, with pauses.
const RECOVERY: Duration = Duration::from_secs(240);

/// What is seen of a container.
struct Seen {
    restarts: u32,
    ready: bool,
    since: String,
}

impl Mesh {
    pub fn no_byte_is_lost_to_a_reboot(&mut self, bed: &Bed) {
        // Both speak all the time, and the first from its first moment.
        self.service("web-1", "10.96.0.81", "pod: web-1", "");
        self.pod("left", "client", "n1", &self.talks(&self.address("web-2"), 8080), "");
        self.pod("right", "client", "n2", &self.talks("10.96.0.81", 80), "");
        for pod in ["left", "right"] {
            self.ready(pod);
            self.becomes(pod, "enabled");
            self.is_answered(pod, 0);
        }
        let mut enrolled = self.addresses();
        let before = self.on_n1().unwrap();
        let capture = self.link();
        self.cluster.reboot(bed, "n1").unwrap();

        let back = eventually(RECOVERY, || {
            let now = self.on_n1()?;
            for (pod, was) in &before {
                let is = now.get(pod).with_context(|| format!("{pod} is not there"))?;
                ensure!(is.ready && is.restarts > was.restarts, "{pod} is not back yet");
            }
            Ok(now)
        });
        let back = back.with_context(|| self.state()).unwrap();
        let agent = back.iter().find(|(pod, _)| pod.starts_with("culvert-agent-")).unwrap().1;
        for pod in ["web-1", "client", "left"] {
            assert!(back[pod].since >= agent.since, "{pod} runs since before the agent does");
        }
        let (left, right) = (self.answers_to("left"), self.answers_to("right"));
        self.is_answered("left", left);
        self.is_answered("right", right);
        self.gets("client", "web-2");
        enrolled.extend(self.addresses());
        let verdict = self.judge(capture, &enrolled);
        assert!(verdict.is_clean() && verdict.hbone_streams > 0, "{verdict}");
        println!("during a reboot: {verdict}");
        // That of the node that was away has a log from after it.
        self.logs(&["\"left\"", CLIENT, WEB]);
        for pod in ["left", "right"] {
            self.delete(pod);
        }
    }

    /// Connections that do not wait for each other, each with the token in its first bytes.
    fn talks(&self, address: &str, port: u16) -> String {
        let token = self.token();
        format!(
            "while :; do (exec 3<>/dev/tcp/{address}/{port} && printf \"GET /{token} HTTP/1.0\\r\\n\\r\\n\" >&3 && read -r line <&3 && [[ $line == HTTP* ]] && echo answered) 2>/dev/null & sleep 0.2; done"
        )
    }

    fn answers_to(&self, pod: &str) -> usize {
        let log = self.kubectl(&["logs", pod]);
        log.lines().filter(|line| *line == "answered").count()
    }

    fn is_answered(&self, pod: &str, more_than: usize) {
        let heard = eventually(RECOVERY, || {
            let answers = self.answers_to(pod);
            ensure!(answers > more_than, "{pod} had {answers} answers, and {more_than} before");
            Ok(())
        });
        heard.with_context(|| self.state()).unwrap();
    }

    /// Containers of pods on the first node, by pod.
    fn on_n1(&self) -> Result<BTreeMap<String, Seen>> {
        const EACH: &str = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount} \
             {.status.containerStatuses[0].ready} {.status.containerStatuses[0].state.running.startedAt}{\"\\n\"}{end}";
        let mut seen = BTreeMap::new();
        for namespace in ["default", SYSTEM] {
            let on = "--field-selector=spec.nodeName=n1";
            let said =
                self.cluster.api().kubectl(&["get", "pods", "-n", namespace, on, "-o", EACH])?;
            for line in said.lines() {
                let mut words = line.split(' ');
                let mut word = || words.next().unwrap_or_default().to_owned();
                let (pod, restarts, ready, since) = (word(), word(), word(), word());
                let restarts = restarts.parse().unwrap_or(0);
                seen.insert(pod, Seen { restarts, ready: ready == "true", since });
            }
        }
        Ok(seen)
    }
}
