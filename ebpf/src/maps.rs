//! The maps, and the few questions every program asks of them.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE},
    btf_maps::{Array, HashMap, PerCpuHashMap, RingBuf, SockHash},
    helpers::{bpf_get_netns_cookie, bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
};
use capture_abi::{
    Addr, Counts, Event, Flow, FlowKey, ListenerKey, Pod, ServerKey, Sock, Way, WayKey, flow_kind,
};
use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Enrolled pods by network-namespace cookie.
#[btf_map]
pub static PODS: HashMap<u64, Pod, 4096> = HashMap::new();

/// Owners of the pods of `PODS` by their addresses. Nothing rests on it but what is paced, and where an
/// announcement is looked for: an address may be shared, or forged on a pod's loopback.
#[btf_map]
pub static HERE: HashMap<Addr, u32, 8192, ON_DEMAND> = HashMap::new();

/// Connections of enrolled pods; sized by the loader.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 262144, ON_DEMAND> = HashMap::new();

/// Connections older than a pod's enrolment; written by the agent.
#[btf_map]
pub static EARLIER: HashMap<FlowKey, Flow, 65536, ON_DEMAND> = HashMap::new();

/// Addresses that reach others by HBONE only, wherever they are; kept by the agent, from discovery.
#[btf_map]
pub static MESHED: HashMap<Addr, u32, 262144, ON_DEMAND> = HashMap::new();

/// The name servers that pods ask.
#[btf_map]
pub static SERVERS: HashMap<ServerKey, Addr, 65536, ON_DEMAND> = HashMap::new();

/// The agent's listeners; they leave the map when the agent dies.
#[btf_map]
pub static LISTENERS: SockHash<ListenerKey, 32768> = SockHash::new();

/// What pods may connect to past the agent; written by it.
#[btf_map]
pub static WAYS: HashMap<WayKey, Way, 16384, ON_DEMAND> = HashMap::new();

/// What `WAYS` and what came of them rest on; written by the agent.
#[btf_map]
pub static LEASE: Array<u64, 2> = Array::new();

/// Bytes of EVENTS, of which each takes 120. The agent has them in its memory twice; it is woken when a quarter waits.
const NEWS: usize = 512 * 1024;

/// Openings and ends of connections that go past the agent, for its log and metrics.
#[btf_map]
pub static EVENTS: RingBuf<Event, NEWS> = RingBuf::new();

/// Per pod, by owner; the agent makes the entry at enrolment.
#[btf_map]
pub static COUNTS: PerCpuHashMap<u32, Counts, 8192> = PerCpuHashMap::new();

/// How many entries FLOWS holds: what would find it full is refused where it can still be refused,
/// in the connect hook and in `lookup`.
#[btf_map]
pub static IN_USE: Array<u64, 1> = Array::new();

/// How many of them are a pod's, by owner; the agent makes the entry at enrolment.
#[btf_map]
pub static OWN: HashMap<u32, u64, 8192> = HashMap::new();

/// Socket storage. BPF_F_CLONE makes a connection that the agent accepts carry its listener's mark.
#[btf_map]
pub static SOCKS: SockStorage = SockStorage::new();

const CLONED_ON_DEMAND: usize = (BPF_F_NO_PREALLOC | aya_ebpf::bindings::BPF_F_CLONE) as usize;

/// `aya_ebpf`'s own definition of socket storage has no room for BPF_F_CLONE.
#[repr(C)]
pub struct SockStorage {
    r#type: *const [i32; aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Sock,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; CLONED_ON_DEMAND],
}

// SAFETY: the fields describe the map to the loader and are never read.
unsafe impl Sync for SockStorage {}

impl SockStorage {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    fn map(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// What is stored with `sk`, which comes from a program's context.
    #[inline(always)]
    pub fn get<'a>(&self, sk: *mut c_void) -> Option<&'a mut Sock> {
        if sk.is_null() {
            return None;
        }
        // SAFETY: the verifier checks `sk`; storage lives as long as the socket, which the context holds.
        unsafe { bpf_sk_storage_get(self.map(), sk, ptr::null_mut(), 0).cast::<Sock>().as_mut() }
    }

    #[inline(always)]
    pub fn set(&self, sk: *mut c_void, value: Sock) -> bool {
        if sk.is_null() {
            return false;
        }
        let mut value = value;
        // SAFETY: as in `get`; the initial value is on this stack.
        let stored = unsafe {
            bpf_sk_storage_get(
                self.map(),
                sk,
                (&raw mut value).cast(),
                BPF_SK_STORAGE_GET_F_CREATE as u64,
            )
            .cast::<Sock>()
            .as_mut()
        };
        match stored {
            Some(s) => {
                *s = value;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    pub fn clear(&self, sk: *mut c_void) {
        if !sk.is_null() {
            // SAFETY: as in `get`.
            unsafe { bpf_sk_storage_delete(self.map(), sk) };
        }
    }
}

/// The capacity of FLOWS less a margin for connects under way; set by the loader.
#[unsafe(no_mangle)]
static FLOW_LIMIT: u64 = 250_000;

/// Whose traffic this is: the one place that decides it. By network namespace, which a process in
/// a pod cannot forge.
#[inline(always)]
pub fn owner(ctx: *mut c_void) -> Option<&'static Pod> {
    // SAFETY: `ctx` is a program's context, which this helper takes.
    let netns = unsafe { bpf_get_netns_cookie(ctx) };
    // SAFETY: an entry that the agent rewrites in place stays valid memory until the program ends.
    unsafe { PODS.get(netns) }
}

/// Whether `owner` must do without another flow. A pod may have as many as are free: so many greedy
/// pods share the table equally, and as much again is left for whoever comes next.
#[inline(always)]
pub fn no_room(owner: u32) -> bool {
    // SAFETY: FLOW_LIMIT is a constant of the loaded program.
    let limit = unsafe { ptr::read_volatile(&raw const FLOW_LIMIT) };
    // SAFETY: the entry is read at once.
    let own = unsafe { OWN.get(owner) }.copied().unwrap_or(0) as i64;
    match IN_USE.get(0) {
        // Below zero after an agent that did not count: flows of then are withdrawn now.
        Some(n) => (*n as i64).max(0) + own.max(0) >= limit as i64,
        None => true,
    }
}

#[inline(always)]
fn add(count: Option<*mut u64>, n: u64) {
    if let Some(count) = count {
        // `AtomicU64` has no read-modify-write on this target, whose oldest CPUs lack compare-and-
        // swap; atomic addition is in all of them.
        // SAFETY: the map's memory is aligned to eight bytes and changed only here.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, n) };
    }
}

#[inline(always)]
fn in_use_add(owner: u32, n: u64) {
    add(IN_USE.get_ptr_mut(0), n);
    add(OWN.get_ptr_mut(owner), n);
}

/// Whose share of the table an entry takes up: of a connection past the agent it is the client's, or it would use up
/// its server's.
#[inline(always)]
fn charged(key: &FlowKey, flow: &Flow) -> u32 {
    if flow_kind::is_past_the_agent(flow.kind) { flow.peer } else { key.owner }
}

/// Announces a flow. A tuple that is announced already belongs to a socket that is gone or going.
#[inline(always)]
pub fn announce(key: &FlowKey, flow: &Flow) -> bool {
    let to = charged(key, flow);
    if FLOWS.insert(key, flow, BPF_NOEXIST as u64).is_ok() {
        in_use_add(to, 1);
        return true;
    }
    // SAFETY: the entry is read at once.
    let before = unsafe { FLOWS.get(key) }.map_or(to, |f| charged(key, f));
    let replaced = FLOWS.insert(key, flow, aya_ebpf::bindings::BPF_EXIST as u64).is_ok();
    if replaced && before != to {
        add(OWN.get_ptr_mut(before), u64::MAX);
        add(OWN.get_ptr_mut(to), 1);
    }
    replaced
}

/// `flow`: as it was announced.
#[inline(always)]
pub fn withdraw(key: &FlowKey, flow: &Flow) {
    let to = charged(key, flow);
    if FLOWS.remove(key).is_ok() {
        in_use_add(to, u64::MAX);
    }
}

/// Counts for `owner` on this CPU.
#[inline(always)]
pub fn count(owner: u32, field: impl FnOnce(&mut Counts)) {
    if let Some(c) = COUNTS.get_ptr_mut(owner) {
        // SAFETY: the slot is this CPU's own, and the program is not preempted by another user of it.
        field(unsafe { &mut *c });
    }
}
