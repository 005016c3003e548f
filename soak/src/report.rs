//! The summary of a soak.

use comfy_table::{Table, presets};
use std::{collections::BTreeMap, fmt};

/// More of one kind say nothing new.
const SHOWN: usize = 25;

#[derive(Default)]
pub struct Outcome {
    pub attempts: usize,
    pub succeeded: usize,
    pub guests: u64,
    pub policies: usize,
    pub logged: usize,
    /// Connections whose identities were compared.
    pub identities: usize,
    pub pieces: u64,
    pub packets: u64,
    pub hbone_bytes: u64,
    pub weather: BTreeMap<&'static str, u32>,
    /// Of refused connections, and whether the refusal was right.
    pub causes: BTreeMap<(String, &'static str), u32>,
    /// The first third's median, the last third's, and its bound.
    pub slopes: Vec<(String, f64, f64, f64)>,
    pub violations: Vec<String>,
}

impl Outcome {
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && self.succeeded > 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = |header: &[&str], rows: Vec<Vec<String>>| {
            let mut table = Table::new();
            table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header).add_rows(rows);
            table
        };
        let count = |name: &str, n: u64| vec![name.to_owned(), n.to_string()];
        let mut rows = vec![
            count("connections tried", self.attempts as u64),
            count("carried to their end", self.succeeded as u64),
            count("lines of access logs", self.logged as u64),
            count("connections whose identities were compared", self.identities as u64),
            count("pods that came and went", self.guests),
            count("policies that came and went", self.policies as u64),
            count("recordings of the wire", self.pieces),
            count("packets in them", self.packets),
            count("bytes of HBONE among them", self.hbone_bytes),
        ];
        rows.extend(self.weather.iter().map(|(name, n)| count(name, u64::from(*n))));
        writeln!(f, "{}", table(&["what", "count"], rows))?;
        let causes = self
            .causes
            .iter()
            .map(|((cause, kind), n)| vec![cause.clone(), (*kind).to_owned(), n.to_string()])
            .collect();
        writeln!(f, "{}", table(&["refused because", "", "count"], causes))?;
        let slopes = self
            .slopes
            .iter()
            .map(|(what, first, last, bound)| {
                vec![what.clone(), first.to_string(), last.to_string(), format!("{bound:.0}")]
            })
            .collect();
        let header = ["median of", "first third", "last third", "at most"];
        writeln!(f, "{}", table(&header, slopes))?;
        for v in self.violations.iter().take(SHOWN) {
            writeln!(f, "NOT GOOD: {v}")?;
        }
        if self.violations.len() > SHOWN {
            writeln!(f, "NOT GOOD: and {} more", self.violations.len() - SHOWN)?;
        }
        f.write_str(if self.is_good() { "clean" } else { "NOT CLEAN" })
    }
}
