//! Bookinfo's pods and services, and how to ask them.

use anyhow::{Context as _, bail};
use culvert_tests::{Mesh, MeshPod, Service, Spec, binary};
use serde_json::Value;
use std::{process::Command, time::Duration};
use testbed::{Proc, Token};

pub struct Bookinfo {
    pub pods: Vec<BookPod>,
    pub services: Vec<Service>,
    /// Asks, as a user's pod in the cluster would.
    pub client: MeshPod,
    pub client_token: Token,
    // Last: pods and processes live in it.
    pub mesh: Mesh,
}

pub struct BookPod {
    pub pod: MeshPod,
    /// In every request it makes and every answer it gives.
    pub token: Token,
    process: Proc,
}

impl BookPod {
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Requests that it has been asked.
    pub fn asked(&self) -> Vec<String> {
        self.process.stdout().lines().skip(1).map(str::to_owned).collect()
    }
}

const PORT: u16 = 9080;

/// Service, version, node.
const PODS: [(&str, &str, usize); 6] = [
    ("productpage", "v1", 1),
    ("details", "v1", 2),
    ("ratings", "v1", 1),
    ("reviews", "v1", 1),
    ("reviews", "v2", 2),
    ("reviews", "v3", 2),
];

impl Bookinfo {
    pub fn start() -> anyhow::Result<Self> {
        println!("Two nodes, a control plane, and an agent on each node ...");
        let mesh = Mesh::new("demo");
        println!("Bookinfo: six pods on two nodes, not in the mesh yet ...");
        let mut pods = Vec::new();
        for (service, version, node) in PODS {
            let spec = Spec::named(&format!("{service}-{version}"))
                .account(&format!("bookinfo-{service}"))
                .label("app", service)
                .label("version", version);
            let pod = mesh.pod(node, spec);
            let token = Token::new();
            let mut command = Command::new(binary("bookinfo"));
            command.args(["serve", "--service", service, "--version", version]);
            command.args(["--proof", &token.to_string()]);
            command.arg("--mood").arg(mesh.bed.dir().join(format!("mood-{service}-{version}")));
            command.env("HOSTNAME", pod.name());
            let process = pod.spawn(command)?;
            process.wait_for_output("listens on", Duration::from_secs(30))?;
            pods.push(BookPod { pod, token, process });
        }
        let mut services = Vec::new();
        for service in ["productpage", "details", "ratings", "reviews"] {
            let behind: Vec<&MeshPod> = pods
                .iter()
                .filter(|p| p.pod.name().starts_with(&format!("{service}-")))
                .map(|p| &p.pod)
                .collect();
            services.push(mesh.service_of(service, "http", PORT, PORT, &behind));
        }
        let client = mesh.pod(2, Spec::named("sleep").account("sleep"));
        Ok(Self { pods, services, client, client_token: Token::new(), mesh })
    }

    pub fn pod(&self, name: &str) -> anyhow::Result<&BookPod> {
        self.pods
            .iter()
            .find(|p| p.pod.name() == name)
            .with_context(|| format!("there is no pod {name}"))
    }

    pub fn all_pods(&self) -> Vec<&MeshPod> {
        self.pods.iter().map(|p| &p.pod).chain([&self.client]).collect()
    }

    /// What a URL answers to Jason in the client pod.
    pub fn get(&self, url: &str) -> anyhow::Result<String> {
        self.get_as(Some("jason"), url)
    }

    pub fn get_as(&self, user: Option<&str>, url: &str) -> anyhow::Result<String> {
        let mut command = Command::new(binary("bookinfo"));
        command.args(["get", url, "--proof", &self.client_token.to_string()]);
        if let Some(user) = user {
            command.args(["--user", user]);
        }
        let process = self.client.spawn(command)?;
        let status = process.wait(Duration::from_secs(30))?;
        if !status.success() {
            bail!("{url}: {}{}", process.stdout(), process.stderr());
        }
        Ok(process.stdout())
    }

    pub fn get_json(&self, url: &str) -> anyhow::Result<Value> {
        let body = self.get(url)?;
        serde_json::from_str(&body).with_context(|| format!("{url} answered {body}"))
    }

    /// Asks for reviews until each version has answered: who they are, and what stars they show.
    pub fn every_version(&self) -> anyhow::Result<Vec<Value>> {
        let mut seen: Vec<Value> = Vec::new();
        for _ in 0..200 {
            let answer = self.get_json("http://productpage:9080/api/v1/products/0/reviews")?;
            let who = answer.get("podname").cloned();
            if who.is_some() && seen.iter().all(|s| s.get("podname") != who.as_ref()) {
                seen.push(answer);
            }
            if seen.len() == 3 {
                return Ok(seen);
            }
        }
        bail!("only {} of three versions of reviews answered", seen.len())
    }

    pub fn print_commands(&self) {
        let pod = &self.client;
        // In the pod's cgroup as well: a process that joins its namespaces alone is not captured, and
        // the guard lets nothing of it leave.
        let inside = |command: &str| {
            format!(
                "sh -c 'echo $$ > {}/cgroup.procs; exec nsenter --net={} --mount=/proc/{}/ns/mnt {command}'",
                pod.cgroup().display(),
                pod.netns_path().display(),
                pod.pid()
            )
        };
        let ctl = binary("culvertctl");
        let config = self.mesh.bed.dir().join("config");
        let bookinfo = binary("bookinfo");
        println!("\nTo try:");
        println!("  # the bookstore, and a shell, in the pod `sleep`");
        println!(
            "  {}",
            inside(&format!("{} get http://productpage:9080/productpage", bookinfo.display()))
        );
        println!("  {}", inside("bash"));
        for agent in self.mesh.agents() {
            println!("  {} --run-dir {} status", ctl.display(), agent.run_dir().display());
            println!("  {} --run-dir {} connections", ctl.display(), agent.run_dir().display());
        }
        println!("  # manifests: change one, and see what happens");
        println!("  ls {}", config.display());
    }
}
