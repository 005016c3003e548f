//! What a pair of pods has to bear, and what came of it.

use super::{echo, iperf, nginx, paced, pair::Pair};
use crate::{load, process};
use anyhow::bail;
use culvert_tests::at;
use std::{net::Ipv4Addr, thread, time::Duration};

/// How long each lasts.
const SECONDS: u64 = 2;

#[derive(Clone, Copy)]
pub enum Load {
    /// Bytes as fast as they go; reversed, the server sends.
    Bulk { streams: u32, reverse: bool },
    /// HTTP over connections that stay.
    Requests { connections: u32 },
    /// HTTP over a new connection for each request.
    Connects { at_once: u32 },
    /// HTTP at a rate that nobody has trouble with.
    Paced,
    /// HTTP at a lower rate, while bytes go as fast as they do.
    BesideBulk,
    /// A small message there and back.
    PingPong,
}

pub const ALL: [Load; 14] = [
    Load::Bulk { streams: 1, reverse: false },
    Load::Bulk { streams: 4, reverse: false },
    Load::Bulk { streams: 16, reverse: false },
    Load::Bulk { streams: 1, reverse: true },
    Load::Requests { connections: 1 },
    Load::Requests { connections: 16 },
    Load::Requests { connections: 64 },
    Load::Requests { connections: 256 },
    Load::Connects { at_once: 1 },
    Load::Connects { at_once: 16 },
    Load::Connects { at_once: 64 },
    Load::Paced,
    Load::BesideBulk,
    Load::PingPong,
];

pub const PACED: paced::Rate = paced::Rate { connections: 10, per_second: 1000 };
const BESIDE_BULK: paced::Rate = paced::Rate { connections: 10, per_second: 200 };

pub struct Outcome {
    pub figures: Vec<Figure>,
    pub moved: Moved,
}

pub struct Figure {
    /// Of the measure's name, after that of the load.
    pub suffix: &'static str,
    pub unit: &'static str,
    pub value: f64,
}

/// What the CPU seconds of agents are to be divided by.
pub enum Moved {
    Bytes(f64),
    Requests(f64),
}

impl Load {
    pub fn name(self) -> String {
        match self {
            Self::Bulk { streams, reverse: false } => format!("iperf3-{streams}"),
            Self::Bulk { streams, reverse: true } => format!("iperf3-{streams}-reverse"),
            Self::Requests { connections } => format!("wrk-{connections}"),
            Self::Connects { at_once } => format!("connect-{at_once}"),
            Self::Paced => format!("rate-{}", PACED.per_second),
            Self::BesideBulk => "bulk-beside".to_owned(),
            Self::PingPong => "pingpong".to_owned(),
        }
    }

    pub fn run(self, pair: &Pair) -> anyhow::Result<Outcome> {
        let figure = |suffix, unit, value| Figure { suffix, unit, value };
        match self {
            Self::Bulk { streams, reverse } => {
                let received = bulk(pair, streams, reverse, SECONDS)?.received()?;
                let rate = received.bits_per_second / 1e9;
                Ok(Outcome {
                    figures: vec![figure("", "Gbit/s", rate)],
                    moved: Moved::Bytes(received.bytes),
                })
            }
            Self::Requests { .. } | Self::Connects { .. } => {
                let seen = self.requests_to(pair, pair.server.ipv4(), nginx::PORT)?;
                Ok(Outcome {
                    figures: vec![Figure { suffix: "", unit: "1/s", value: seen.per_second }],
                    moved: Moved::Requests(seen.requests),
                })
            }
            Self::Paced => {
                let seen = PACED.run(&pair.client, pair.server.ipv4(), nginx::PORT, SECONDS)?;
                Ok(Outcome {
                    figures: vec![figure("-p50", "us", seen.p50), figure("-p99", "us", seen.p99)],
                    moved: Moved::Requests(seen.requests),
                })
            }
            Self::BesideBulk => {
                // It begins before the first request and ends after the last.
                let bulk = bulk(pair, 1, false, SECONDS + 1)?;
                thread::sleep(Duration::from_millis(300));
                let to = pair.server.ipv4();
                let seen = BESIDE_BULK.run(&pair.client, to, nginx::PORT, SECONDS)?;
                Ok(Outcome {
                    figures: vec![figure("-p50", "us", seen.p50), figure("-p99", "us", seen.p99)],
                    moved: Moved::Bytes(bulk.received()?.bytes),
                })
            }
            Self::PingPong => {
                let seen = echo::ping_pongs(pair)?;
                Ok(Outcome {
                    figures: vec![figure("-p50", "us", seen.p50)],
                    moved: Moved::Requests(seen.count),
                })
            }
        }
    }
}

impl Load {
    /// The client's HTTP as fast as it goes, to this address.
    pub fn requests_to(self, pair: &Pair, ip: Ipv4Addr, port: u16) -> anyhow::Result<load::Seen> {
        let load = match self {
            Self::Requests { connections } => load::Load::Http1(connections),
            Self::Connects { at_once } => load::Load::Http1Once(at_once),
            _ => bail!("{} is not of that kind", self.name()),
        };
        load.run(
            &pair.client,
            &format!("http://{}/", at(ip, port)),
            &process::everywhere(),
            SECONDS,
        )
    }
}

fn bulk(pair: &Pair, streams: u32, reverse: bool, seconds: u64) -> anyhow::Result<iperf::Run> {
    iperf::Run::start(&pair.client, pair.server.ipv4(), iperf::PORT, streams, reverse, seconds)
}
