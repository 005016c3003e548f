//! What many workloads have in common is kept once. The pods of one Deployment differ in their uid,
//! name, addresses and site, and in nothing else: the rest of their messages is the same to the
//! byte, by which it is known again before any of it is decoded.

use crate::{
    convert::{self, Invalid},
    hash::{HashMap, HashSet},
    model::{
        Kin, Locality, NamespacedHostname, PortMapping, Service, Site, Workload, incarnation,
        last_part,
    },
};
use policy::PolicyName;
use prost::Message;
use std::{
    borrow::Borrow,
    fmt,
    hash::{BuildHasher as _, Hash, RandomState},
    net::IpAddr,
    sync::Arc,
};
use xds::{
    Version,
    proto::workload as pb,
    wire::{Fields, Malformed},
};

#[derive(Debug, Default)]
pub(crate) struct Shared {
    words: Pool<Arc<str>>,
    policies: Pool<Arc<[PolicyName]>>,
    ports: Pool<Arc<[PortMapping]>>,
    sites: Known<Box<[u8]>, Site>,
    kin: Known<u128, Kin>,
    digest: Digest,
    /// Whose turn it was last: what belongs together nearly always comes together.
    last: Option<(Vec<u8>, Arc<Kin>)>,
    /// Kept between messages for their room.
    common: Vec<u8>,
    place: Vec<u8>,
}

/// The fields of `istio.workload.Workload` that are a workload's own, beside its [`Site`]'s.
#[derive(Default)]
struct Own<'a> {
    name: &'a str,
    addresses: Vec<&'a [u8]>,
    uid: &'a str,
    pod_uid: &'a str,
}

type Parts = (Vec<IpAddr>, Arc<Site>, Arc<Kin>);

/// Those of its [`Site`].
#[derive(Clone, PartialEq, Message)]
struct Place {
    #[prost(string, tag = "9")]
    node: String,
    #[prost(message, optional, tag = "24")]
    locality: Option<pb::Locality>,
}

/// What bytes are known by, instead of by themselves: keyed, so that nobody who chooses what is in a
/// message can make two alike.
#[derive(Debug, Default)]
struct Digest(RandomState);

impl Digest {
    /// Of one key, two hashes of two different things.
    fn of(&self, bytes: &[u8]) -> u128 {
        let half = |which: u64| u128::from(self.0.hash_one((which, bytes)));
        half(0) << 64 | half(1)
    }
}

impl Shared {
    /// The workload of an `istio.workload.Workload` on the wire, which is named `name`, and its
    /// `metadata.uid`. The error comes with the addresses that can be read of it.
    pub(crate) fn workload<'a>(
        &mut self,
        name: &str,
        version: Version,
        message: &'a [u8],
    ) -> Result<(Workload, &'a str), (Invalid, Vec<IpAddr>)> {
        let own = self.apart(message).map_err(|e| (undecodable(&e), Vec::new()))?;
        let (addresses, site, kin) = self
            .with_own(name, &own)
            .map_err(|e| (e, convert::readable_addresses(&own.addresses)))?;
        let workload = Workload {
            other_name: (own.name != last_part(name)).then(|| Box::new(own.name.into())),
            uid: name.into(),
            version,
            addresses: addresses.into(),
            incarnation: (!own.pod_uid.is_empty()).then(|| incarnation(own.pod_uid)),
            site,
            kin,
        };
        Ok((workload, own.pod_uid))
    }

    /// Takes a message apart: its own fields, and as they came those of its place and the rest.
    fn apart<'a>(&mut self, message: &'a [u8]) -> Result<Own<'a>, Malformed> {
        self.common.clear();
        self.place.clear();
        let mut own = Own::default();
        // What has been passed over since the last field that is not common.
        let mut common = message;
        let mut fields = Fields::of(message);
        loop {
            let before = fields.left();
            let Some(field) = fields.next().transpose()? else { break };
            match field.tag {
                1 => own.name = field.text()?,
                3 => own.addresses.push(field.bytes()?),
                9 | 24 => self.place.extend_from_slice(field.whole),
                20 => own.uid = field.text()?,
                1000 => own.pod_uid = field.text()?,
                _ => continue,
            }
            let passed = common.len() - before.len();
            self.common.extend_from_slice(common.get(..passed).unwrap_or_default());
            common = fields.left();
        }
        self.common.extend_from_slice(common);
        Ok(own)
    }

    fn with_own(&mut self, name: &str, own: &Own<'_>) -> Result<Parts, Invalid> {
        if own.uid.is_empty() {
            return Err(convert::invalid("uid", "is empty"));
        }
        if own.uid != name {
            return Err(convert::invalid("resource", format!("its uid is {}", own.uid)));
        }
        Ok((convert::addresses(&own.addresses)?, self.site()?, self.kin()?))
    }

    fn site(&mut self) -> Result<Arc<Site>, Invalid> {
        if let Some(site) = self.sites.all.get(&*self.place) {
            return Ok(site.clone());
        }
        let place = Place::decode(self.place.as_slice()).map_err(|e| undecodable(&e))?;
        let locality = place.locality.unwrap_or_default();
        let locality =
            Locality { region: locality.region, zone: locality.zone, subzone: locality.subzone };
        let site = Arc::new(Site { node: place.node, locality });
        self.sites.insert(self.place.as_slice().into(), site.clone());
        Ok(site)
    }

    fn kin(&mut self) -> Result<Arc<Kin>, Invalid> {
        if let Some((bytes, kin)) = &self.last
            && *bytes == self.common
        {
            return Ok(kin.clone());
        }
        let digest = self.digest.of(&self.common);
        let kin = match self.kin.all.get(&digest) {
            Some(kin) => kin.clone(),
            None => {
                let kin = Arc::new(self.new_kin()?);
                self.kin.insert(digest, kin.clone());
                kin
            }
        };
        let (bytes, last) = self.last.get_or_insert_with(|| (Vec::new(), kin.clone()));
        bytes.clone_from(&self.common);
        last.clone_from(&kin);
        Ok(kin)
    }

    fn new_kin(&mut self) -> Result<Kin, Invalid> {
        let message = pb::Workload::decode(self.common.as_slice()).map_err(|e| undecodable(&e))?;
        let mut kin = convert::kin_from_proto(message)?;
        for word in [
            &mut kin.namespace,
            &mut kin.network,
            &mut kin.trust_domain,
            &mut kin.service_account,
            &mut kin.canonical_name,
            &mut kin.canonical_revision,
            &mut kin.workload_name,
            &mut kin.cluster,
        ] {
            *word = self.words.share(word.clone());
        }
        for (key, value) in &mut kin.labels {
            *key = self.words.share(key.clone());
            *value = self.words.share(value.clone());
        }
        for (key, ports) in kin.services.iter_mut() {
            self.key(key);
            *ports = self.ports.share(ports.clone());
        }
        kin.policies = self.policies.share(kin.policies);
        Ok(kin)
    }

    /// Services and those that serve them have the same names.
    fn key(&mut self, key: &mut NamespacedHostname) {
        key.namespace = self.words.share(key.namespace.clone());
        key.hostname = self.words.share(key.hostname.clone());
    }

    pub(crate) fn service(&mut self, s: &mut Service) {
        self.key(&mut s.key);
        s.name = self.words.share(s.name.clone());
        s.ports = self.ports.share(s.ports.clone());
        for (network, _) in &mut s.addresses {
            *network = self.words.share(network.clone());
        }
    }
}

pub(crate) fn undecodable(e: &impl fmt::Display) -> Invalid {
    convert::invalid("resource", format!("cannot be decoded: {e}"))
}

/// How many there may be until what nobody has any more is looked for again.
fn swept(left: usize) -> usize {
    left * 2 + 64
}

/// What has been made of bytes, by what they are known by.
#[derive(Debug)]
struct Known<K, T> {
    all: HashMap<K, Arc<T>>,
    sweep_above: usize,
}

impl<K, T> Default for Known<K, T> {
    fn default() -> Self {
        Self { all: HashMap::default(), sweep_above: 0 }
    }
}

impl<K: Eq + Hash, T> Known<K, T> {
    fn insert(&mut self, key: K, value: Arc<T>) {
        if self.all.len() > self.sweep_above {
            self.all.retain(|_, v| Arc::strong_count(v) > 1);
            self.sweep_above = swept(self.all.len());
        }
        self.all.insert(key, value);
    }
}

#[derive(Debug)]
struct Pool<T> {
    all: HashSet<T>,
    sweep_above: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { all: HashSet::default(), sweep_above: 0 }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<Arc<T>> {
    fn share(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(there) = self.all.get(Borrow::<T>::borrow(&value)) {
            return there.clone();
        }
        if self.all.len() > self.sweep_above {
            self.all.retain(|v| Arc::strong_count(v) > 1);
            self.sweep_above = swept(self.all.len());
        }
        self.all.insert(value.clone());
        value
    }
}
