//! Structural schemas, <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/>,
//! from the shapes of messages.

use crate::schema::{Field, Shape};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(super) fn of(shape: Shape) -> Value {
    match shape {
        Shape::Leaf(name) => leaf(name),
        Shape::Names(_, names) => json!({"type": "string", "enum": names}),
        Shape::Message(_, fields) => message(fields()),
        Shape::List(item) => json!({"type": "array", "items": of(item())}),
        Shape::Map(value) => json!({"type": "object", "additionalProperties": of(value())}),
    }
}

fn leaf(name: &str) -> Value {
    match name {
        "bool" => json!({"type": "boolean"}),
        "int32" => json!({"type": "integer", "format": "int32"}),
        "uint32" => json!({"type": "integer", "minimum": 0, "maximum": u32::MAX}),
        "double" => json!({"type": "number"}),
        // JSON may write it as a string.
        "int64" => json!({"x-kubernetes-int-or-string": true}),
        "struct" => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        "bytes" => json!({"type": "string", "format": "byte"}),
        _ => json!({"type": "string"}),
    }
}

fn message(fields: &[Field]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|f| (f.name.clone(), of(f.shape))).collect();
    let mut schema = json!({"type": "object", "properties": properties});
    let mut groups = BTreeMap::<&str, Vec<&str>>::new();
    for field in fields {
        if let Some(group) = field.group {
            groups.entry(group).or_default().push(&field.name);
        }
    }
    let rules: Vec<Value> =
        groups.values().filter(|of| of.len() > 1).map(|of| at_most_one(of)).collect();
    if let (false, Some(fields)) = (rules.is_empty(), schema.as_object_mut()) {
        fields.insert("allOf".to_owned(), rules.into());
    }
    schema
}

fn at_most_one(names: &[&str]) -> Value {
    let given: Vec<Value> = names.iter().map(|name| json!({"required": [name]})).collect();
    let none = json!({"not": {"anyOf": given}});
    let all: Vec<Value> = [none].into_iter().chain(given).collect();
    json!({"oneOf": all})
}
