//! What many workloads have in common is kept once. The pods of one Deployment differ in their uid,
//! name, addresses and site, and in nothing else: the rest of their messages is the same to the
//! byte, by which it is known again before any of it is decoded.

use crate::{
    convert::{self, Invalid},
    hash::{HashMap, HashSet},
    model::{Kin, Locality, NamespacedHostname, Site, Workload, incarnation, last_part},
};
use policy::PolicyName;
use prost::{
    Message,
    bytes::Buf as _,
    encoding::{DecodeContext, WireType, decode_key, skip_field},
};
use std::{borrow::Borrow, hash::Hash, net::IpAddr, sync::Arc};
use xds::proto::workload as pb;

#[derive(Debug, Default)]
pub(crate) struct Shared {
    words: Pool<Arc<str>>,
    policies: Pool<Arc<[PolicyName]>>,
    sites: Pool<Arc<Site>>,
    kin: HashMap<Box<[u8]>, Arc<Kin>>,
    kin_swept: usize,
    /// Kept between messages for its room.
    common: Vec<u8>,
}

/// The fields of `istio.workload.Workload` that are a workload's own.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Own {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub addresses: Vec<Vec<u8>>,
    #[prost(string, tag = "9")]
    pub node: String,
    #[prost(int32, tag = "17")]
    pub status: i32,
    #[prost(string, tag = "20")]
    pub uid: String,
    #[prost(message, optional, tag = "24")]
    pub locality: Option<pb::Locality>,
    #[prost(string, tag = "1000")]
    pub pod_uid: String,
}

const OWN: [u32; 7] = [1, 3, 9, 17, 20, 24, 1000];

/// The fields of the message that are not [`Own`], as they came.
fn without_own(message: &[u8], rest: &mut Vec<u8>) -> Result<(), prost::DecodeError> {
    rest.clear();
    let mut left = message;
    while left.has_remaining() {
        let field = left;
        let (tag, kind): (u32, WireType) = decode_key(&mut left)?;
        skip_field(kind, tag, &mut left, DecodeContext::default())?;
        if !OWN.contains(&tag) {
            rest.extend_from_slice(field.get(..field.len() - left.len()).unwrap_or_default());
        }
    }
    Ok(())
}

impl Shared {
    /// The workload of an `istio.workload.Workload` on the wire, which is named `name`. The error
    /// comes with the addresses that can be read of it.
    pub(crate) fn workload(
        &mut self,
        name: &str,
        message: &[u8],
    ) -> Result<Workload, (Invalid, Vec<IpAddr>)> {
        let own = Own::decode(message).map_err(|e| (undecodable(&e), Vec::new()))?;
        match self.with_own(name, message, &own) {
            Ok((addresses, kin)) => {
                let locality = own.locality.unwrap_or_default();
                let site = self.sites.share(Arc::new(Site {
                    node: own.node,
                    locality: Locality {
                        region: locality.region,
                        zone: locality.zone,
                        subzone: locality.subzone,
                    },
                }));
                Ok(Workload {
                    other_name: (own.name != last_part(name)).then(|| own.name.into()),
                    uid: name.into(),
                    addresses: addresses.into(),
                    incarnation: (!own.pod_uid.is_empty()).then(|| incarnation(&own.pod_uid)),
                    // Not by a getter, for which an unknown value is the default: healthy.
                    healthy: own.status == pb::WorkloadStatus::Healthy as i32,
                    site,
                    kin,
                })
            }
            Err(e) => Err((e, convert::readable_addresses(&own.addresses))),
        }
    }

    fn with_own(
        &mut self,
        name: &str,
        message: &[u8],
        own: &Own,
    ) -> Result<(Vec<IpAddr>, Arc<Kin>), Invalid> {
        if own.uid.is_empty() {
            return Err(convert::invalid("uid", "is empty"));
        }
        if own.uid != name {
            return Err(convert::invalid("resource", format!("its uid is {}", own.uid)));
        }
        let addresses = convert::addresses(&own.addresses)?;
        let mut common = std::mem::take(&mut self.common);
        let kin = without_own(message, &mut common)
            .map_err(|e| undecodable(&e))
            .and_then(|()| self.kin_of(&common));
        self.common = common;
        Ok((addresses, kin?))
    }

    fn kin_of(&mut self, common: &[u8]) -> Result<Arc<Kin>, Invalid> {
        if let Some(kin) = self.kin.get(common) {
            return Ok(kin.clone());
        }
        let message = pb::Workload::decode(common).map_err(|e| undecodable(&e))?;
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
        for key in kin.services.keys_mut() {
            self.key(key);
        }
        kin.policies = self.policies.share(kin.policies);
        let kin = Arc::new(kin);
        if self.kin.len() > self.kin_swept {
            self.kin.retain(|_, k| Arc::strong_count(k) > 1);
            self.kin_swept = swept(self.kin.len());
        }
        self.kin.insert(common.into(), kin.clone());
        Ok(kin)
    }

    /// Services and those that serve them have the same names.
    pub(crate) fn key(&mut self, key: &mut NamespacedHostname) {
        key.namespace = self.words.share(key.namespace.clone());
        key.hostname = self.words.share(key.hostname.clone());
    }
}

fn undecodable(e: &prost::DecodeError) -> Invalid {
    convert::invalid("resource", format!("cannot be decoded: {e}"))
}

/// How many there may be until what nobody has any more is looked for again.
fn swept(left: usize) -> usize {
    left * 2 + 64
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
