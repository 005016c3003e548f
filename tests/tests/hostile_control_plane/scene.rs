//! A server and its client in one namespace, and an innocent pair in another.

use culvert_tests::dialogue::serve;
use culvert_tests::stage::record;
use culvert_tests::{MeshPod, Spec, Stage, Traffic, at, attempt};
use prost::Message as _;
use scripted::control::AdsStream;
use scripted::messages::{policy, raw, response, workload};
use testbed::{Serve, Token};
use xds::proto::discovery::Resource;
use xds::proto::{security, workload as pb};
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

pub const PORT: u16 = 8080;
/// The agent's memory may grow by this much under a bounded attack, in KiB: half of what the attacks carry or less.
pub const ROOM_KIB: u64 = 128 * 1024;

pub struct Scene {
    pub server: MeshPod,
    pub alice: MeshPod,
    pub quiet_client: MeshPod,
    pub quiet_server: MeshPod,
    /// The innocent pair's connections, one after the other.
    pub quiet: Traffic,
    pub stream: AdsStream,
    pub stage: Stage,
    nonce: u32,
}

/// All four enrolled and at work, without a policy.
pub fn scene(name: &str) -> Scene {
    scene_with(name, &[])
}

pub fn scene_with(name: &str, policies: &[security::Authorization]) -> Scene {
    let stage = Stage::new(name);
    let of = |name: &str| Spec::named(name).namespace("quiet");
    let (server, alice) = (stage.pod("server"), stage.pod("alice"));
    let (quiet_server, quiet_client) = (stage.pod(of("quiet-server")), stage.pod(of("quiet")));
    let all = [&server, &alice, &quiet_server, &quiet_client];
    let stream = stage.answer(&all.map(record), policies);
    stage.agent.wait_until_ready();
    for pod in [&server, &quiet_server] {
        serve(pod, PORT, Serve::Script);
    }
    for pod in all {
        stage.agent.enroll(pod);
    }
    let quiet = Traffic::start(&quiet_client, &at(quiet_server.ipv4(), PORT), Token::new());
    quiet.succeeds(1);
    Scene { server, alice, quiet_client, quiet_server, quiet, stream, stage, nonce: 1 }
}

impl Scene {
    /// Where `alice` finds the server.
    pub fn target(&self) -> String {
        at(self.server.ipv4(), PORT)
    }

    #[track_caller]
    pub fn passes(&self, what: &str) {
        if let Err(e) = attempt(&self.alice, &self.target()) {
            panic!("{what}: alice is refused: {e}");
        }
    }

    #[track_caller]
    pub fn denied(&self, what: &str) {
        match attempt(&self.alice, &self.target()) {
            Ok(()) => panic!("{what}: alice is let in"),
            Err(e) => assert_eq!(e.kind(), "ECONNRESET", "{what}: {e}"),
        }
    }

    pub fn nonce(&mut self) -> String {
        self.nonce += 1;
        format!("n{}", self.nonce)
    }

    /// Sends resources of one type, which must be taken.
    #[track_caller]
    pub fn taken(&mut self, type_url: &str, resources: Vec<Resource>, removed: &[&str]) {
        let nonce = self.nonce();
        self.stream.taken(&response(type_url, &nonce, resources, removed));
    }

    /// Sends resources of one type, of which some must be rejected; what the NACK says.
    #[track_caller]
    pub fn rejected(&mut self, type_url: &str, resources: Vec<Resource>) -> String {
        let nonce = self.nonce();
        self.stream.rejected(&response(type_url, &nonce, resources, &[]))
    }

    #[track_caller]
    pub fn put_policy(&mut self, p: &security::Authorization) {
        self.taken(AUTHORIZATION_TYPE, vec![policy("1", p)], &[]);
    }

    #[track_caller]
    pub fn remove_policy(&mut self, name: &str) {
        self.taken(AUTHORIZATION_TYPE, vec![], &[name]);
    }

    #[track_caller]
    pub fn put_workload(&mut self, w: &pb::Workload) {
        self.taken(ADDRESS_TYPE, vec![workload("1", w)], &[]);
    }

    /// The agent still follows discovery, and the innocent pair has noticed nothing.
    #[track_caller]
    pub fn undisturbed(&self) {
        self.quiet.succeeds(3);
        let why = self.quiet.last_failure(std::slice::from_ref(&self.stage.agent));
        assert_eq!(self.quiet.tally().failed, 0, "the innocent pair was disturbed: {why}");
        let log = self.stage.agent.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// A policy without rules in the server's namespace.
pub fn named(name: &str) -> security::Authorization {
    security::Authorization {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        scope: security::Scope::Namespace.into(),
        ..Default::default()
    }
}

pub fn allow(name: &str, rules: Vec<security::Rule>) -> security::Authorization {
    security::Authorization { action: security::Action::Allow.into(), rules, ..named(name) }
}

pub fn deny(name: &str, rules: Vec<security::Rule>) -> security::Authorization {
    security::Authorization { action: security::Action::Deny.into(), rules, ..named(name) }
}

/// A rule of one clause of one match.
pub fn rule(m: security::Match) -> security::Rule {
    security::Rule { clauses: vec![security::Clause { matches: vec![m] }] }
}

pub fn exact(value: &str) -> security::StringMatch {
    use security::string_match::MatchType;
    security::StringMatch { match_type: Some(MatchType::Exact(value.to_owned())) }
}

pub fn block(address: &[u8], length: u32) -> security::Address {
    security::Address { address: address.to_vec(), length }
}

/// A policy's bytes with more behind them, which decode as what a later version may have.
pub fn with_more(a: &security::Authorization, more: &[u8]) -> Resource {
    let mut body = a.encode_to_vec();
    body.extend(more);
    raw(AUTHORIZATION_TYPE, &format!("{}/{}", a.namespace, a.name), "1", body)
}
