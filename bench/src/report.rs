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
    samples: Vec<f64>,
    pub goal: Option<Goal>,
    pub peer: Option<Peer>,
}

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

impl Row {
    /// # Panics
    /// Without samples: a measure that measured nothing is a mistake in here.
    pub fn new(suite: &'static str, name: String, unit: &'static str, samples: &[f64]) -> Self {
        assert!(!samples.is_empty(), "{name} has not been measured");
        let mut samples = samples.to_vec();
        samples.sort_by(f64::total_cmp);
        Self { suite, name, unit, samples, goal: None, peer: None }
    }

    pub fn median(&self) -> f64 {
        self.at(50)
    }

    /// What so many of a hundred samples are below; between two of them where it falls there.
    fn at(&self, percent: usize) -> f64 {
        let place = (self.samples.len() - 1) * percent;
        let below = self.samples[place / 100];
        let above = self.samples[place.div_ceil(100)];
        below + (above - below) * (place % 100) as f64 / 100.0
    }
}

pub fn json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|r| {
            json!({
                "suite": r.suite,
                "name": r.name,
                "unit": r.unit,
                "value": r.median(),
                "goal": r.goal.map(Goal::json),
                "ztunnel": r.peer.and_then(Peer::ztunnel),
                "envoy": r.peer.and_then(Peer::envoy),
            })
        })
        .collect()
}

pub fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["measure", "unit", "median", "5 % .. 95 %", "goal", "", "peer"]);
    for r in rows {
        let spread = format!("{} .. {}", figure(r.at(5)), figure(r.at(95)));
        let met = r.goal.map(|g| if g.is_met(r.median()) { "met" } else { "MISSED" });
        table.add_row([
            r.name.clone(),
            r.unit.to_owned(),
            figure(r.median()),
            spread,
            r.goal.map(Goal::shown).unwrap_or_default(),
            met.unwrap_or_default().to_owned(),
            r.peer.map(Peer::shown).unwrap_or_default(),
        ]);
    }
    for column in [2, 3, 4, 6] {
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
