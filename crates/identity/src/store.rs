//! Certificates by identity: fetched when first wanted, renewed at half life, used until they end.

use crate::{Certified, CertifiedError, Roots, SpiffeId, new_request};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use rand::Rng as _;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

/// Where certificates come from. What the CA answers is PEM, leaf first.
#[async_trait]
pub trait CertificateAuthority: Send + Sync + 'static {
    async fn certify(&self, identity: &SpiffeId, csr_pem: &str) -> Result<Vec<String>, CaError>;
}

#[derive(Debug, thiserror::Error, Clone)]
#[error("the certificate authority did not certify {identity}: {why}")]
pub struct CaError {
    pub identity: SpiffeId,
    pub why: String,
}

/// Certificates for the identities that somebody on this node wants.
pub struct CertStore {
    ca: Arc<dyn CertificateAuthority>,
    roots: Arc<ArcSwap<Roots>>,
    /// Goes up when the roots have become others.
    trusting: watch::Sender<u64>,
    entries: Mutex<HashMap<SpiffeId, Entry>>,
}

struct Entry {
    wanted_by: usize,
    state: watch::Receiver<State>,
    renewal: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct State {
    certified: Option<Arc<Certified>>,
    last_error: Option<Arc<str>>,
}

/// What is known about one identity's certificate.
#[derive(Clone, Debug)]
pub struct CertStatus {
    pub identity: SpiffeId,
    pub serial: Option<String>,
    pub not_before: Option<SystemTime>,
    pub not_after: Option<SystemTime>,
    pub last_error: Option<Arc<str>>,
}

/// A certificate, or why there is none to use.
pub type Usable = Result<Arc<Certified>, Arc<str>>;

/// First and last pause between attempts while the CA is away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));

/// How often the clock on the wall is looked at while a certificate lives.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

impl CertStore {
    pub fn new(ca: Arc<dyn CertificateAuthority>, roots: Arc<ArcSwap<Roots>>) -> Arc<Self> {
        Arc::new(Self { ca, roots, trusting: watch::Sender::new(0), entries: Mutex::default() })
    }

    /// Trusts these roots from now on, in every handshake that begins. Connections are left alone, and
    /// a certificate that leads to none of them is asked for anew; it is used until that has come.
    pub fn trust(&self, roots: Roots) {
        self.roots.store(Arc::new(roots));
        self.trusting.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Begins to hold a certificate for `identity`. Each call is undone by one [`CertStore::release`].
    pub fn want(&self, identity: &SpiffeId) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(identity) {
            entry.wanted_by += 1;
            return;
        }
        let (tx, state) = watch::channel(State::default());
        let renewal = Renewal {
            ca: self.ca.clone(),
            roots: self.roots.clone(),
            trusting: self.trusting.subscribe(),
            identity: identity.clone(),
            state: tx,
        };
        let renewal = tokio::spawn(renewal.keep_certified());
        entries.insert(identity.clone(), Entry { wanted_by: 1, state, renewal });
    }

    /// The last one to release an identity ends its renewal and forgets its key.
    pub fn release(&self, identity: &SpiffeId) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(identity) {
            entry.wanted_by = entry.wanted_by.saturating_sub(1);
            if entry.wanted_by == 0
                && let Some(entry) = entries.remove(identity)
            {
                entry.renewal.abort();
            }
        }
    }

    /// The certificate in use now.
    pub fn current(&self, identity: &SpiffeId) -> Usable {
        let state = self.state(identity).ok_or_else(|| unknown(identity))?.borrow().clone();
        usable(identity, &state)
    }

    /// As [`CertStore::current`], but waits up to `patience` for a first certificate.
    pub async fn fetch(&self, identity: &SpiffeId, patience: Duration) -> Usable {
        let mut receiver = self.state(identity).ok_or_else(|| unknown(identity))?;
        let first = receiver.wait_for(|s| usable(identity, s).is_ok());
        let waited = tokio::time::timeout(patience, first).await;
        match waited {
            Ok(Ok(state)) => usable(identity, &state),
            _ => self.current(identity),
        }
    }

    /// Whether there was a certificate, and it has run out.
    pub fn has_expired(&self, identity: &SpiffeId) -> bool {
        let now = SystemTime::now();
        let expired = |s: &State| s.certified.as_ref().is_some_and(|c| c.expired(now));
        self.state(identity).is_some_and(|s| expired(&s.borrow()))
    }

    pub fn status(&self) -> Vec<CertStatus> {
        let mut all: Vec<CertStatus> = self
            .lock()
            .iter()
            .map(|(identity, entry)| {
                let state = entry.state.borrow().clone();
                CertStatus {
                    identity: identity.clone(),
                    serial: state.certified.as_ref().map(|c| c.serial.clone()),
                    not_before: state.certified.as_ref().map(|c| c.not_before),
                    not_after: state.certified.as_ref().map(|c| c.not_after),
                    last_error: state.last_error,
                }
            })
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    fn state(&self, identity: &SpiffeId) -> Option<watch::Receiver<State>> {
        self.lock().get(identity).map(|e| e.state.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(identity: &SpiffeId) -> Arc<str> {
    format!("no pod of {identity} is enrolled on this node").into()
}

fn usable(identity: &SpiffeId, state: &State) -> Usable {
    match &state.certified {
        Some(c) if !c.expired(SystemTime::now()) => Ok(c.clone()),
        Some(_) => Err(format!(
            "the certificate of {identity} has expired and the CA gave no new one: {}",
            state.last_error.as_deref().unwrap_or("not tried yet")
        )
        .into()),
        None => Err(format!(
            "no certificate for {identity} yet: {}",
            state.last_error.as_deref().unwrap_or("the CA has not answered yet")
        )
        .into()),
    }
}

/// What keeps one identity certified.
struct Renewal {
    ca: Arc<dyn CertificateAuthority>,
    roots: Arc<ArcSwap<Roots>>,
    trusting: watch::Receiver<u64>,
    identity: SpiffeId,
    state: watch::Sender<State>,
}

impl Renewal {
    /// Fetches, waits for half of the life to pass, fetches again, for ever. A renewal never touches
    /// the connections that the earlier certificate made.
    async fn keep_certified(mut self) {
        let mut pause = BACKOFF.0;
        loop {
            match certify(&*self.ca, &self.identity, self.roots.load_full()).await {
                Ok(certified) => {
                    pause = BACKOFF.0;
                    let certified = Arc::new(certified);
                    self.state.send_replace(State {
                        certified: Some(certified.clone()),
                        last_error: None,
                    });
                    // A CA that hands out certificates past their half life is not asked in a spin.
                    sleep(BACKOFF.0).await;
                    // In steps: the clock on the wall may be set meanwhile.
                    loop {
                        let rests = certified.rests(SystemTime::now());
                        if rests.is_zero()
                            || self.rest(rests.min(CLOCK_CHECK)).await == LeadsToRoot::No
                        {
                            break;
                        }
                    }
                }
                Err(mut why) => {
                    why.push_str(likely_cause(&why));
                    // Quoted: the CA's words are one line, whatever is in them.
                    tracing::warn!(identity = %self.identity, why, "no new certificate");
                    self.state.send_modify(|s| s.last_error = Some(why.into()));
                    let jitter = rand::rng().random_range(0.5..1.0);
                    let _ = self.rest(pause.mul_f64(jitter)).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    /// Waits; roots that come meanwhile count at once. The answer is about the certificate in use.
    async fn rest(&mut self, time: Duration) -> LeadsToRoot {
        tokio::select! {
            () = sleep(time) => LeadsToRoot::AsBefore,
            // Without a sender the store is gone, and this task with it.
            Ok(()) = self.trusting.changed() => self.trust_anew(),
        }
    }

    fn trust_anew(&self) -> LeadsToRoot {
        let Some(certified) = self.state.borrow().certified.clone() else {
            return LeadsToRoot::AsBefore;
        };
        let roots = self.roots.load_full();
        match certified.trusting(roots.clone()) {
            Ok(anew) => self.state.send_modify(|s| s.certified = Some(Arc::new(anew))),
            Err(error) => {
                tracing::error!(identity = %self.identity, %error,
                    "the new roots cannot be used with this certificate");
            }
        }
        if certified.accepted_by(roots).is_ok() {
            return LeadsToRoot::AsBefore;
        }
        tracing::info!(identity = %self.identity,
            "the certificate leads to none of the new roots; asking for another");
        LeadsToRoot::No
    }
}

/// What is new is good from now on, and so is who gives it.
fn likely_cause(why: &str) -> &'static str {
    let of_time = ["not valid yet", "NotValidYet", "expired", "Expired"];
    // As rustls has it, and not what else a CA may say to have expired.
    if why.contains("invalid peer certificate") && of_time.iter().any(|w| why.contains(w)) {
        " (do this node's clock and the control plane's agree?)"
    } else {
        ""
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LeadsToRoot {
    AsBefore,
    No,
}

/// How long one request to the CA may take.
const CA_TIMEOUT: Duration = Duration::from_secs(10);

async fn certify(
    ca: &dyn CertificateAuthority,
    identity: &SpiffeId,
    roots: Arc<Roots>,
) -> Result<Certified, String> {
    let request = new_request(identity).map_err(|e| format!("no key could be made: {e}"))?;
    let chain = tokio::time::timeout(CA_TIMEOUT, ca.certify(identity, &request.csr_pem))
        .await
        .map_err(|_| format!("the CA did not answer within {CA_TIMEOUT:?}"))?
        .map_err(|e| e.to_string())?;
    Certified::from_ca(identity, request, &chain, roots).map_err(|e: CertifiedError| e.to_string())
}
