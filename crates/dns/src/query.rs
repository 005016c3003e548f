//! What is asked.

use crate::{CLASS_IN, HEADER, PLAIN_UDP_LIMIT, TYPE_OPT, UDP_LIMIT};

/// Longest name, in bytes on the wire (RFC 1035, 3.1).
const MAX_NAME: usize = 255;

/// A standard query (opcode 0) with one question of class IN, and nothing beside it but an OPT
/// record of EDNS version 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query<'a> {
    /// The whole question section, as it was sent.
    pub(crate) question: &'a [u8],
    pub(crate) id: [u8; 2],
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    name: String,
    kind: Type,
    /// The sender's own limit, when the query carries EDNS.
    payload: Option<u16>,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    A,
    Aaaa,
    Other(u16),
}

impl From<u16> for Type {
    fn from(value: u16) -> Self {
        match value {
            1 => Type::A,
            28 => Type::Aaaa,
            other => Type::Other(other),
        }
    }
}

impl<'a> Query<'a> {
    /// Nothing for a message of any other kind, well-formed or not.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let (header, body) = message.split_at_checked(HEADER)?;
        let [id0, id1, flags, more, counts @ ..] = header else { return None };
        // A query, opcode 0, not truncated, no answer code; the reserved bit is zero.
        if flags & 0b1111_1010 != 0 || more & 0b1100_1111 != 0 {
            return None;
        }
        let &[0, 1, 0, 0, 0, 0, 0, additional @ (0 | 1)] = counts else { return None };
        let (name, length) = name(body)?;
        let (kind, after) = body.get(length..)?.split_first_chunk::<2>()?;
        let (class, rest) = after.split_first_chunk::<2>()?;
        if u16::from_be_bytes(*class) != CLASS_IN {
            return None;
        }
        let payload = match (additional, rest) {
            (0, []) => None,
            (1, opt) => Some(edns_payload(opt)?),
            _ => return None,
        };
        Some(Query {
            question: body.get(..length.checked_add(4)?)?,
            id: [*id0, *id1],
            recursion_desired: flags & 1 != 0,
            checking_disabled: more & 0b0001_0000 != 0,
            name,
            kind: u16::from_be_bytes(*kind).into(),
            payload,
        })
    }

    /// In lower case, without the last dot.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kind(&self) -> Type {
        self.kind
    }

    /// The largest answer that its sender takes over UDP, in bytes.
    pub fn udp_limit(&self) -> usize {
        let asked = self.payload.map_or(PLAIN_UDP_LIMIT, usize::from);
        asked.clamp(PLAIN_UDP_LIMIT, UDP_LIMIT)
    }

    pub(crate) fn has_edns(&self) -> bool {
        self.payload.is_some()
    }
}

/// An uncompressed name of letters, digits, hyphens and underscores, and its length on the wire.
/// Other names are allowed by DNS; no host of a mesh has one.
fn name(body: &[u8]) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut at = 0usize;
    loop {
        let length = usize::from(*body.get(at)?);
        at = at.checked_add(1)?;
        if length == 0 {
            break;
        }
        // Two high bits are a pointer, which a question has no use for.
        if length > 63 {
            return None;
        }
        let end = at.checked_add(length)?;
        let label = body.get(at..end)?;
        if !label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        at = end;
    }
    (at <= MAX_NAME && !name.is_empty()).then_some((name, at))
}

/// The payload size of an OPT record that ends the message; nothing for anything else, as for a
/// version that is not zero, which the resolver behind may know.
fn edns_payload(record: &[u8]) -> Option<u16> {
    let (fixed, options) = record.split_first_chunk::<11>()?;
    let [root, t0, t1, p0, p1, _extended, version, _flags, _zero, l0, l1] = *fixed;
    let opt = root == 0 && u16::from_be_bytes([t0, t1]) == TYPE_OPT && version == 0;
    (opt && options.len() == usize::from(u16::from_be_bytes([l0, l1])))
        .then_some(u16::from_be_bytes([p0, p1]))
}
