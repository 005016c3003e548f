//! What is answered.

use crate::{CLASS_IN, HEADER, Query, TTL, TYPE_OPT, Type, UDP_LIMIT};
use std::net::IpAddr;

const TYPE_CNAME: u16 = 5;

/// An answer under way.
#[derive(Debug)]
pub struct Answer<'a> {
    query: &'a Query<'a>,
    message: Vec<u8>,
    records: u16,
    limit: usize,
    truncated: bool,
    /// Where in the message the name stands that addresses belong to.
    owner: u16,
}

/// The question begins right behind the header.
const QUESTION_AT: u16 = 12;

/// A pointer to a name earlier in the message (RFC 1035, 4.1.4).
const POINTER: u16 = 0xc000;

/// Name server failure (RFC 1035, 4.1.1).
const SERVFAIL: u8 = 2;

/// An OPT record without options.
const OPT_LENGTH: usize = 11;

impl<'a> Answer<'a> {
    /// An answer of at most `limit` bytes.
    pub fn new(query: &'a Query<'a>, limit: usize) -> Self {
        let mut message = Vec::with_capacity(HEADER + query.question.len() + 64);
        message.extend(header(query, 0, 0));
        message.extend_from_slice(query.question);
        let edns = if query.has_edns() { OPT_LENGTH } else { 0 };
        Answer {
            query,
            message,
            records: 0,
            limit: limit.saturating_sub(edns),
            truncated: false,
            owner: QUESTION_AT,
        }
    }

    /// The name asked for is another's: what follows belongs to `canonical`. False when that is not
    /// a name.
    #[must_use]
    pub fn alias(&mut self, canonical: &str) -> bool {
        let Some(name) = encode(canonical) else { return false };
        let owner = self.message.len() + 12;
        if self.push(TYPE_CNAME, &name) {
            self.owner = u16::try_from(owner).unwrap_or(QUESTION_AT);
        }
        true
    }

    /// An address of the kind that was asked for; of the other kind, none is added.
    pub fn address(&mut self, ip: IpAddr) {
        match (ip.to_canonical(), self.query.kind()) {
            (IpAddr::V4(ip), Type::A) => drop(self.push(1, &ip.octets())),
            (IpAddr::V6(ip), Type::Aaaa) => drop(self.push(28, &ip.octets())),
            _ => {}
        }
    }

    fn push(&mut self, kind: u16, data: &[u8]) -> bool {
        let length = 12 + data.len();
        if self.truncated || self.message.len() + length > self.limit {
            self.truncated = true;
            return false;
        }
        let Ok(data_length) = u16::try_from(data.len()) else { return false };
        for word in [POINTER | self.owner, kind, CLASS_IN] {
            self.message.extend(word.to_be_bytes());
        }
        self.message.extend(TTL.to_be_bytes());
        self.message.extend(data_length.to_be_bytes());
        self.message.extend_from_slice(data);
        self.records = self.records.saturating_add(1);
        true
    }

    /// The message. What did not fit is marked as missing, and is to be asked for over TCP.
    pub fn finish(mut self) -> Vec<u8> {
        let mut head = header(self.query, 0, self.records);
        if self.truncated {
            head[2] |= 0b0000_0010;
        }
        if let Some(start) = self.message.first_chunk_mut::<HEADER>() {
            *start = head;
        }
        if self.query.has_edns() {
            self.message.extend(opt());
        }
        self.message
    }
}

/// The answer of a server that cannot say.
pub fn refuse(query: &Query<'_>) -> Vec<u8> {
    let mut message = header(query, SERVFAIL, 0).to_vec();
    message.extend_from_slice(query.question);
    if query.has_edns() {
        message.extend(opt());
    }
    message
}

fn header(query: &Query<'_>, code: u8, answers: u16) -> [u8; HEADER] {
    let [id0, id1] = query.id;
    let [n0, n1] = answers.to_be_bytes();
    // An answer, by an authority, with recursion at hand.
    let flags = 0b1000_0100 | u8::from(query.recursion_desired);
    let more = 0b1000_0000 | (u8::from(query.checking_disabled) << 4) | code;
    [id0, id1, flags, more, 0, 1, n0, n1, 0, 0, 0, u8::from(query.has_edns())]
}

fn opt() -> [u8; OPT_LENGTH] {
    let [t0, t1] = TYPE_OPT.to_be_bytes();
    let [p0, p1] = u16::try_from(UDP_LIMIT).unwrap_or(u16::MAX).to_be_bytes();
    [0, t0, t1, p0, p1, 0, 0, 0, 0, 0, 0]
}

/// A name on the wire; nothing for what is none.
fn encode(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|l| (1..=63).contains(l))?;
        out.push(length);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    (out.len() <= 255).then_some(out)
}
