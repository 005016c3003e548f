//! Packets made by hand, byte by byte: what a process sends that goes round its kernel's TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

pub const HOP_BY_HOP: u8 = 0;
pub const IPIP: u8 = 4;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SIT: u8 = 41;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const GRE: u8 = 47;
pub const DESTINATION: u8 = 60;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

pub type Mac = [u8; 6];

/// A TCP segment with its checksum.
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
    tcp_acking(from, to, flags, (seq, 0), payload)
}

/// The same with an acknowledgement number, the second of the pair.
pub fn tcp_acking(
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
    (seq, ack): (u32, u32),
    payload: &[u8],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(20 + payload.len());
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out.extend(seq.to_be_bytes());
    out.extend(ack.to_be_bytes());
    // Five words of header, the window, no checksum yet, no urgent data.
    out.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend_from_slice(payload);
    with_checksum(out, 16, (from.ip(), to.ip()), TCP)
}

/// A UDP datagram with its checksum.
pub fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + payload.len());
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out.extend(((8 + payload.len()) as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend_from_slice(payload);
    with_checksum(out, 6, (from.ip(), to.ip()), UDP)
}

/// An IP packet of the addresses' family around `payload`.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, 0, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, payload),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// `fragment` is the flags-and-offset word.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x45, 0];
    out.extend(((20 + payload.len()) as u16).to_be_bytes());
    out.extend(0x4711u16.to_be_bytes());
    out.extend(fragment.to_be_bytes());
    out.extend([64, protocol, 0, 0]);
    out.extend(from.octets());
    out.extend(to.octets());
    let sum = checksum(&[&out]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend([next, 64]);
    out.extend(from.octets());
    out.extend(to.octets());
    out.extend_from_slice(payload);
    out
}

/// A packet cut into fragments of `size` bytes of what follows the IP header (a multiple of eight).
pub fn fragments(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    payload: &[u8],
    size: usize,
) -> Vec<Vec<u8>> {
    let last = payload.len().div_ceil(size) - 1;
    let cut = payload.chunks(size).enumerate().map(|(n, piece)| match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let more = if n < last { 0x2000 } else { 0 };
            ipv4(from, to, protocol, more | (n * size / 8) as u16, piece)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![protocol, 0];
            header.extend(((n * size) as u16 | u16::from(n < last)).to_be_bytes());
            header.extend(0x0815_4711u32.to_be_bytes());
            header.extend_from_slice(piece);
            ipv6(from, to, FRAGMENT, &header)
        }
        _ => panic!("{from} and {to} are of two families"),
    });
    cut.collect()
}

/// An IPv6 extension header of eight bytes that says nothing (PadN), before `rest`.
pub fn extension(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![next, 0, 1, 4, 0, 0, 0, 0];
    out.extend_from_slice(rest);
    out
}

/// An Ethernet frame around an IP packet; each VLAN tag goes before it.
pub fn frame(from: Mac, to: Mac, vlans: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut out = [to, from].concat();
    for vlan in vlans {
        out.extend([0x81, 0x00]);
        out.extend(vlan.to_be_bytes());
    }
    let kind = if packet.first().is_some_and(|b| b >> 4 == 6) { IPV6 } else { IPV4 };
    out.extend(kind.to_be_bytes());
    out.extend_from_slice(packet);
    out
}

fn with_checksum(
    mut of: Vec<u8>,
    at: usize,
    (from, to): (IpAddr, IpAddr),
    protocol: u8,
) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let pseudo = [octets(from), octets(to), vec![0, protocol]].concat();
    let sum = checksum(&[&pseudo, &(of.len() as u16).to_be_bytes(), &of]);
    of[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    of
}

/// The Internet checksum over parts of even length, but for the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|p| p.chunks(2));
    let mut sum: u32 =
        words.map(|w| (u32::from(w[0]) << 8) + w.get(1).map_or(0, |&b| b.into())).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    #[test]
    fn what_is_forged_is_a_sound_packet() {
        for (from, to) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let segment = tcp(from, to, SYN | ACK, 7, b"odd");
            let packet = ip(from.ip(), to.ip(), TCP, &segment);
            let sliced = SlicedPacket::from_ip(&packet).unwrap();
            let Some(TransportSlice::Tcp(found)) = sliced.transport else { panic!("no TCP") };
            assert!(found.syn() && found.ack() && found.sequence_number() == 7);
            assert_eq!(found.payload(), b"odd");
            let header = found.to_header();
            let right = match (from.ip(), to.ip()) {
                (IpAddr::V4(f), IpAddr::V4(t)) => {
                    header.calc_checksum_ipv4_raw(f.octets(), t.octets(), b"odd")
                }
                (IpAddr::V6(f), IpAddr::V6(t)) => {
                    header.calc_checksum_ipv6_raw(f.octets(), t.octets(), b"odd")
                }
                _ => unreachable!(),
            };
            assert_eq!(found.checksum(), right.unwrap());
            let pieces = fragments(from.ip(), to.ip(), TCP, &segment, 8);
            assert_eq!(pieces.len(), 3);
        }
    }
}
