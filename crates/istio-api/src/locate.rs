//! At which field a value does not fit: found by trying parts of it, where it is known that the whole does not. A
//! deserializer that keeps count of where it is costs every value, and twice the code of all types.

use serde_json::{Map, Value};

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// The path to the innermost field of `value` that alone, within nothing but what leads to it, fails.
pub(crate) fn failing(value: &Value, fails: &dyn Fn(&Value) -> bool) -> String {
    let mut path = Vec::new();
    let mut at = value;
    // Where it fails without what is in it, what is in it is not at fault.
    while !fails(&nested(&path, emptied(at))) {
        let inner = children(at).find_map(|(step, child)| {
            path.push(step);
            if fails(&nested(&path, child.clone())) {
                return Some(child);
            }
            path.pop();
            None
        });
        match inner {
            Some(child) => at = child,
            None => break,
        }
    }
    written(&path)
}

fn emptied(value: &Value) -> Value {
    match value {
        Value::Object(_) => Value::Object(Map::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        scalar => scalar.clone(),
    }
}

fn children(value: &Value) -> Box<dyn Iterator<Item = (Step<'_>, &Value)> + '_> {
    match value {
        Value::Object(fields) => Box::new(fields.iter().map(|(k, v)| (Step::Key(k), v))),
        Value::Array(items) => Box::new(items.iter().enumerate().map(|(i, v)| (Step::Index(i), v))),
        _ => Box::new(std::iter::empty()),
    }
}

fn nested(path: &[Step<'_>], innermost: Value) -> Value {
    path.iter().rev().fold(innermost, |inner, step| match step {
        Step::Key(key) => Value::Object(Map::from_iter([((*key).to_owned(), inner)])),
        Step::Index(_) => Value::Array(vec![inner]),
    })
}

fn written(path: &[Step<'_>]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(key) if out.is_empty() => out.push_str(key),
            Step::Key(key) => out.extend([".", key]),
            Step::Index(i) => out.push_str(&format!("[{i}]")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Item {
        name: String,
        #[serde(default)]
        weight: u32,
        #[serde(default)]
        within: Option<Box<Item>>,
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Whole {
        #[serde(default)]
        items: Vec<Item>,
        kind: String,
    }

    fn at(value: &Value) -> String {
        let said = |v: &Value| Whole::deserialize(v).err().map(|e| e.to_string());
        let whole = said(value);
        assert!(whole.is_some(), "{value}");
        failing(value, &|part| said(part) == whole)
    }

    #[test]
    fn the_innermost_field_at_fault_is_named() {
        let good = json!({"name": "a"});
        for (value, expected) in [
            (json!({"kind": 1}), "kind"),
            (json!({"items": []}), ""),
            (json!({"kind": "k", "items": {}}), "items"),
            (
                json!({"kind": "k", "items": [good, {"name": "b", "weight": "3"}]}),
                "items[1].weight",
            ),
            (
                json!({"kind": "k", "items": [good, {"name": "b", "wieght": {"x": 1}}]}),
                "items[1].wieght",
            ),
            (json!({"kind": "k", "items": [good, {"weight": 3}]}), "items[1]"),
            (
                json!({"kind": "k", "items": [{"name": "b", "within": {"name": 1}}]}),
                "items[0].within.name",
            ),
            // Of several, the first.
            (json!({"kind": "k", "items": [{"name": 1}, {"name": 2}]}), "items[0].name"),
        ] {
            assert_eq!(at(&value), expected, "{value}");
        }
    }
}
