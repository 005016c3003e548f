//! Two versions of one application, somebody who asks, and a waypoint between them.

use anyhow::ensure;
use culvert_tests::{Answer, Ask, HttpApp, Mesh, MeshPod, SOON, Service, Waypoint, dialogue};
use std::sync::atomic::{AtomicU32, Ordering};
use testbed::{Listener, Serve, Sock, eventually};

pub const PORT: u16 = 9080;

pub struct Scene {
    pub client: MeshPod,
    pub apps: Vec<HttpApp>,
    pub service: Service,
    pub waypoint: Waypoint,
    revision: AtomicU32,
    pub mesh: Mesh,
}

impl Scene {
    /// `reviews` in versions v1 and v2, on a port of HTTP, behind the waypoint of its namespace.
    pub fn new(name: &str) -> Self {
        Self::speaking(name, "http")
    }

    /// The same on a port of this name.
    pub fn speaking(name: &str, protocol: &str) -> Self {
        Self::on(Mesh::new(name), protocol)
    }

    /// The same on a mesh of one's own.
    pub fn on(mesh: Mesh, protocol: &str) -> Self {
        let apps =
            vec![mesh.http_app(1, "reviews", "v1", PORT), mesh.http_app(2, "reviews", "v2", PORT)];
        let client = mesh.enrolled_pod(1, "client");
        let pods: Vec<&MeshPod> = apps.iter().map(|a| &a.pod).collect();
        let service = mesh.service_of("reviews", protocol, PORT, PORT, &pods);
        let waypoint = mesh.waypoint(2, "waypoint");
        mesh.use_waypoint(Some("waypoint"));
        mesh.bound(&service, Some("waypoint"));
        Self { client, apps, service, waypoint, revision: AtomicU32::new(0), mesh }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://reviews:{PORT}{path}")
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask(&Ask::get(&self.url(path)))
    }

    #[track_caller]
    pub fn ask(&self, ask: &Ask) -> Answer {
        ask.from(&self.client).unwrap()
    }

    /// Applies an object of Istio's networking API.
    pub fn apply(&self, kind: &str, name: &str, spec: &str) {
        self.mesh.apply(
            &format!("{}-{name}", kind.to_lowercase()),
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: {kind}\n\
                 metadata: {{ namespace: default, name: {name} }}\nspec: {spec}\n"
            ),
        );
    }

    /// The two versions as subsets.
    pub fn subsets(&self) {
        self.destination("");
    }

    /// The two versions as subsets, with this `trafficPolicy`; in force with the next [`Self::routes`].
    pub fn destination(&self, policy: &str) {
        // An empty one is refused.
        let policy = match policy {
            "" => String::new(),
            policy => format!("trafficPolicy: {{ {policy} }},"),
        };
        self.apply(
            "DestinationRule",
            "reviews",
            &format!(
                "{{ host: reviews, {policy} subsets: [\
                 {{ name: v1, labels: {{ version: v1 }} }}, {{ name: v2, labels: {{ version: v2 }} }}, \
                 {{ name: v3, labels: {{ version: v3 }} }}] }}"
            ),
        );
    }

    /// These routes, in force once this returns.
    pub fn routes(&self, http: &str) {
        let n = self.revision.fetch_add(1, Ordering::Relaxed);
        let marker = format!(
            "{{ match: [{{ uri: {{ exact: /revision }} }}], \
             directResponse: {{ status: 299, body: {{ string: \"{n}\" }} }} }}"
        );
        self.apply(
            "VirtualService",
            "reviews",
            &format!("{{ hosts: [reviews], http: [{marker}, {http}] }}"),
        );
        self.until(&Ask::get(&self.url("/revision")), |a| a.body == n.to_string());
    }

    /// All to one version, with `more` fields in its route.
    pub fn route_to(&self, subset: &str, more: &str) {
        self.routes(&format!(
            "{{ route: [{{ destination: {{ host: reviews, subset: {subset} }} }}], {more} }}"
        ));
    }

    /// A connection from the client, for bytes of any kind.
    pub fn raw(&self) -> Sock {
        dialogue::connect(&self.client, &self.service.by_name())
    }

    /// All that comes back for these bytes and their end.
    pub fn say(&self, bytes: impl AsRef<[u8]>) -> String {
        let sock = self.raw();
        // Whoever refuses may not read to the end.
        let _ = sock.write(bytes.as_ref());
        let _ = sock.shutdown_write();
        let mut all = Vec::new();
        while let Ok(part) = sock.read_some(64 * 1024) {
            if part.is_empty() {
                break;
            }
            all.extend(part);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// How many requests with this key the applications have been asked, v1 and v2.
    pub fn counts(&self, key: &str) -> Vec<u64> {
        self.apps.iter().map(|a| a.count(PORT, key)).collect()
    }

    /// The waypoint is as it should be: others are served, and nothing in it panicked.
    #[track_caller]
    pub fn is_well(&self) {
        assert_eq!(self.get("/").status, 200);
        let log = self.waypoint.log();
        assert!(!log.contains("panicked"), "{log}");
    }

    /// Asks until the answer is as wanted.
    #[track_caller]
    pub fn until(&self, ask: &Ask, wanted: impl Fn(&Answer) -> bool) -> Answer {
        eventually(SOON, || {
            let answer = ask.from(&self.client)?;
            ensure!(wanted(&answer), "{answer:?}");
            Ok(answer)
        })
        .unwrap()
    }

    /// Who answers, over so many requests on one connection.
    #[track_caller]
    pub fn answered_by(&self, ask: &Ask, times: usize) -> Vec<String> {
        ask.times(&self.client, times).unwrap().iter().map(Answer::by).collect()
    }
}

/// An application that the test plays by hand, behind the waypoint.
pub struct Played {
    pub client: MeshPod,
    pub pod: MeshPod,
    pub listener: Listener,
    pub service: Service,
    pub waypoint: Waypoint,
    pub mesh: Mesh,
}

impl Played {
    pub fn new(name: &str, protocol: &str, serve: Serve) -> Self {
        let mesh = Mesh::new(name);
        let pod = mesh.enrolled_pod(1, "played");
        let client = mesh.enrolled_pod(2, "client");
        let listener = dialogue::serve(&pod, PORT, serve);
        let service = mesh.service_of("played", protocol, PORT, PORT, &[&pod]);
        let waypoint = mesh.waypoint(2, "waypoint");
        mesh.use_waypoint(Some("waypoint"));
        mesh.bound(&service, Some("waypoint"));
        Self { client, pod, listener, service, waypoint, mesh }
    }

    pub fn raw(&self) -> Sock {
        dialogue::connect(&self.client, &self.service.by_name())
    }

    pub fn accept(&self) -> Sock {
        self.listener.accept(SOON).unwrap()
    }
}

/// Reads until this has come.
#[track_caller]
pub fn read_until(sock: &Sock, text: &str) -> String {
    let mut all = String::new();
    while !all.contains(text) {
        let part = sock.read_some(4096).unwrap();
        assert!(!part.is_empty(), "ended without {text:?}: {all:?}");
        all.push_str(&String::from_utf8_lossy(&part));
    }
    all
}
