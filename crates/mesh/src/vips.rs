//! Which service an address means, and to whom: one that is visible in its own namespace alone
//! stands in nobody else's way.

use crate::{
    claims::{Claims, Place},
    hash::HashMap,
    model::{ByKey, Mode, Service, Workload},
};
use std::{net::IpAddr, sync::Arc};

#[derive(Debug, Default)]
pub(crate) struct Vips {
    public: Claims<ByKey>,
    /// Of services that are visible in one namespace, by that namespace; and of all of them.
    private: HashMap<Arc<str>, Claims<ByKey>>,
    hidden: Claims<ByKey>,
}

/// The addresses by which a service is found. Connections that pass through go to whoever has the
/// address: such a service stands before nobody.
fn places(s: &Service) -> &[Place] {
    if s.load_balancing.mode == Mode::Passthrough { &[] } else { &s.addresses }
}

impl Vips {
    /// Takes what `new` has, and lets go of what only its version before had.
    pub(crate) fn replace(&mut self, old: Option<&Arc<Service>>, new: Option<&Arc<Service>>) {
        if let Some(old) = old {
            let kept =
                |p: &Place| new.is_some_and(|n| n.private == old.private && places(n).contains(p));
            for place in places(old).iter().filter(|p| !kept(p)) {
                self.release(old, place);
            }
        }
        if let Some(new) = new {
            for place in places(new) {
                if new.private {
                    let own = self.private.entry(new.key.namespace.clone()).or_default();
                    own.claim(place.clone(), ByKey(new.clone()));
                    self.hidden.claim(place.clone(), ByKey(new.clone()));
                } else {
                    self.public.claim(place.clone(), ByKey(new.clone()));
                }
            }
        }
    }

    fn release(&mut self, s: &Arc<Service>, place: &Place) {
        let by = ByKey(s.clone());
        if !s.private {
            self.public.release(place, &by);
            return;
        }
        self.hidden.release(place, &by);
        if let Some(own) = self.private.get_mut(&s.key.namespace) {
            own.release(place, &by);
            if own.is_empty() {
                self.private.remove(&s.key.namespace);
            }
        }
    }

    /// The service of this address for `source`: its own namespace's first.
    pub(crate) fn holder(&self, source: &Workload, ip: IpAddr) -> Option<&Arc<Service>> {
        let own = self.private.get(&source.namespace);
        own.and_then(|own| own.holder(&source.network, ip))
            .or_else(|| self.public.holder(&source.network, ip))
            .map(|s| &s.0)
    }

    /// A service of this address that others than `source` may see.
    pub(crate) fn hidden(&self, source: &Workload, ip: IpAddr) -> Option<&Arc<Service>> {
        self.hidden.holder(&source.network, ip).map(|s| &s.0)
    }
}
