//! Who has an address. Two may claim one for a while: a pod's address goes to the next pod before
//! the first is reported gone, and services may share a virtual address. The last to claim it has
//! it; when that one lets go it is the other's again, and not an address outside the mesh.

use crate::hash::HashMap;
use std::{collections::BTreeMap, hash::Hash, net::IpAddr, sync::Arc};

/// An address in its network.
pub(crate) type Place = (Arc<str>, IpAddr);

#[derive(Debug)]
pub(crate) struct Claims<V> {
    /// By network, of which there are few, so that a look-up borrows its name.
    holders: HashMap<Arc<str>, Holders<V>>,
    /// Claims that a later one stands before; empty nearly always.
    earlier: HashMap<Place, Queue<V>>,
}

/// By address. Nearly all are of the older family, whose keys are small.
#[derive(Debug)]
struct Holders<V> {
    v4: HashMap<u32, V>,
    v6: HashMap<u128, V>,
}

/// In their order, and to be found without a walk: a careless control plane may let very many
/// claim one address.
#[derive(Debug)]
struct Queue<V> {
    by_turn: BTreeMap<u64, V>,
    turns: HashMap<V, u64>,
}

impl<V> Default for Claims<V> {
    fn default() -> Self {
        Self { holders: HashMap::default(), earlier: HashMap::default() }
    }
}

impl<V> Default for Holders<V> {
    fn default() -> Self {
        Self { v4: HashMap::default(), v6: HashMap::default() }
    }
}

impl<V> Holders<V> {
    fn get(&self, ip: IpAddr) -> Option<&V> {
        match ip {
            IpAddr::V4(ip) => self.v4.get(&ip.to_bits()),
            IpAddr::V6(ip) => self.v6.get(&ip.to_bits()),
        }
    }

    fn insert(&mut self, ip: IpAddr, v: V) -> Option<V> {
        match ip {
            IpAddr::V4(ip) => self.v4.insert(ip.to_bits(), v),
            IpAddr::V6(ip) => self.v6.insert(ip.to_bits(), v),
        }
    }

    fn remove(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => drop(self.v4.remove(&ip.to_bits())),
            IpAddr::V6(ip) => drop(self.v6.remove(&ip.to_bits())),
        }
    }

    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl<V> Default for Queue<V> {
    fn default() -> Self {
        Self { by_turn: BTreeMap::new(), turns: HashMap::default() }
    }
}

impl<V: Clone + Eq + Hash> Queue<V> {
    fn push(&mut self, v: V) {
        let turn = self.by_turn.last_key_value().map_or(0, |(last, _)| last + 1);
        self.turns.insert(v.clone(), turn);
        self.by_turn.insert(turn, v);
    }

    /// Whether it has a turn; its latest version is kept.
    fn renew(&mut self, v: &V) -> bool {
        let Some(turn) = self.turns.remove(v) else { return false };
        self.turns.insert(v.clone(), turn);
        self.by_turn.insert(turn, v.clone());
        true
    }

    fn remove(&mut self, v: &V) {
        if let Some(turn) = self.turns.remove(v) {
            self.by_turn.remove(&turn);
        }
    }

    fn pop(&mut self) -> Option<V> {
        let (_, v) = self.by_turn.pop_last()?;
        self.turns.remove(&v);
        Some(v)
    }
}

impl<V: Clone + Eq + Hash> Claims<V> {
    pub(crate) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    pub(crate) fn holder(&self, network: &str, ip: IpAddr) -> Option<&V> {
        self.holders.get(network)?.get(ip)
    }

    /// A claim that stands already keeps its turn: news of a pod that is ending does not take the
    /// address back.
    pub(crate) fn claim(&mut self, (network, ip): Place, by: V) {
        if !self.earlier.is_empty()
            && let Some(earlier) = self.earlier.get_mut(&(network.clone(), ip))
            && earlier.renew(&by)
        {
            return;
        }
        let before = match self.holders.get_mut(&*network) {
            Some(holders) => holders.insert(ip, by.clone()),
            None => self.holders.entry(network.clone()).or_default().insert(ip, by.clone()),
        };
        if let Some(before) = before.filter(|before| *before != by) {
            self.earlier.entry((network, ip)).or_default().push(before);
        }
    }

    pub(crate) fn release(&mut self, place: &Place, by: &V) {
        let (network, ip) = place;
        let mut next = None;
        let Some(holders) = self.holders.get_mut(network) else { return };
        let holds = holders.get(*ip) == Some(by);
        if let Some(earlier) = self.earlier.get_mut(place) {
            earlier.remove(by);
            if holds {
                next = earlier.pop();
            }
            if earlier.turns.is_empty() {
                self.earlier.remove(place);
            }
        }
        if holds {
            match next {
                Some(v) => drop(holders.insert(*ip, v)),
                None => holders.remove(*ip),
            }
            if holders.is_empty() {
                self.holders.remove(network);
            }
        }
    }
}
