//! What an Ethernet frame carries, as far as the leak check cares. Any bytes are a frame; none are trusted.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice, ip_number};

use super::Direction;

pub(super) enum Content<'a> {
    Tcp(Segment<'a>),
    /// A fragment of a TCP packet: its ports, or its payload, are elsewhere.
    TcpFragment {
        from: IpAddr,
        to: IpAddr,
    },
    OtherIp {
        from: IpAddr,
        to: IpAddr,
    },
    Other,
}

pub(super) struct Segment<'a> {
    pub direction: Direction,
    pub seq: u32,
    pub syn: bool,
    /// A SYN that is no answer.
    pub opens: bool,
    pub payload: &'a [u8],
}

/// Looks through VLAN tags and IPv6 extension headers. Lengths of zero (BIG TCP) mean the rest of the frame.
pub(super) fn parse(frame: &[u8]) -> Content<'_> {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else { return Content::Other };
    let Some(net) = &packet.net else { return Content::Other };
    let (from, to): (IpAddr, IpAddr) = match net {
        LaxNetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        LaxNetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        LaxNetSlice::Arp(_) => return Content::Other,
    };
    let Some(ip) = net.ip_payload_ref() else { return Content::Other };
    if ip.ip_number == ip_number::TCP && ip.fragmented {
        return Content::TcpFragment { from, to };
    }
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => Content::Tcp(Segment {
            direction: Direction {
                from: SocketAddr::new(from, tcp.source_port()),
                to: SocketAddr::new(to, tcp.destination_port()),
            },
            seq: tcp.sequence_number(),
            syn: tcp.syn(),
            opens: tcp.syn() && !tcp.ack(),
            payload: tcp.payload(),
        }),
        // A header too short to parse hides its ports as well as a fragment does.
        _ if ip.ip_number == ip_number::TCP => Content::TcpFragment { from, to },
        _ => Content::OtherIp { from, to },
    }
}

impl fmt::Display for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(segment) => write!(f, "TCP {}", segment.direction),
            Self::TcpFragment { from, to } => write!(f, "TCP fragment {from} -> {to}"),
            Self::OtherIp { from, to } => write!(f, "IP {from} -> {to}"),
            Self::Other => f.write_str("a frame without IP"),
        }
    }
}
