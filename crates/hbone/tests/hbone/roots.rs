//! Roots that become others while connections stand: whom a handshake trusts is what the store trusts then.

use crate::pair::{connect, raw_pair};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use hbone::accept;
use identity::{CaError, CertStore, CertificateAuthority, Certified, Roots, SpiffeId};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use scripted::pki::{Pki, good_leaf};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// An authority that becomes another.
struct Ca(Mutex<Arc<Pki>>);

#[async_trait]
impl CertificateAuthority for Ca {
    async fn certify(&self, identity: &SpiffeId, csr_pem: &str) -> Result<Vec<String>, CaError> {
        let pki = self.0.lock().unwrap().clone();
        Ok(vec![pki.certify(csr_pem, &good_leaf(&identity.to_string()))])
    }
}

fn roots(of: &[&Pki]) -> Roots {
    let ders: Vec<_> = of
        .iter()
        .map(|pki| CertificateDer::from_pem_slice(pki.root_pem().as_bytes()).unwrap())
        .collect();
    Roots::from_ders("cluster.local", &ders).unwrap()
}

async fn meet(client: &Certified, server: &Certified) -> bool {
    let (near, far) = raw_pair();
    let (near, far) =
        tokio::join!(connect(near, client, server), accept(far, server.server.clone()));
    near.is_ok() && far.is_ok()
}

async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < deadline, "not yet: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn handshakes_go_by_the_roots_of_the_moment() {
    let (a, b) = (Arc::new(Pki::new("cluster.local")), Arc::new(Pki::new("cluster.local")));
    let ca = Arc::new(Ca(Mutex::new(a.clone())));
    let store = CertStore::new(ca.clone(), Arc::new(ArcSwap::from_pointee(roots(&[&a]))));
    let own = a.id("own");
    store.want(&own);
    let first = store.fetch(&own, PATIENCE).await.unwrap();
    assert!(meet(&a.certified("peer"), &first).await);

    // Of both: who has the other's is taken, and this one's own certificate stays as it is.
    store.trust(roots(&[&a, &b]));
    eventually("a peer of b's is taken", async || {
        let own = store.current(&own).unwrap();
        meet(&trusting_both(&a, &b, &b, "peer"), &own).await
    })
    .await;
    let second = store.current(&own).unwrap();
    assert_eq!((second.generation, &second.serial), (first.generation, &first.serial));

    // Of b alone: the certificate leads nowhere now, and is asked for anew, from whoever answers.
    *ca.0.lock().unwrap() = b.clone();
    store.trust(roots(&[&b]));
    eventually("a certificate of b's", async || {
        store.current(&own).unwrap().serial != first.serial
    })
    .await;
    let third = store.current(&own).unwrap();
    assert!(meet(&b.certified("peer"), &third).await);
    assert!(!meet(&trusting_both(&a, &b, &a, "peer"), &third).await, "a is trusted no more");
}

/// Certified by `by`, and trusts both.
fn trusting_both(a: &Pki, b: &Pki, by: &Pki, account: &str) -> Certified {
    let id = by.id(account);
    let request = identity::new_request(&id).unwrap();
    let pem = by.certify(&request.csr_pem, &good_leaf(&id.to_string()));
    Certified::new(&id, request, &[pem], Arc::new(roots(&[a, b]))).unwrap()
}

#[tokio::test]
async fn a_certificate_that_leads_nowhere_is_used_until_another_comes() {
    let (a, b) = (Arc::new(Pki::new("cluster.local")), Arc::new(Pki::new("cluster.local")));
    let ca = Arc::new(Ca(Mutex::new(a.clone())));
    let store = CertStore::new(ca.clone(), Arc::new(ArcSwap::from_pointee(roots(&[&a]))));
    let own = a.id("own");
    store.want(&own);
    let first = store.fetch(&own, PATIENCE).await.unwrap();
    // The authority has not changed: what it gives is taken by nobody.
    store.trust(roots(&[&b]));
    eventually("the CA was asked, in vain", async || store.status()[0].last_error.is_some()).await;
    let kept = store.current(&own).unwrap();
    assert_eq!(kept.serial, first.serial);
    assert!(meet(&trusting_both(&a, &b, &b, "peer"), &kept).await, "and it trusts b already");
    *ca.0.lock().unwrap() = b.clone();
    eventually("a certificate of b's", async || {
        store.current(&own).unwrap().serial != first.serial
    })
    .await;
}
