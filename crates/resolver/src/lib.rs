//! Names outside the mesh, resolved and kept fresh: as long as somebody asks for a name, it is looked
//! up again when its answer has run out. An answer that does not come leaves what was known.

mod ask;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// An answer is used for as long as it says, within these bounds.
const SOONEST: Duration = Duration::from_secs(5);
const LATEST: Duration = Duration::from_secs(60);

/// How long until a question that nobody answered, or that had nothing for an answer, is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// A name that nobody asks for is let go of after so many rounds.
const IDLE_ROUNDS: u32 = 5;

type Addresses = Arc<[IpAddr]>;

#[derive(Debug)]
pub struct Resolver {
    servers: Arc<[SocketAddr]>,
    known: Mutex<HashMap<Arc<str>, Arc<Name>>>,
    epoch: AtomicU64,
}

/// A name that is followed as long as somebody uses it.
#[derive(Debug)]
pub struct Name {
    /// None: no question has come to an end yet.
    addresses: watch::Sender<Option<Addresses>>,
    asked: AtomicBool,
}

impl Name {
    /// Its addresses as they are known now, in order: none before the first answer.
    pub fn addresses(&self) -> Addresses {
        self.addresses.borrow().clone().unwrap_or_default()
    }

    /// Waits until the first question has come to an end, well or not.
    pub async fn settled(&self) {
        let _ = self.addresses.subscribe().wait_for(Option::is_some).await;
    }

    /// Somebody uses the addresses.
    pub fn used(&self) {
        // Read first: it is written from time to time, and this is called for every request.
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
    }
}

impl Resolver {
    pub fn new(servers: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self {
            servers: servers.into(),
            known: Mutex::default(),
            epoch: AtomicU64::new(0),
        })
    }

    /// Goes up when a name has got other addresses, or is not followed any more.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// A name, followed from now on if it was not.
    pub fn name(self: &Arc<Self>, name: &str) -> Arc<Name> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(name) {
            found.used();
            return found.clone();
        }
        let new =
            Arc::new(Name { addresses: watch::Sender::new(None), asked: AtomicBool::new(true) });
        let name: Arc<str> = name.into();
        known.insert(name.clone(), new.clone());
        tokio::spawn(self.clone().follow(name, new.clone()));
        new
    }

    async fn follow(self: Arc<Self>, name: Arc<str>, entry: Arc<Name>) {
        let mut idle = 0;
        let mut failing = false;
        loop {
            let before = entry.addresses();
            let mut known: Vec<IpAddr> = Vec::new();
            let mut pause = None;
            let mut failed = None;
            let families = ask::lookup(&self.servers, &name).await;
            for (is_ipv4, answer) in [true, false].into_iter().zip(families) {
                match answer {
                    Ok(found) => {
                        pause = pause.into_iter().chain(found.ttl).min();
                        known.extend(found.addresses);
                    }
                    // What was known of this family stays.
                    Err(why) => {
                        known.extend(before.iter().filter(|ip| ip.is_ipv4() == is_ipv4));
                        failed = Some(why);
                    }
                }
            }
            if let Some(why) = failed.as_ref().filter(|_| !failing) {
                tracing::warn!(%name, %why, "a name could not be resolved");
            }
            failing = failed.is_some();
            known.sort_unstable();
            known.dedup();
            self.learned(&entry, known.into());
            let pause = pause.filter(|_| !failing).unwrap_or(AGAIN).clamp(SOONEST, LATEST);
            tokio::time::sleep(pause).await;
            idle = if entry.asked.swap(false, Ordering::Relaxed) { 0 } else { idle + 1 };
            if idle >= IDLE_ROUNDS {
                self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                self.epoch.fetch_add(1, Ordering::Release);
                return;
            }
        }
    }

    fn learned(&self, entry: &Name, addresses: Addresses) {
        let changed = entry.addresses.send_if_modified(|known| {
            let other = known.as_ref() != Some(&addresses);
            *known = Some(addresses);
            other
        });
        if changed {
            self.epoch.fetch_add(1, Ordering::Release);
        }
    }
}

/// The addresses that a message from a name server gives a whole name. None: it is no message, or the
/// name is none.
pub fn addresses_in(message: &[u8], name: &str) -> Option<Vec<IpAddr>> {
    ask::addresses_in(message, name)
}

/// The name servers in a `resolv.conf` (resolv.conf(5)).
pub fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let ip = words.next().filter(|w| *w == "nameserver").and_then(|_| words.next())?;
        Some(SocketAddr::new(ip.parse().ok()?, 53))
    };
    resolv_conf.lines().filter_map(server).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use hickory_proto::{
        op::{Message, MessageType, ResponseCode},
        rr::{
            Name as DnsName, RData, Record, RecordType,
            rdata::{A, CNAME},
        },
    };
    use std::net::Ipv4Addr;
    use tokio::net::UdpSocket;

    /// A server that says of every name what `say` says at the time.
    async fn server(say: impl Fn(&mut Message) + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                let mut answer = Message::from_vec(&buffer[..n]).unwrap();
                answer.set_message_type(MessageType::Response);
                say(&mut answer);
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        address
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(DnsName::from_ascii(owner).unwrap(), 0, data)
    }

    fn is_for_a(m: &Message) -> bool {
        m.queries()[0].query_type() == RecordType::A
    }

    #[tokio::test]
    async fn names_are_followed_through_aliases_and_nothing_else_is_believed() {
        let at = server(|m| {
            if is_for_a(m) {
                let alias = DnsName::from_ascii("b.test.").unwrap();
                m.add_answer(record("A.test.", RData::CNAME(CNAME(alias))));
                m.add_answer(record("b.test.", RData::A(A(Ipv4Addr::new(10, 0, 0, 1)))));
                m.add_answer(record("c.test.", RData::A(A(Ipv4Addr::new(10, 0, 0, 9)))));
            }
        });
        let resolver = Resolver::new(vec![at.await]);
        let name = resolver.name("a.test");
        assert!(name.addresses().is_empty());
        name.settled().await;
        assert_eq!(*name.addresses(), [IpAddr::from([10, 0, 0, 1])]);
        assert_eq!(resolver.epoch(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_stays_while_nobody_answers_and_goes_when_the_name_is_gone() {
        let state = Arc::new(AtomicU64::new(0));
        let said = state.clone();
        let at = server(move |m| match said.load(Ordering::Relaxed) {
            0 if is_for_a(m) => {
                m.add_answer(record("a.test.", RData::A(A(Ipv4Addr::LOCALHOST))));
            }
            1 => {
                m.set_response_code(ResponseCode::ServFail);
            }
            2 => {
                m.set_response_code(ResponseCode::NXDomain);
            }
            _ => {}
        });
        let resolver = Resolver::new(vec![at.await]);
        resolver.name("a.test").settled().await;
        let known = || resolver.name("a.test").addresses().len();
        assert_eq!(known(), 1);
        state.store(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(known(), 1);
        state.store(2, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(known(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_of_a_family_stays_while_that_family_is_not_answered() {
        let state = Arc::new(AtomicU64::new(0));
        let said = state.clone();
        let at = server(move |m| match (said.load(Ordering::Relaxed), is_for_a(m)) {
            (0, true) => {
                m.add_answer(record("a.test.", RData::A(A(Ipv4Addr::LOCALHOST))));
            }
            (_, true) => {
                m.set_response_code(ResponseCode::ServFail);
            }
            (_, false) => {
                let data = RData::AAAA(std::net::Ipv6Addr::LOCALHOST.into());
                m.add_answer(record("a.test.", data));
            }
        });
        let resolver = Resolver::new(vec![at.await]);
        let name = resolver.name("a.test");
        name.settled().await;
        assert_eq!(name.addresses().len(), 2);
        state.store(1, Ordering::Relaxed);
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            name.used();
        }
        assert_eq!(name.addresses().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_followed_as_long_as_somebody_uses_it() {
        let at = server(|m| {
            if is_for_a(m) {
                m.add_answer(record("a.test.", RData::A(A(Ipv4Addr::LOCALHOST))));
            }
        });
        let resolver = Resolver::new(vec![at.await]);
        let name = resolver.name("a.test");
        for _ in 0..100 {
            name.used();
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        assert_eq!(resolver.epoch(), 1);
        assert!(Arc::ptr_eq(&name, &resolver.name("a.test")), "it is the one that is followed");
        tokio::time::sleep(Duration::from_secs(600)).await;
        // Whoever has it is told that it is not.
        assert_eq!(resolver.epoch(), 2);
        assert!(!Arc::ptr_eq(&name, &resolver.name("a.test")));
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_makes_room_for_the_next() {
        let good = server(|m| {
            if is_for_a(m) {
                m.add_answer(record("a.test.", RData::A(A(Ipv4Addr::LOCALHOST))));
            }
        });
        let bad = server(|m| {
            m.set_response_code(ResponseCode::Refused);
        });
        let resolver = Resolver::new(vec![bad.await, good.await]);
        let name = resolver.name("a.test");
        name.settled().await;
        assert_eq!(name.addresses().len(), 1);
    }

    #[test]
    fn servers_are_read_from_resolv_conf() {
        let text = "search x.y\nnameserver 10.0.0.1\n# nameserver 10.0.0.2\nnameserver fd00::1\n";
        let all = servers(text);
        assert_eq!(all, ["10.0.0.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
    }
}
