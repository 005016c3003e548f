//! Which service an address means, and to whom: one that is visible in its own namespace alone
//! stands in nobody else's way.

use crate::{
    claims::{Claims, Place},
    hash::HashMap,
    model::{Mode, NamespacedHostname, Service, Workload},
};
use std::{net::IpAddr, sync::Arc};

#[derive(Debug, Default)]
pub(crate) struct Vips {
    public: Claims<NamespacedHostname>,
    /// Of services that are visible in one namespace, by that namespace; and of all of them.
    private: HashMap<Arc<str>, Claims<NamespacedHostname>>,
    hidden: Claims<NamespacedHostname>,
}

/// The addresses by which a service is found. Connections that pass through go to whoever has the
/// address: such a service stands before nobody.
fn places(s: &Service) -> &[Place] {
    if s.load_balancing.mode == Mode::Passthrough { &[] } else { &s.addresses }
}

impl Vips {
    /// Takes what `new` has, and lets go of what only its version before had.
    pub(crate) fn replace(&mut self, old: Option<&Service>, new: Option<&Service>) {
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
                    own.claim(place.clone(), new.key.clone());
                    self.hidden.claim(place.clone(), new.key.clone());
                } else {
                    self.public.claim(place.clone(), new.key.clone());
                }
            }
        }
    }

    fn release(&mut self, s: &Service, place: &Place) {
        if !s.private {
            self.public.release(place, &s.key);
            return;
        }
        self.hidden.release(place, &s.key);
        if let Some(own) = self.private.get_mut(&s.key.namespace) {
            own.release(place, &s.key);
            if own.is_empty() {
                self.private.remove(&s.key.namespace);
            }
        }
    }

    /// The service of this address for `source`: its own namespace's first.
    pub(crate) fn holder(&self, source: &Workload, ip: IpAddr) -> Option<&NamespacedHostname> {
        let own = self.private.get(&source.namespace);
        own.and_then(|own| own.holder(&source.network, ip))
            .or_else(|| self.public.holder(&source.network, ip))
    }

    /// A service of this address that others than `source` may see.
    pub(crate) fn hidden(&self, source: &Workload, ip: IpAddr) -> Option<&NamespacedHostname> {
        self.hidden.holder(&source.network, ip)
    }
}
