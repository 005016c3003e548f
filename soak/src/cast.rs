//! Who is there for the whole time: a client and a server on each node, and what policy lets whom do.

use culvert_tests::dialogue::serve;
use culvert_tests::{Mesh, MeshPod, Spec};
use testbed::{Serve, Token};

pub const CLIENTS: usize = 2;
/// So many at once, each of which is another pod every few seconds.
pub const GUESTS: usize = 2;
/// Service accounts: the clients have one each, guests take turns with the others.
pub const ACCOUNTS: [&str; 6] = ["id0", "id1", "id2", "id3", "id4", "id5"];

/// Everybody in the mesh.
pub const OPEN: u16 = 8080;
/// With the number of the one account that may.
const OWN: u16 = 9000;
/// Whoever the latest policy names.
pub const VOLATILE: u16 = 9100;

pub fn own_port(account: usize) -> u16 {
    OWN + u16::try_from(account).unwrap()
}

pub fn principal(account: usize) -> String {
    format!("cluster.local/ns/default/sa/{}", ACCOUNTS[account])
}

pub struct Cast {
    pub clients: Vec<MeshPod>,
    pub servers: Vec<MeshPod>,
    /// One of each client's and one for all guests: none may be seen on the wire.
    pub tokens: Vec<Token>,
}

impl Cast {
    pub fn enter(mesh: &Mesh) -> Self {
        let clients: Vec<MeshPod> = (0..CLIENTS)
            .map(|n| mesh.pod(n + 1, Spec::named(&format!("client{n}")).account(ACCOUNTS[n])))
            .collect();
        let servers: Vec<MeshPod> = (1..=2)
            .map(|n| mesh.pod(n, Spec::named(&format!("server{n}")).label("role", "server")))
            .collect();
        for server in &servers {
            let own = (0..ACCOUNTS.len()).map(own_port);
            for port in own.chain([OPEN, VOLATILE]) {
                serve(server, port, Serve::Script);
            }
        }
        let rule = |principals: &str, port: u16| {
            format!(
                "{{ from: [{{ source: {{ principals: [{principals:?}] }} }}], \
                 to: [{{ operation: {{ ports: [\"{port}\"] }} }}] }}"
            )
        };
        let rules: Vec<String> = (0..ACCOUNTS.len())
            .map(|n| rule(&principal(n), own_port(n)))
            .chain([rule("*", OPEN)])
            .collect();
        mesh.policy("default", "constant", &allow(&rules.join(", ")));
        for server in &servers {
            mesh.policy_bound("default/constant", server);
        }
        mesh.enroll_all(&[clients.clone(), servers.clone()].concat());
        let tokens = (0..=CLIENTS).map(|_| Token::new()).collect();
        Self { clients, servers, tokens }
    }
}

/// The servers admit, beside whatever else admits.
pub fn allow(rules: &str) -> String {
    format!(
        "{{ selector: {{ matchLabels: {{ role: server }} }}, action: ALLOW, rules: [{rules}] }}"
    )
}

/// The rule of the port whose admission changes.
pub fn admitting(principals: &[String]) -> String {
    format!(
        "{{ from: [{{ source: {{ principals: {principals:?} }} }}], \
         to: [{{ operation: {{ ports: [\"{VOLATILE}\"] }} }}] }}"
    )
}
