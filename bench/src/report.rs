//! Rows, and how they are shown.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

/// What a measure is to reach.
#[derive(Clone, Copy)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, by: f64) -> bool {
        match self {
            Self::AtMost(most) => by <= most,
            Self::AtLeast(least) => by >= least,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", figure(most)),
            Self::AtLeast(least) => format!("≥ {}", figure(least)),
        }
    }

    fn json(self) -> Value {
        match self {
            Self::AtMost(most) => json!({ "at most": most }),
            Self::AtLeast(least) => json!({ "at least": least }),
        }
    }
}

/// One measure, with all its samples.
pub struct Row {
    pub suite: &'static str,
    pub name: String,
    pub unit: &'static str,
    samples: Sorted,
    /// Whether a mesh was in the way.
    meshed: bool,
    /// The same without one, where there is such a thing.
    plain: Option<Plain>,
    /// By the ratio to plain, where there is one.
    pub goal: Option<Goal>,
    /// As the goal.
    pub peer: Option<Peer>,
}

struct Plain {
    samples: Sorted,
    /// Of each turn.
    ratios: Sorted,
}

/// The least first.
struct Sorted(Vec<f64>);

/// Somebody else's figure.
#[derive(Clone, Copy)]
pub enum Peer {
    /// Measured before, on the same kind of machine.
    Ztunnel(f64),
    /// Measured in the same run.
    Envoy(f64),
}

impl Peer {
    fn ztunnel(self) -> Option<f64> {
        match self {
            Self::Ztunnel(f) => Some(f),
            Self::Envoy(_) => None,
        }
    }

    fn envoy(self) -> Option<f64> {
        match self {
            Self::Envoy(f) => Some(f),
            Self::Ztunnel(_) => None,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::Ztunnel(f) => format!("ztunnel {}", figure(f)),
            Self::Envoy(f) => format!("Envoy {}", figure(f)),
        }
    }
}

impl Sorted {
    fn new(samples: &[f64]) -> Self {
        let mut samples = samples.to_vec();
        samples.sort_by(f64::total_cmp);
        Self(samples)
    }

    fn median(&self) -> f64 {
        self.at(50)
    }

    /// What so many of a hundred samples are below; between two of them where it falls there.
    fn at(&self, percent: usize) -> f64 {
        let place = (self.0.len() - 1) * percent;
        let below = self.0[place / 100];
        let above = self.0[place.div_ceil(100)];
        below + (above - below) * (place % 100) as f64 / 100.0
    }

    fn spread(&self) -> String {
        format!("{} .. {}", figure(self.at(5)), figure(self.at(95)))
    }

    fn shown(&self) -> String {
        match self.0.as_slice() {
            [only] => figure(*only),
            _ => format!("{} ({})", figure(self.median()), self.spread()),
        }
    }
}

impl Row {
    /// # Panics
    /// Without samples: a measure that measured nothing is a mistake in here.
    pub fn new(suite: &'static str, name: String, unit: &'static str, samples: &[f64]) -> Self {
        assert!(!samples.is_empty(), "{name} has not been measured");
        let samples = Sorted::new(samples);
        Self { suite, name, unit, samples, meshed: false, plain: None, goal: None, peer: None }
    }

    /// Of a mesh, and of the same without one, sample by sample; or `plain` is empty.
    pub fn meshed(
        suite: &'static str,
        name: String,
        unit: &'static str,
        mesh: &[f64],
        plain: &[f64],
    ) -> Self {
        let ratios: Vec<f64> = mesh.iter().zip(plain).map(|(m, p)| m / p).collect();
        let plain = (!plain.is_empty())
            .then(|| Plain { samples: Sorted::new(plain), ratios: Sorted::new(&ratios) });
        Self { meshed: true, plain, ..Self::new(suite, name, unit, mesh) }
    }

    pub fn median(&self) -> f64 {
        self.samples.median()
    }

    /// What a goal is about.
    fn judged(&self) -> f64 {
        self.plain.as_ref().map_or(self.median(), |p| p.ratios.median())
    }

    fn met(&self) -> &'static str {
        match self.goal {
            Some(goal) if goal.is_met(self.judged()) => "met",
            Some(_) => "MISSED",
            None => "",
        }
    }
}

/// `value` is what was measured, and `mesh` the same where that was a mesh.
pub fn json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|r| {
            json!({
                "suite": r.suite,
                "name": r.name,
                "unit": r.unit,
                "value": r.median(),
                "plain": r.plain.as_ref().map(|p| p.samples.median()),
                "mesh": r.meshed.then(|| r.median()),
                "ratio": r.plain.as_ref().map(|p| p.ratios.median()),
                "goal": r.goal.map(Goal::json),
                "ztunnel": r.peer.and_then(Peer::ztunnel),
                "envoy": r.peer.and_then(Peer::envoy),
            })
        })
        .collect()
}

/// A table for each suite.
pub fn tables(rows: &[Row]) -> String {
    let tables = rows.chunk_by(|a, b| a.suite == b.suite).map(|rows| {
        let table = if rows.iter().any(|r| r.plain.is_some()) { beside(rows) } else { alone(rows) };
        format!("{}\n{table}\n", rows[0].suite)
    });
    tables.collect()
}

fn alone(rows: &[Row]) -> Table {
    let header = ["measure", "unit", "median", "5 % .. 95 %", "goal", "", "peer"];
    let cells = |r: &Row| {
        [
            r.name.clone(),
            r.unit.to_owned(),
            figure(r.median()),
            r.samples.spread(),
            r.goal.map(Goal::shown).unwrap_or_default(),
            r.met().to_owned(),
            r.peer.map(Peer::shown).unwrap_or_default(),
        ]
    };
    table(header, rows.iter().map(cells))
}

fn beside(rows: &[Row]) -> Table {
    let header = ["measure", "unit", "plain", "mesh", "mesh / plain", "goal", "", "peer"];
    let cells = |r: &Row| {
        [
            r.name.clone(),
            r.unit.to_owned(),
            r.plain.as_ref().map(|p| p.samples.shown()).unwrap_or_default(),
            r.samples.shown(),
            r.plain.as_ref().map(|p| p.ratios.shown()).unwrap_or_default(),
            r.goal.map(Goal::shown).unwrap_or_default(),
            r.met().to_owned(),
            r.peer.map(Peer::shown).unwrap_or_default(),
        ]
    };
    table(header, rows.iter().map(cells))
}

/// Figures stand on the right; the last but one says whether a goal is met.
fn table<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl Iterator<Item = [String; COLUMNS]>,
) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(header).add_rows(rows);
    for column in (2..COLUMNS).filter(|c| *c != COLUMNS - 2) {
        if let Some(c) = table.column_mut(column) {
            c.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Three digits that mean something.
fn figure(f: f64) -> String {
    let digits = match f.abs() {
        a if a >= 100.0 => 0,
        a if a >= 10.0 => 1,
        a if a >= 1.0 => 2,
        _ => 3,
    };
    format!("{f:.digits$}")
}
