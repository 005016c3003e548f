//! Who may still put a line into a queue of lines that is not read as fast as it is written: no pod, and no
//! client of one, takes what others need.

use std::{
    cell::Cell,
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::OnceLock,
};

thread_local! {
    static NOW: Cell<Whose> = const { Cell::new(Whose::PROGRAM) };
}

/// Whose work a line tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Whose {
    /// As the kernel numbers it; 0 is nobody: the program itself.
    pod: u32,
    /// Who connects to it, as a hash; 0 is the pod itself.
    client: u32,
}

impl Whose {
    pub const PROGRAM: Self = Self { pod: 0, client: 0 };

    pub const fn pod(number: u32) -> Self {
        Self { pod: number, client: 0 }
    }

    /// The same pod's, caused by a client at `ip`.
    pub fn caused_by(self, ip: IpAddr) -> Self {
        // Keyed by the process: nobody can choose an address that shares another's room.
        static KEYS: OnceLock<RandomState> = OnceLock::new();
        let hash = KEYS.get_or_init(RandomState::new).hash_one(ip.to_canonical());
        let bytes = hash.to_le_bytes();
        let client = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).max(1);
        Self { client, ..self }
    }

    /// What this thread works for now.
    pub fn now() -> Self {
        NOW.get()
    }

    /// The same, if that is the pod's; else the pod.
    pub fn now_within(pod: u32) -> Self {
        let now = Self::now();
        if now.pod == pod { now } else { Self::pod(pod) }
    }

    /// Lines that `work` logs are these.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        struct Before(Whose);
        impl Drop for Before {
            fn drop(&mut self) {
                NOW.set(self.0);
            }
        }
        let _before = Before(NOW.replace(self));
        work()
    }
}

/// What a queue holds for whom. A line is taken while its pod and its client together have fewer than are
/// free: a pod alone, with one client, takes a third of the room, two such pods a fifth each, clients of one pod
/// half of it together. Whoever comes next finds room.
#[derive(Debug)]
pub(crate) struct Shares {
    room: usize,
    waiting: usize,
    of_pods: HashMap<u32, usize>,
    of_clients: HashMap<Whose, usize>,
    lost: HashMap<u32, Lost>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    ever: u64,
    untold: u64,
}

impl Shares {
    pub(crate) fn new(room: usize) -> Self {
        Self {
            room,
            waiting: 0,
            of_pods: HashMap::new(),
            of_clients: HashMap::new(),
            lost: HashMap::new(),
        }
    }

    /// Room for one more line of theirs, until [`Shares::give_back`]; without, it is counted as lost.
    pub(crate) fn take(&mut self, whose: Whose) -> bool {
        let free = self.room.saturating_sub(self.waiting);
        let of_pod = self.of_pods.get(&whose.pod).copied().unwrap_or(0);
        let of_client = self.of_clients.get(&whose).copied().unwrap_or(0);
        // Nobody else causes the program's own.
        let has_room = if whose.pod == 0 { free > 0 } else { of_pod + of_client < free };
        if has_room {
            self.waiting += 1;
            if whose.pod != 0 {
                self.of_pods.insert(whose.pod, of_pod + 1);
                self.of_clients.insert(whose, of_client + 1);
            }
        } else {
            let lost = self.lost.entry(whose.pod).or_default();
            lost.ever += 1;
            lost.untold += 1;
        }
        has_room
    }

    pub(crate) fn give_back(&mut self, whose: Whose) {
        self.waiting = self.waiting.saturating_sub(1);
        if whose.pod != 0 {
            one_less(&mut self.of_pods, whose.pod);
            one_less(&mut self.of_clients, whose);
        }
    }

    /// Lines lost since the start, by pod; 0 is the program itself.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (u32, u64)> {
        self.lost.iter().map(|(pod, lost)| (*pod, lost.ever))
    }

    /// Those that no answer of this has told of, by pod.
    pub(crate) fn lost_since(&mut self) -> Vec<(u32, u64)> {
        let told = |(pod, lost): (&u32, &mut Lost)| (*pod, std::mem::take(&mut lost.untold));
        let mut all: Vec<_> = self.lost.iter_mut().map(told).filter(|(_, n)| *n > 0).collect();
        all.sort_unstable();
        all
    }

    /// A pod that is gone is not told of any more; its lines go on counting for the program.
    pub(crate) fn forget(&mut self, pod: u32) {
        if pod != 0
            && let Some(lost) = self.lost.remove(&pod)
        {
            self.lost.entry(0).or_default().ever += lost.ever;
        }
    }
}

fn one_less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 8192;

    fn client(pod: u32, last: u8) -> Whose {
        Whose::pod(pod).caused_by([10, 0, 0, last].into())
    }

    fn fill(shares: &mut Shares, whose: Whose) -> usize {
        (0..ROOM * 2).take_while(|_| shares.take(whose)).count()
    }

    #[test]
    fn a_pod_that_floods_leaves_room_for_every_other() {
        let mut shares = Shares::new(ROOM);
        let flood = fill(&mut shares, Whose::pod(1));
        assert!((ROOM / 3..=ROOM / 3 + 1).contains(&flood), "{flood}");
        for other in 2..100 {
            assert!((0..50).all(|_| shares.take(Whose::pod(other))), "pod {other}");
        }
        assert!(!shares.take(Whose::pod(1)));
        // It alone has lost some.
        assert_eq!(shares.lost().collect::<Vec<_>>(), [(1, 2)]);
    }

    #[test]
    fn a_client_that_floods_a_pod_leaves_room_for_its_others_and_for_the_pod() {
        let mut shares = Shares::new(ROOM);
        fill(&mut shares, client(1, 1));
        assert!(fill(&mut shares, client(1, 2)) > 800);
        assert!(fill(&mut shares, Whose::pod(1)) > 250);
        assert!(fill(&mut shares, Whose::pod(2)) > 1000);
    }

    #[test]
    fn clients_without_number_take_half_of_the_room_at_most() {
        let mut shares = Shares::new(ROOM);
        let taken = (0..=u8::MAX).map(|n| fill(&mut shares, client(1, n))).sum::<usize>();
        assert!(taken <= ROOM / 2 + 1, "{taken}");
        assert!(fill(&mut shares, Whose::pod(2)) > 1000);
    }

    #[test]
    fn the_program_has_all_that_is_free() {
        let mut shares = Shares::new(ROOM);
        let flood = fill(&mut shares, Whose::pod(1));
        assert_eq!(fill(&mut shares, Whose::PROGRAM), ROOM - flood);
        assert!(!shares.take(Whose::pod(2)));
    }

    #[test]
    fn what_was_written_is_room_again_and_nothing_is_kept_of_it() {
        let mut shares = Shares::new(ROOM);
        for _ in 0..3 {
            let taken = fill(&mut shares, client(1, 1));
            assert!(taken >= ROOM / 3);
            (0..taken).for_each(|_| shares.give_back(client(1, 1)));
        }
        assert!(shares.of_pods.is_empty() && shares.of_clients.is_empty());
        assert_eq!(shares.waiting, 0);
    }

    #[test]
    fn losses_are_told_once_and_stay_counted() {
        let mut shares = Shares::new(2);
        while shares.take(Whose::pod(7)) {}
        assert!(!shares.take(Whose::pod(7)));
        assert_eq!(shares.lost_since(), [(7, 2)]);
        assert_eq!(shares.lost_since(), []);
        assert!(!shares.take(Whose::pod(7)));
        assert_eq!(shares.lost_since(), [(7, 1)]);
        shares.forget(7);
        assert_eq!(shares.lost().collect::<Vec<_>>(), [(0, 3)]);
    }

    #[test]
    fn work_within_work_is_its_own_and_what_it_was_before_afterwards() {
        let of_client = client(3, 1);
        of_client.within(|| {
            assert_eq!(Whose::now_within(3), of_client);
            assert_eq!(Whose::now_within(4), Whose::pod(4));
            Whose::pod(4).within(|| assert_eq!(Whose::now(), Whose::pod(4)));
            assert_eq!(Whose::now(), of_client);
        });
        assert_eq!(Whose::now(), Whose::PROGRAM);
    }
}
