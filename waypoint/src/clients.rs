//! The records of clients: discovery brings what this proxy serves, and of those who ask it only who
//! has been asked for.

use mesh::{Mesh, Workload};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use xds::{ADDRESS_TYPE, client::Ask};

/// How long a connection waits for its client's record. Without one its identity is known all the same, its
/// labels are not.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the record of a client that no longer comes is kept.
const KEPT: Duration = Duration::from_secs(600);

/// When a client that has no record is asked for again.
const AGAIN: Duration = Duration::from_secs(5);

/// Clients that are asked for at a time.
const MOST: usize = 65_536;

pub struct Clients {
    asks: mpsc::Sender<Ask>,
    known: Mutex<HashMap<IpAddr, Client>>,
    /// Goes up with every answer of discovery's.
    heard: watch::Sender<u64>,
}

struct Client {
    /// What it was asked for by.
    name: String,
    seen: Instant,
    asked: Instant,
    /// Discovery has answered that there is none, or has not answered in time.
    absent: bool,
}

impl Clients {
    /// With what is asked for, for discovery: this proxy's own record to begin with.
    pub fn new(own: &str) -> (Self, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(1024);
        let _ = asks.try_send(ask(own.to_owned(), true));
        let known = Mutex::default();
        (Self { asks, known, heard: watch::Sender::default() }, receiver)
    }

    /// A client's record, asked for where it is not there.
    pub async fn workload(&self, mesh: &Mesh, network: &str, ip: IpAddr) -> Option<Arc<Workload>> {
        let mut heard = self.heard.subscribe();
        let worth_it = self.want(mesh.workload_at(network, ip).is_some(), network, ip);
        if !worth_it || !mesh.synced().borrow().connected {
            return mesh.workload_at(network, ip);
        }
        let come = async {
            loop {
                heard.borrow_and_update();
                let found = mesh.workload_at(network, ip);
                if found.is_some() || self.lock().get(&ip).is_none_or(|c| c.absent) {
                    return found;
                }
                heard.changed().await.ok()?;
            }
        };
        match tokio::time::timeout(PATIENCE, come).await {
            Ok(found) => found,
            Err(_) => {
                // Those that come next do not wait as well, until it is asked for again.
                if let Some(client) = self.lock().get_mut(&ip) {
                    client.absent = true;
                }
                None
            }
        }
    }

    /// Asks for this proxy's own record, which came to be after it was first asked for, or again.
    pub fn want_own(&self, uid: &str) {
        let _ = self.asks.try_send(ask(uid.to_owned(), true));
    }

    /// Whether an answer is worth waiting for.
    fn want(&self, is_there: bool, network: &str, ip: IpAddr) -> bool {
        let now = Instant::now();
        let mut known = self.lock();
        let name = match known.get_mut(&ip) {
            Some(client) => {
                client.seen = now;
                let lately = now.duration_since(client.asked) < AGAIN;
                if is_there || lately {
                    return !is_there && !client.absent;
                }
                client.name.clone()
            }
            None if is_there => return false,
            None => format!("{network}/{ip}"),
        };
        if known.len() >= MOST && !known.contains_key(&ip) {
            return false;
        }
        // What cannot be asked for now is with the next connection.
        if self.asks.try_send(ask(name.clone(), true)).is_err() {
            return false;
        }
        known.insert(ip, Client { name, seen: now, asked: now, absent: false });
        true
    }

    /// Discovery has answered; these are not there.
    pub fn heard(&self, removed: &[String]) {
        // `<network>/<address>`, among names of what is no client.
        let address = |name: &String| name.rsplit_once('/')?.1.parse::<IpAddr>().ok();
        for (name, ip) in removed.iter().filter_map(|name| Some((name, address(name)?))) {
            if let Some(client) = self.lock().get_mut(&ip) {
                client.absent |= client.name == *name;
            }
        }
        self.heard.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Gives back the records of those who have not come for long.
    pub fn sweep(&self, now: Instant) {
        self.lock().retain(|_, client| {
            now.saturating_duration_since(client.seen) < KEPT
                || self.asks.try_send(ask(client.name.clone(), false)).is_err()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Client>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(name: String, wanted: bool) -> Ask {
    Ask { type_url: ADDRESS_TYPE, name, wanted }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use mesh::Local;
    use xds::client::Apply as _;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_asked_for_once_and_waited_for_until_discovery_answers() {
        let (clients, mut asks) = Clients::new("own");
        assert_eq!(asks.try_recv().unwrap(), ask("own".to_owned(), true));
        let mesh = Mesh::new(Local::default());
        mesh.connected(true);
        let ip: IpAddr = "10.0.0.9".parse().unwrap();
        let begun = tokio::time::Instant::now();
        let both = async {
            tokio::join!(clients.workload(&mesh, "net", ip), clients.workload(&mesh, "net", ip))
        };
        let answering = async {
            clients.heard(&[]);
            tokio::time::sleep(Duration::from_millis(100)).await;
            clients.heard(&["net/10.0.0.9".to_owned()]);
        };
        assert!(matches!(tokio::join!(both, answering).0, (None, None)));
        assert!(begun.elapsed() < PATIENCE);
        assert_eq!(asks.try_recv().unwrap(), ask("net/10.0.0.9".to_owned(), true));
        assert!(asks.try_recv().is_err(), "asked for once");
        // It is known not to be there: nobody waits.
        let begun = tokio::time::Instant::now();
        assert!(clients.workload(&mesh, "net", ip).await.is_none());
        assert_eq!(begun.elapsed(), Duration::ZERO);
        clients.sweep(Instant::now());
        assert!(asks.try_recv().is_err());
        clients.sweep(Instant::now() + KEPT);
        assert_eq!(asks.try_recv().unwrap(), ask("net/10.0.0.9".to_owned(), false));
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_the_client_is_served_all_the_same() {
        let (clients, _asks) = Clients::new("own");
        let mesh = Mesh::new(Local::default());
        let ip: IpAddr = "fd00::9".parse().unwrap();
        let begun = tokio::time::Instant::now();
        assert!(clients.workload(&mesh, "", ip).await.is_none());
        assert_eq!(begun.elapsed(), Duration::ZERO, "there is nobody to answer");
        mesh.connected(true);
        assert!(clients.workload(&mesh, "", ip).await.is_none());
        assert_eq!(begun.elapsed(), PATIENCE);
        assert!(clients.workload(&mesh, "", ip).await.is_none());
        assert_eq!(begun.elapsed(), PATIENCE, "one has waited for all");
    }
}
