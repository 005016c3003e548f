//! What becomes of each field: `honoured.tsv`, which has every field of every type, so that none is
//! passed over in silence.

use crate::{
    diagnostic::Code,
    parse::{Found, nearest},
    schema::{Given, Shape, walk},
};
use serde_json::Value;
use std::{collections::HashMap, sync::LazyLock};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Obeyed,
    /// Validation has its own words.
    Told,
    /// Taken, to no effect.
    Idle,
    Refused,
}

/// By kind, then by field (`*`: the kind itself): its fate, and what to say.
type Table = HashMap<&'static str, HashMap<&'static str, (Fate, &'static str)>>;

pub static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table::new();
    for line in include_str!("../honoured.tsv").lines().filter(|l| !l.starts_with('#')) {
        let mut columns = line.split('\t');
        let mut column = || columns.next().unwrap_or_default();
        let (kind, field, fate, words) = (column(), column(), column(), column());
        let fate = match fate {
            "yes" => Fate::Obeyed,
            "told" => Fate::Told,
            "no" => Fate::Idle,
            _ => Fate::Refused,
        };
        table.entry(kind).or_default().insert(field, (fate, words));
    }
    table
});

fn fate(kind: &str, field: &str) -> Option<(Fate, &'static str)> {
    TABLE.get(kind)?.get(field).copied()
}

/// Says what will not be obeyed of an object, and where two fields exclude each other.
pub(crate) fn check(
    kind: &'static str,
    shape: Shape,
    spec: &Value,
    path: &str,
    found: &mut Found<'_>,
) {
    let whole = fate(kind, "*");
    if let Some((Fate::Refused, words)) = whole {
        found.push(Code::NotServed, "kind", kind, words);
    }
    let told = matches!(whole, Some((Fate::Refused, _)));
    let table = TABLE.get(kind);
    // Within what is not obeyed the same is not said again.
    let mut idle: Option<String> = None;
    walk(shape, spec, path, &mut |given| {
        let rest = idle.as_ref().and_then(|idle| given.path.strip_prefix(idle.as_str()));
        let within = rest.is_some_and(|rest| rest.starts_with(['.', '[']));
        let fate = given.field.and_then(|f| table?.get(f.whole.as_str()).copied());
        if !within && matches!(fate, Some((Fate::Idle, _))) {
            idle = Some(given.path.to_owned());
        }
        one(kind, &given, fate, told || within, found)
    });
}

/// `told`: that it is not obeyed. Whether to look further within.
fn one(
    kind: &'static str,
    given: &Given<'_>,
    fate: Option<(Fate, &'static str)>,
    told: bool,
    found: &mut Found<'_>,
) -> bool {
    if let Some(rival) = given.rival() {
        found.push(
            Code::InvalidValue,
            given.path,
            format!("together with {rival}"),
            "they exclude each other: give one of them",
        );
    }
    match fate {
        Some((Fate::Obeyed | Fate::Told, _)) => true,
        // Of its kind as a whole, or of what it is within, it has been said already.
        Some(_) if told => true,
        Some((Fate::Idle, words)) => {
            found.push(Code::Warning, given.path, "not obeyed", words);
            true
        }
        Some((Fate::Refused, words)) => {
            found.push(Code::NotServed, given.path, "not served", words);
            false
        }
        // No field of Istio's: the types say so, where they are strict.
        None => {
            let known: Vec<String> = given.known.iter().map(|f| f.name.clone()).collect();
            let remedy = match nearest(given.name, &known) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => "it is passed over".to_owned(),
            };
            if kind == "MeshConfig" {
                found.push(Code::Warning, given.path, "no field of Istio's", remedy);
            }
            false
        }
    }
}
