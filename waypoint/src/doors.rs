//! How many connections may be open from without: in all, and of one client, so that nobody can take
//! the room of all others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// What one client may have: a share of the whole.
const SHARE: usize = 4;

pub struct Doors {
    most: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    all: usize,
    of_client: HashMap<IpAddr, usize>,
    refused: u64,
}

/// A connection's place, until it is dropped.
pub struct Admitted {
    doors: Arc<Doors>,
    client: IpAddr,
}

impl Doors {
    /// `most` connections; 0: a third of the descriptors that the process may have, since a connection
    /// in may take two out, to an endpoint and to a mirror.
    pub fn new(most: usize) -> Arc<Self> {
        let most = if most == 0 { descriptors() / 3 } else { most };
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// None: there is no room, or the client has its share.
    pub fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Admitted> {
        let client = client.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let own = open.of_client.get(&client).copied().unwrap_or(0);
        if open.all >= self.most || own >= self.most.div_ceil(SHARE) {
            open.refused += 1;
            return None;
        }
        open.all += 1;
        open.of_client.insert(client, own + 1);
        drop(open);
        Some(Admitted { doors: self.clone(), client })
    }

    /// Open now, and refused since the start.
    pub fn counts(&self) -> (usize, u64) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        (open.all, open.refused)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.doors.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all = open.all.saturating_sub(1);
        if let Some(own) = open.of_client.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                open.of_client.remove(&self.client);
            }
        }
    }
}

/// As many as the process may have, made as many as the system lets it.
fn descriptors() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let now = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    usize::try_from(now).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_share_and_gives_it_back() {
        let doors = Doors::new(10);
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut held: Vec<_> = (0..3).map(|_| doors.admit(ip(1)).unwrap()).collect();
        assert!(doors.admit(ip(1)).is_none());
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        assert!(doors.admit(mapped).is_none(), "it is the same client");
        held.extend((2..9).map(|n| doors.admit(ip(n)).unwrap()));
        assert!(doors.admit(ip(99)).is_none(), "there is no room");
        assert_eq!(doors.counts(), (10, 3));
        held.remove(0);
        let _again = doors.admit(ip(1)).unwrap();
        drop(held);
        assert_eq!(doors.counts(), (1, 3));
        assert_eq!(doors.open.lock().unwrap().of_client.len(), 1);
    }
}
