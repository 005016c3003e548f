//! What the kernel programs and the agent say to each other through BPF maps.
//!
//! Every type is `#[repr(C)]`, without padding that either side could leave unwritten, since a map
//! compares keys byte by byte. Addresses are 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`;
//! ports are in host order.
#![no_std]

/// Raised whenever a type here, or the meaning of one of its fields, changes. An agent that finds
/// pinned maps of another version does not read them: it refuses to start, and says how to take
/// them away. Enrolled pods stay closed meanwhile.
pub const ABI_VERSION: u32 = 4;

/// An IP address as maps hold it: IPv6, or IPv4 mapped into it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    pub const UNSPECIFIED: Addr = Addr([0; 4]);

    /// `ip4` as the kernel's contexts hold it: network order in a native word.
    #[inline(always)]
    pub const fn v4(ip4: u32) -> Self {
        Addr([0, 0, 0xffff_u32.to_be(), ip4])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// The IPv4 address in network order; only meaningful when [`Addr::is_v4`].
    #[inline(always)]
    pub const fn ip4(&self) -> u32 {
        self.0[3]
    }

    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
    }

    /// From the sixteen bytes of an IPv6 address, in network order.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Addr([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The sixteen bytes of the IPv6 address, in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let mut out = [0u8; 16];
        let mut i = 0;
        while i < 4 {
            let b = self.0[i].to_ne_bytes();
            out[i * 4] = b[0];
            out[i * 4 + 1] = b[1];
            out[i * 4 + 2] = b[2];
            out[i * 4 + 3] = b[3];
            i += 1;
        }
        out
    }
}

/// An enrolled pod, by the cookie of its network namespace (`SO_NETNS_COOKIE`). Writing this entry
/// is enrolment; deleting it is un-enrolment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// The key of everything else that is kept about the pod.
    pub owner: u32,
    /// [`pod_flags`]
    pub flags: u32,
    pub ipv4: Addr,
    pub ipv6: Addr,
    /// Where the agent's resolver listens on the pod's loopback; zero when it does not.
    pub dns_port_v4: u16,
    pub dns_port_v6: u16,
    /// The host end of its one interface; zero when it has several.
    pub host_end: u32,
}

pub mod pod_flags {
    /// Let protocols other than TCP, UDP and ICMP leave the pod.
    pub const ALLOW_OTHER_PROTOCOLS: u32 = 1;
    /// Leave the pod's DNS alone.
    pub const OWN_DNS: u32 = 2;
    /// Connections to pods of this node may go past the agent.
    pub const DIRECT: u32 = 4;
}

/// One of the name servers that a pod asks. Each has an address on the pod's loopback, by which the
/// agent knows whom the application asked, and the application gets its answer from whom it asked.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ServerKey {
    pub owner: u32,
    /// Below [`DNS_SLOTS`].
    pub slot: u32,
}

/// Name servers that are kept per pod; resolvers know three at most (`MAXNS` of resolv.h). When a
/// pod asks more at a time, one takes another's place.
pub const DNS_SLOTS: u32 = 16;

pub const DNS_PORT: u16 = 53;

/// The slot's loopback address is this plus the slot: 127.127.53.0/28, in host order.
pub const DNS_V4: u32 = 0x7f7f_3500;

/// The last four bytes of the slot's address in [`SPREAD_V6`], plus the slot; the four before are
/// zero, which spread connections have once in 2^32.
pub const DNS_V6: u32 = 0x0000_3500;

/// One TCP connection of an enrolled pod, as the socket that owns it sees it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct FlowKey {
    pub owner: u32,
    /// IANA protocol number; TCP today.
    pub protocol: u32,
    pub local: Addr,
    pub remote: Addr,
    pub local_port: u16,
    pub remote_port: u16,
}

/// Why a flow may exist, and where a captured one was going.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// [`flow_kind`]
    pub kind: u32,
    pub port: u32,
    pub destination: Addr,
    /// Cookie of the socket that announced it: only that socket may withdraw it.
    pub cookie: u64,
    /// Of a flow between two pods of this node: the pod at the other end.
    pub peer: u32,
    /// Of a connection past the agent: the interface by which the other pod's packets enter the node.
    pub by: u32,
}

pub mod flow_kind {
    /// An application's connect, turned to the agent; lives until the agent has accepted it.
    pub const CAPTURED: u32 = 1;
    /// A connection that the agent made in the pod's namespace.
    pub const AGENT: u32 = 2;
    /// A connection that the agent accepted in the pod's namespace.
    pub const ACCEPTED: u32 = 3;
    /// A connection older than the enrolment.
    pub const EARLIER: u32 = 4;
    /// One that was being made at the enrolment: its SYN may have to be sent again.
    pub const EARLIER_SYN: u32 = 5;
    /// Between two pods of this node, past the agent: the tuple of the socket that connected, at the pod that it
    /// leads to.
    pub const ADMITTED: u32 = 6;
    /// The same, once it has been accepted: no second connection comes in by it.
    pub const ENTERED: u32 = 7;

    /// Whether it tells of a connection past the agent.
    #[inline(always)]
    pub const fn is_past_the_agent(kind: u32) -> bool {
        matches!(kind, ADMITTED | ENTERED)
    }
}

/// What a pod may connect to without the agent, by the address that its application asks for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct WayKey {
    /// The pod that connects.
    pub owner: u32,
    pub port: u32,
    /// A pod's address, or a service's.
    pub address: Addr,
}

/// Where such connects go. Written by the agent, for what policy allows by the two pods' identities
/// and the port alone; good for as long as the lease.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// Of what the agent knew when it wrote this: a way of another generation is not used.
    pub generation: u64,
    /// Endpoints to choose among, here and elsewhere. What falls to one elsewhere is the agent's.
    pub endpoints: u32,
    /// How many of `targets` are there.
    pub here: u32,
    pub targets: [Target; MOST_TARGETS],
}

/// A pod of this node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Target {
    pub owner: u32,
    pub port: u32,
    pub address: Addr,
}

/// What ways rest on, by its place in the array.
pub mod lease {
    /// Until when ways and what came of them hold, on the monotonic clock in nanoseconds.
    pub const UNTIL: u32 = 0;
    /// Ways of this generation are good.
    pub const GENERATION: u32 = 1;
}

/// Pods of this node that one [`Way`] leads to; connections to more of them go through the agent.
pub const MOST_TARGETS: usize = 16;

impl Default for Way {
    fn default() -> Self {
        Way { generation: 0, endpoints: 0, here: 0, targets: [Target::default(); MOST_TARGETS] }
    }
}

/// What became of a connection that goes past the agent, from the socket that connected.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// [`event_kind`]
    pub kind: u32,
    /// The state that the socket was in before it closed (`TCP_*` of net/tcp_states.h).
    pub state: u32,
    pub cookie: u64,
    pub flow: FlowKey,
    pub peer: u32,
    /// What the application had asked for.
    pub asked: Addr,
    pub asked_port: u32,
    pub reserved: u32,
    /// Bytes that the other end has acknowledged, and that came from it.
    pub sent: u64,
    pub received: u64,
    /// On the monotonic clock, in nanoseconds.
    pub at: u64,
}

pub mod event_kind {
    pub const OPENED: u32 = 1;
    pub const CLOSED: u32 = 2;
}

/// Set in [`Sock::port`] and [`Flow::port`] of a captured connection when a [`Way`] left it to the
/// agent: it is for an endpoint that is not among the way's targets.
pub const ELSEWHERE: u32 = 1 << 16;

/// What is kept with a socket (`BPF_MAP_TYPE_SK_STORAGE`), and dies with it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sock {
    /// [`sock_kind`]
    pub kind: u32,
    /// Whose it is, for as long as it lives: its pod may be un-enrolled before it closes.
    pub owner: u32,
    pub port: u32,
    /// [`sock_kind::DIRECT`]: the pod at the other end.
    pub peer: u32,
    pub destination: Addr,
    /// [`sock_kind::DIRECT`]: when it was let go, on the monotonic clock in 2^20 nanoseconds.
    pub at: u32,
}

pub mod sock_kind {
    /// Nothing to anybody.
    pub const NONE: u32 = 0;
    /// The agent's own: set through the socket's descriptor, which nobody in a pod can do.
    pub const AGENT: u32 = 1;
    /// An application's, captured; the destination is the one it asked for.
    pub const CAPTURED: u32 = 2;
    /// Accepted by the agent from a captured socket; the destination is the one asked for there.
    pub const HANDED_OVER: u32 = 3;
    /// An application's that connects to a pod of this node, past the agent; the destination is the
    /// one it asked for.
    pub const DIRECT: u32 = 4;
    /// An application's that accepted such a connection.
    pub const ADMITTED: u32 = 5;
}

/// Which of the agent's listeners in a pod.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ListenerKey {
    pub owner: u32,
    /// [`listener`]
    pub kind: u32,
}

pub mod listener {
    pub const OUTBOUND_V4: u32 = 0;
    pub const OUTBOUND_V6: u32 = 1;
    pub const PLAINTEXT_V4: u32 = 2;
    pub const PLAINTEXT_V6: u32 = 3;
    pub const HBONE_V4: u32 = 4;
    pub const HBONE_V6: u32 = 5;
    pub const DNS_V4: u32 = 6;
    pub const DNS_V6: u32 = 7;
    /// How many there are.
    pub const KINDS: u32 = 8;
}

/// What one pod's guard and capture have seen, per CPU; the agent sums.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub captured: u64,
    pub announce_failed: u64,
    pub dropped_syn: u64,
    pub dropped_segment: u64,
    pub dropped_fragment: u64,
    pub dropped_protocol: u64,
    pub dropped_malformed: u64,
    pub passed_udp: u64,
    pub passed_icmp: u64,
    pub passed_other: u64,
    /// From the wire, with the tuple of a last hop.
    pub dropped_impostor: u64,
    /// Connects in plaintext of pods that are to come by HBONE.
    pub refused_plaintext: u64,
    /// Connects that went past the agent.
    pub direct: u64,
    /// Packets of such connections that came when the agent's lease had ended.
    pub dropped_lease: u64,
    /// Their openings and ends that the agent was not told of.
    pub untold: u64,
}

impl core::ops::AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, c: &Counts) {
        self.captured += c.captured;
        self.announce_failed += c.announce_failed;
        self.dropped_syn += c.dropped_syn;
        self.dropped_segment += c.dropped_segment;
        self.dropped_fragment += c.dropped_fragment;
        self.dropped_protocol += c.dropped_protocol;
        self.dropped_malformed += c.dropped_malformed;
        self.passed_udp += c.passed_udp;
        self.passed_icmp += c.passed_icmp;
        self.passed_other += c.passed_other;
        self.dropped_impostor += c.dropped_impostor;
        self.refused_plaintext += c.refused_plaintext;
        self.direct += c.direct;
        self.dropped_lease += c.dropped_lease;
        self.untold += c.untold;
    }
}

/// On the last hop's packets, so that the application's answers stay on `lo`. It decides routing
/// within the pod and nothing else: a pod that sets it on its own packets only loses them.
pub const LAST_HOP_MARK: u32 = 0x0c75_0001;

/// The port on which peers speak HBONE to a pod.
pub const HBONE_PORT: u16 = 15008;

/// Captured IPv6 connections are spread over this /64, local to `lo` in each enrolled pod.
pub const SPREAD_V6: [u8; 8] = [0xfd, 0x63, 0x75, 0x6c, 0x76, 0x65, 0x72, 0x74];

/// Captured IPv4 connections are spread over 127.128.0.0/9, away from the loopback addresses that people use: the
/// address, in host order, for a random number. The third byte is even, so that none is 127.255.255.255: that is
/// `lo`'s broadcast address, to which TCP does not connect (ENETUNREACH).
#[inline(always)]
pub const fn spread_v4(random: u32) -> u32 {
    0x7f80_0001 | (random & 0x007f_fefe)
}

pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;

#[cfg(feature = "aya")]
mod plain {
    // SAFETY: each is #[repr(C)], Copy, made of integers only, with no padding and no invalid bits.
    unsafe impl aya::Pod for super::Pod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Sock {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ListenerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ServerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Addr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::WayKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Way {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Event {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn captured_connections_are_spread_over_addresses_that_tcp_connects_to() {
        for random in [0, 1, 0xff, 0xff00, 0x007f_ffff, 0x0080_0000, u32::MAX] {
            let spread = spread_v4(random);
            assert_eq!(spread >> 23, 0x7f80_0000 >> 23, "{spread:x} is not in 127.128.0.0/9");
            assert_ne!(spread, 0x7fff_ffff, "lo's broadcast address");
            assert_ne!(spread & 0xff, 0, "{spread:x} may be a network's own address");
        }
    }

    #[test]
    fn no_type_has_padding() {
        assert_eq!(size_of::<Pod>(), 4 + 4 + 16 + 16 + 2 + 2 + 4);
        assert_eq!(size_of::<ServerKey>(), 8);
        assert_eq!(size_of::<FlowKey>(), 4 + 4 + 16 + 16 + 2 + 2);
        assert_eq!(size_of::<Flow>(), 4 + 4 + 16 + 8 + 4 + 4);
        assert_eq!(size_of::<Sock>(), 4 + 4 + 4 + 4 + 16 + 4);
        assert_eq!(size_of::<WayKey>(), 4 + 4 + 16);
        assert_eq!(size_of::<Way>(), 8 + 4 + 4 + MOST_TARGETS * (4 + 4 + 16));
        let (flow, asked) = (size_of::<FlowKey>(), 16);
        assert_eq!(size_of::<Event>(), 4 + 4 + 8 + flow + 4 + asked + 4 + 4 + 8 + 8 + 8);
        assert_eq!(size_of::<ListenerKey>(), 8);
    }

    #[test]
    fn an_ipv4_address_survives_the_round_trip() {
        let a = Addr::v4(u32::from_ne_bytes([10, 1, 2, 3]));
        assert!(a.is_v4());
        assert_eq!(a.octets()[10..], [0xff, 0xff, 10, 1, 2, 3]);
        assert_eq!(Addr::from_octets(a.octets()), a);
    }
}
