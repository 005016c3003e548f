//! What a suite has measured, turn by turn, with and without a mesh.

use crate::{
    peers,
    report::{Peer, Row},
};

pub struct Measures {
    suite: &'static str,
    /// In the order in which they were first measured.
    all: Vec<Measure>,
}

struct Measure {
    name: String,
    unit: &'static str,
    plain: Vec<f64>,
    mesh: Vec<f64>,
}

impl Measures {
    pub fn new(suite: &'static str) -> Self {
        Self { suite, all: Vec::new() }
    }

    /// Of the same turn.
    pub fn both(&mut self, name: &str, unit: &'static str, plain: f64, mesh: f64) {
        let measure = self.of(name, unit);
        measure.plain.push(plain);
        measure.mesh.push(mesh);
    }

    /// What there is in a mesh only.
    pub fn mesh(&mut self, name: &str, unit: &'static str, value: f64) {
        self.of(name, unit).mesh.push(value);
    }

    fn of(&mut self, name: &str, unit: &'static str) -> &mut Measure {
        let at = self.all.iter().position(|m| m.name == name).unwrap_or_else(|| {
            let name = name.to_owned();
            self.all.push(Measure { name, unit, plain: Vec::new(), mesh: Vec::new() });
            self.all.len() - 1
        });
        &mut self.all[at]
    }

    pub fn rows(self) -> Vec<Row> {
        let suite = self.suite;
        let row = |m: Measure| {
            let (goal, ztunnel) = peers::path(suite, &m.name);
            let mut row = Row::meshed(suite, m.name, m.unit, &m.mesh, &m.plain);
            (row.goal, row.peer) = (goal, ztunnel.map(Peer::Ztunnel));
            row
        };
        self.all.into_iter().map(row).collect()
    }
}
