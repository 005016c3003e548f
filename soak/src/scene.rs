//! What all threads of a soak share: the mesh, the time, and the notes that are judged at the end.

use crate::{attempts::Attempt, cast::Cast, wire::Wire};
use culvert_tests::{Mesh, MeshPod};
use std::{
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// From when to when; without an end it lasts.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: SystemTime,
    pub to: Option<SystemTime>,
}

impl Span {
    /// Whether they have an instant in common, give or take `margin` on either side.
    pub fn meets(&self, from: SystemTime, to: SystemTime, margin: Duration) -> bool {
        self.from <= to + margin && self.to.is_none_or(|end| end + margin >= from)
    }

    pub fn holds(&self, from: SystemTime, to: SystemTime) -> bool {
        self.from <= from && self.to.is_none_or(|end| end >= to)
    }
}

/// Who had an address.
pub struct Tenancy {
    pub addresses: [IpAddr; 2],
    pub identity: String,
    pub span: Span,
}

/// A node without an agent.
pub struct Outage {
    pub node: usize,
    pub span: Span,
}

/// A state of the policies that change: whom the volatile port admits, from when to when for sure.
pub struct Reign {
    pub admitted: Vec<String>,
    pub span: Span,
}

/// Notes of what has happened.
#[derive(Default)]
pub struct Notes {
    pub attempts: Vec<Attempt>,
    pub tenancies: Vec<Tenancy>,
    pub outages: Vec<Outage>,
    pub reigns: Vec<Reign>,
    /// Spans in which policies were changing.
    pub changes: Vec<Span>,
    pub weather: Vec<&'static str>,
    pub wire: Wire,
    /// What broke the soak itself.
    pub broken: Vec<String>,
}

pub struct Scene {
    pub mesh: Mesh,
    pub cast: Cast,
    /// Guests that can be called on. Whoever calls holds a handle until it is done.
    pub guests: Mutex<Vec<Arc<MeshPod>>>,
    /// Held while an address changes hands, so that nobody who is not enrolled yet has one that
    /// somebody is calling.
    pub moving: Mutex<()>,
    pub guests_seen: AtomicU64,
    notes: Mutex<Notes>,
    ended: AtomicBool,
}

impl Scene {
    pub fn set() -> Self {
        let mesh = Mesh::builder("soak")
            // Renewed every ten seconds.
            .cert_ttl_seconds(20)
            .agent_args(&["--pool-idle-seconds", "2", "--drain-seconds", "3"])
            .build();
        let notes = Mutex::new(Notes::default());
        let cast = Cast::enter(&mesh);
        let scene = Self {
            mesh,
            cast,
            guests: Mutex::default(),
            moving: Mutex::default(),
            guests_seen: AtomicU64::new(0),
            notes,
            ended: AtomicBool::new(false),
        };
        for pod in scene.cast.clients.iter().chain(&scene.cast.servers) {
            scene.moved_in(pod, SystemTime::now());
        }
        scene
    }

    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod has its addresses from now on, and whoever had them before has not.
    pub fn moved_in(&self, pod: &MeshPod, since: SystemTime) {
        let addresses = [pod.ipv4().into(), pod.ipv6().into()];
        let mut notes = self.notes();
        for t in notes.tenancies.iter_mut().filter(|t| t.addresses == addresses) {
            t.span.to.get_or_insert(since);
        }
        let span = Span { from: since, to: None };
        notes.tenancies.push(Tenancy { addresses, identity: pod.identity(), span });
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Waits, but not beyond the end.
    pub fn pause(&self, for_: Duration) {
        let until = Instant::now() + for_;
        while !self.has_ended() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// The harness panics where it cannot go on; that ends the soak, and is told at its end.
    pub fn guard(&self, who: &str, f: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(f)).is_err() {
            self.notes().broken.push(format!("{who} could not go on: see the panic above"));
            self.end();
        }
    }
}
