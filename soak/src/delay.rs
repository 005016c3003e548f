//! Packets that take their time: netfilter hands them over (NFQUEUE), and each goes on when its time
//! has come. As no two take the same, some overtake others.

use anyhow::Context as _;
use nfq::{Message, Queue, Verdict};
use rand::Rng as _;
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    ops::Range,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use testbed::Node;

const QUEUE: u16 = 15;
/// Beyond so many the kernel drops what comes.
const ROOM: u32 = 16 * 1024;
const TABLES: [&str; 2] = ["iptables-legacy", "ip6tables-legacy"];

/// What comes in by a node's link is late, until this is dropped.
pub struct Delay {
    node: String,
    /// Of [`TABLES`], those that hand over.
    tables: Vec<&'static str>,
    over: Arc<AtomicBool>,
    holder: Option<JoinHandle<()>>,
}

impl Delay {
    pub fn new(node: &Node, milliseconds: Range<u64>) -> anyhow::Result<Self> {
        let queue = node.inside(|| {
            let mut queue = Queue::open().context("NFQUEUE")?;
            queue.bind(QUEUE)?;
            queue.set_queue_max_len(QUEUE, ROOM)?;
            // Whole, as they are, and no more of them than is looked at.
            queue.set_recv_gso(QUEUE, true)?;
            queue.set_copy_range(QUEUE, 64)?;
            queue.set_recv_enobufs(false)?;
            queue.set_nonblocking(true);
            Ok(queue)
        })?;
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let holder = thread::spawn(move || hold(queue, &milliseconds, &ends));
        let node = node.netns_name();
        let mut this = Self { node, tables: Vec::new(), over, holder: Some(holder) };
        for table in TABLES {
            this.rule(table, "-A")?;
            this.tables.push(table);
        }
        Ok(this)
    }

    fn rule(&self, table: &str, what: &str) -> anyhow::Result<()> {
        let words = format!(
            "ip netns exec {} {table} -w -t raw {what} PREROUTING -i eth0 -j NFQUEUE \
             --queue-num {QUEUE} --queue-bypass",
            self.node
        );
        let mut words = words.split(' ');
        let out = Command::new(words.next().unwrap_or_default()).args(words).output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        anyhow::ensure!(out.status.success(), "{table} {what}: {said}");
        Ok(())
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        let gone: anyhow::Result<()> = self.tables.iter().try_for_each(|t| self.rule(t, "-D"));
        self.over.store(true, Ordering::Relaxed);
        let held = self.holder.take().map(JoinHandle::join);
        let well = gone.is_ok() && held.is_none_or(|h| h.is_ok());
        assert!(well || thread::panicking(), "{gone:?}");
    }
}

/// Lets each packet go on when its time has come; all of them at the end.
fn hold(mut queue: Queue, milliseconds: &Range<u64>, over: &AtomicBool) {
    let mut held: BTreeMap<(Instant, u32), Message> = BTreeMap::new();
    loop {
        let ending = over.load(Ordering::Relaxed);
        loop {
            match queue.recv() {
                Ok(packet) => {
                    let wait = rand::rng().random_range(milliseconds.clone());
                    let due = Instant::now() + Duration::from_millis(wait);
                    held.insert((due, packet.get_packet_id()), packet);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("NFQUEUE: {e}"),
            }
        }
        while let Some(first) = held.first_entry()
            && (ending || first.key().0 <= Instant::now())
        {
            let mut packet = first.remove();
            packet.set_verdict(Verdict::Accept);
            queue.verdict(packet).unwrap();
        }
        if ending {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}
