//! One direction of a TCP connection, put back in order.

use std::collections::BTreeMap;

use super::frame::Segment;
use super::tls::Records;

pub(super) struct Flow {
    /// Whether its SYN was captured.
    pub from_start: bool,
    /// Sequence number of the first byte.
    first: u32,
    /// How many bytes are in order so far.
    taken: u64,
    /// What came too early, by its place in the stream.
    early: BTreeMap<u64, Vec<u8>>,
    /// The end of what is in order: a token may continue in the next segment.
    tail: Vec<u8>,
    records: Records,
    complaint: Option<(u64, String)>,
}

/// What a direction between enrolled addresses turned out to be.
pub(super) enum Verdict {
    Bad {
        packet: u64,
        reason: String,
    },
    /// Its beginning, or something between, was not captured.
    Unchecked,
    Tls {
        bytes: u64,
    },
    /// No payload.
    Silent,
}

impl Flow {
    pub fn new(segment: &Segment<'_>) -> Self {
        Self {
            from_start: segment.syn,
            first: first_byte(segment),
            taken: 0,
            early: BTreeMap::new(),
            tail: Vec::new(),
            records: Records::default(),
            complaint: None,
        }
    }

    pub fn begins_with(&self, syn: &Segment<'_>) -> bool {
        self.from_start && self.first == first_byte(syn)
    }

    /// Takes a segment; gives what is in order now and was not before, piece by piece as it was sent.
    pub fn accept(&mut self, segment: &Segment<'_>) -> Vec<Vec<u8>> {
        // Distance from the next expected byte; sequence numbers wrap.
        let next = self.first.wrapping_add(self.taken as u32);
        let ahead = first_byte(segment).wrapping_sub(next).cast_signed();
        if !segment.payload.is_empty() {
            match u64::try_from(ahead) {
                Ok(gap) => self.keep(self.taken + gap, segment.payload),
                Err(_) => {
                    let known = usize::try_from(ahead.unsigned_abs()).unwrap_or(usize::MAX);
                    // A retransmission may carry something new at its end.
                    self.keep(self.taken, segment.payload.get(known..).unwrap_or_default());
                }
            }
        }
        self.in_order()
    }

    fn keep(&mut self, at: u64, payload: &[u8]) {
        let longer = self.early.get(&at).is_none_or(|had| had.len() < payload.len());
        if longer && !payload.is_empty() {
            self.early.insert(at, payload.to_vec());
        }
    }

    fn in_order(&mut self) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        while let Some(first) = self.early.first_entry().filter(|e| *e.key() <= self.taken) {
            let (at, mut piece) = first.remove_entry();
            let known = usize::try_from(self.taken - at).unwrap_or(usize::MAX).min(piece.len());
            piece.drain(..known);
            self.taken += piece.len() as u64;
            if !piece.is_empty() {
                pieces.push(piece);
            }
        }
        pieces
    }

    /// The bytes around the seam between what was known and `piece`, `margin` to each side, and where the seam is.
    pub fn window(&mut self, piece: &[u8], margin: usize) -> (Vec<u8>, usize) {
        let mut window = std::mem::take(&mut self.tail);
        let seam = window.len();
        window.extend_from_slice(piece.get(..margin).unwrap_or(piece));
        self.tail = if piece.len() >= margin {
            piece.get(piece.len() - margin..).unwrap_or_default().to_vec()
        } else {
            window.get(window.len().saturating_sub(margin)..).unwrap_or_default().to_vec()
        };
        (window, seam)
    }

    pub fn check_tls(&mut self, piece: &[u8], packet: u64) {
        if self.from_start
            && self.complaint.is_none()
            && let Err(reason) = self.records.feed(piece)
        {
            self.complain(packet, &reason);
        }
    }

    /// Keeps the first complaint.
    pub fn complain(&mut self, packet: u64, reason: &str) {
        self.complaint.get_or_insert_with(|| (packet, reason.to_owned()));
    }

    pub fn verdict(self) -> Verdict {
        match self.complaint {
            Some((packet, reason)) => Verdict::Bad { packet, reason },
            None if !self.early.is_empty() => Verdict::Unchecked,
            None if self.taken == 0 => Verdict::Silent,
            None if !self.from_start => Verdict::Unchecked,
            None => Verdict::Tls { bytes: self.records.bytes },
        }
    }
}

/// A SYN takes a sequence number of its own.
fn first_byte(segment: &Segment<'_>) -> u32 {
    segment.seq.wrapping_add(segment.syn.into())
}
