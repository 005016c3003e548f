//! Judges a capture: did anything cross the link that should have been inside mTLS?
//!
//! Two questions, independent of each other. Was a [`Token`] that a test sent seen in the clear, in a frame or across
//! the segments of a stream? And is every TCP stream between two enrolled addresses HBONE, that is TLS records to or
//! from one port, from its first SYN? A capture that lost packets answers neither, and is not clean.

mod flow;
mod frame;
mod tls;
mod token;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::capture::CaptureReport;
use crate::pcapng::{Packet, Reader};
use flow::Flow;
use frame::{Content, Segment};
use token::Needles;

pub use token::Token;

/// More sightings of one token say nothing new.
const SIGHTINGS_PER_TOKEN: usize = 5;

/// What must not be seen, and between whom nothing but HBONE may pass.
#[derive(Clone, Debug)]
pub struct LeakCheck {
    pub tokens: Vec<Token>,
    pub enrolled: HashSet<IpAddr>,
    pub hbone_port: u16,
}

impl Default for LeakCheck {
    fn default() -> Self {
        Self { tokens: Vec::new(), enrolled: HashSet::new(), hbone_port: 15008 }
    }
}

/// One direction of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Direction {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// A token in the clear.
#[derive(Clone, Debug)]
pub struct Sighting {
    pub token: Token,
    /// The packet in which it ends, counted from 1 as Wireshark does.
    pub packet: u64,
    pub place: String,
}

/// Bytes between enrolled addresses that are not what they have to be.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Counted from 1.
    pub packet: u64,
    pub place: String,
    pub reason: String,
}

/// What was found in a capture.
#[derive(Clone, Debug, Default)]
pub struct LeakVerdict {
    pub packets: u64,
    pub drops: u64,
    /// Frames longer than what was kept of them.
    pub truncated: u64,
    pub tokens: Vec<Sighting>,
    /// TCP payload or a SYN between enrolled addresses that is not TLS to or from the HBONE port.
    pub plaintext: Vec<Finding>,
    /// The same, of connections that were older than the capture.
    pub unparsed: Vec<Finding>,
    /// Directions between enrolled addresses that were all TLS records to or from the HBONE port.
    pub hbone_streams: u64,
    pub hbone_bytes: u64,
    /// Directions to or from the HBONE port that were older than the capture; their records cannot be told apart.
    pub hbone_unchecked: u64,
}

impl LeakVerdict {
    /// Nothing leaked, and the capture is complete enough to say so. A capture without packets is clean as well: look
    /// at `packets` and `hbone_bytes` too.
    pub fn is_clean(&self) -> bool {
        self.drops == 0
            && self.truncated == 0
            && self.tokens.is_empty()
            && self.plaintext.is_empty()
            && self.unparsed.is_empty()
    }
}

impl LeakCheck {
    /// Reads the capture and judges it.
    ///
    /// # Errors
    /// When the file is not what the report says. What the frames hold is never an error.
    pub fn check(&self, report: &CaptureReport) -> Result<LeakVerdict> {
        let file = File::open(&report.path)
            .with_context(|| format!("cannot open {}", report.path.display()))?;
        let reader = Reader::new(BufReader::with_capacity(1 << 20, file))?;
        let mut judge = Judge::new(self);
        for packet in reader {
            judge.packet(&packet.with_context(|| format!("in {}", report.path.display()))?);
        }
        ensure!(
            judge.verdict.packets == report.packets,
            "{} holds {} packets, {} were captured",
            report.path.display(),
            judge.verdict.packets,
            report.packets
        );
        judge.verdict.drops = report.drops;
        Ok(judge.finish())
    }
}

/// The state of one reading.
struct Judge<'a> {
    check: &'a LeakCheck,
    needles: Needles<'a>,
    flows: BTreeMap<Direction, Flow>,
    verdict: LeakVerdict,
}

impl<'a> Judge<'a> {
    fn new(check: &'a LeakCheck) -> Self {
        Self {
            check,
            needles: Needles::new(&check.tokens),
            flows: BTreeMap::new(),
            verdict: LeakVerdict::default(),
        }
    }

    fn packet(&mut self, packet: &Packet) {
        self.verdict.packets += 1;
        if packet.length > packet.frame.len() {
            self.verdict.truncated += 1;
        }
        let content = frame::parse(&packet.frame);
        // The whole frame, whatever it is: a token is a leak in a header, in UDP or under an unknown encapsulation.
        for hit in self.needles.find(&packet.frame) {
            self.sighted(hit.token, &content);
        }
        match content {
            Content::Tcp(segment) => self.segment(&segment),
            Content::TcpFragment { from, to } if self.both_enrolled(from, to) => {
                self.verdict.plaintext.push(Finding {
                    packet: self.verdict.packets,
                    place: content.to_string(),
                    reason: "a TCP fragment: what it carries is not known".to_owned(),
                });
            }
            _ => {}
        }
    }

    fn segment(&mut self, segment: &Segment<'_>) {
        let direction = segment.direction;
        let number = self.verdict.packets;
        // A SYN for what is known already is its retransmission, or the port is used again.
        if segment.syn
            && self.flows.get(&direction).is_some_and(|flow| !flow.begins_with(segment))
            && let Some(old) = self.flows.remove(&direction)
        {
            self.conclude(direction, old);
        }
        let watched = self.both_enrolled(direction.from.ip(), direction.to.ip());
        let hbone = self.is_hbone(direction);
        let margin = self.needles.longest().saturating_sub(1);
        let mut across = Vec::new();
        let flow = self.flows.entry(direction).or_insert_with(|| Flow::new(segment));
        for piece in flow.accept(segment) {
            if watched && hbone {
                flow.check_tls(&piece, number);
            }
            // What lies within one segment has been found in its frame.
            let (window, seam) = flow.window(&piece, margin);
            let hits = self.needles.find(&window).into_iter();
            across
                .extend(hits.filter(|hit| hit.start < seam && hit.end > seam).map(|hit| hit.token));
        }
        if watched && !hbone && !segment.payload.is_empty() {
            flow.complain(number, "payload outside HBONE");
        }
        if watched && !hbone && segment.opens {
            flow.complain(number, "a connection outside HBONE");
        }
        for token in across {
            self.sighted(token, &format_args!("across segments of {direction}"));
        }
    }

    fn sighted(&mut self, token: Token, place: &dyn fmt::Display) {
        let seen = &mut self.verdict.tokens;
        if seen.iter().filter(|s| s.token == token).count() < SIGHTINGS_PER_TOKEN {
            seen.push(Sighting { token, packet: self.verdict.packets, place: place.to_string() });
        }
    }

    fn conclude(&mut self, direction: Direction, flow: Flow) {
        if !self.both_enrolled(direction.from.ip(), direction.to.ip()) {
            return;
        }
        let verdict = &mut self.verdict;
        let findings = if flow.from_start { &mut verdict.plaintext } else { &mut verdict.unparsed };
        match flow.verdict() {
            flow::Verdict::Bad { packet, reason } => {
                findings.push(Finding { packet, place: direction.to_string(), reason });
            }
            flow::Verdict::Unchecked => verdict.hbone_unchecked += 1,
            flow::Verdict::Tls { bytes } => {
                verdict.hbone_streams += 1;
                verdict.hbone_bytes += bytes;
            }
            flow::Verdict::Silent => {}
        }
    }

    fn finish(mut self) -> LeakVerdict {
        for (direction, flow) in std::mem::take(&mut self.flows) {
            self.conclude(direction, flow);
        }
        self.verdict
    }

    fn both_enrolled(&self, from: IpAddr, to: IpAddr) -> bool {
        self.check.enrolled.contains(&from) && self.check.enrolled.contains(&to)
    }

    fn is_hbone(&self, direction: Direction) -> bool {
        [direction.from, direction.to].iter().any(|end| end.port() == self.check.hbone_port)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.from, self.to)
    }
}

impl fmt::Display for LeakVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} packets, {} dropped, {} cut short; HBONE: {} streams with {} bytes, {} not checked",
            if self.is_clean() { "clean" } else { "NOT CLEAN" },
            self.packets,
            self.drops,
            self.truncated,
            self.hbone_streams,
            self.hbone_bytes,
            self.hbone_unchecked
        )?;
        for s in &self.tokens {
            writeln!(f, "  packet {}: token {} in the clear: {}", s.packet, s.token, s.place)?;
        }
        for p in &self.plaintext {
            writeln!(f, "  packet {}: {}: {}", p.packet, p.place, p.reason)?;
        }
        for p in &self.unparsed {
            writeln!(
                f,
                "  packet {}: {} (older than the capture): {}",
                p.packet, p.place, p.reason
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
