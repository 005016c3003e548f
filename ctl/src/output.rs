//! Tables for people, JSON and YAML for scripts.

use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde_json::Value;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub fn json(rows: &[Value], single: bool) -> anyhow::Result<()> {
    match (single, rows.first()) {
        (true, Some(row)) => println!("{}", serde_json::to_string_pretty(row)?),
        _ => println!("{}", serde_json::to_string_pretty(rows)?),
    }
    Ok(())
}

pub fn yaml(rows: &[Value], single: bool) -> anyhow::Result<()> {
    let text = match (single, rows.first()) {
        (true, Some(row)) => serde_saphyr::to_string(row),
        _ => serde_saphyr::to_string(&rows),
    };
    print!("{}", text.context("writing YAML")?);
    Ok(())
}

type Column = (&'static str, fn(&Value) -> String);

pub fn table(what: &str, rows: &[Value]) {
    match what {
        "status" => {
            if let Some(status) = rows.first() {
                print_status(status);
            }
        }
        "workloads" => print(
            rows,
            &[
                ("NAMESPACE", |v| text(v, "/namespace")),
                ("NAME", |v| text(v, "/name")),
                ("ADDRESSES", |v| text(v, "/addresses")),
                ("NODE", |v| text(v, "/node")),
                ("PROTOCOL", |v| text(v, "/protocol")),
                ("HEALTHY", |v| text(v, "/healthy")),
                ("POLICIES", |v| text(v, "/policies")),
            ],
        ),
        "services" => print(
            rows,
            &[
                ("NAMESPACE", |v| text(v, "/namespace")),
                ("HOSTNAME", |v| text(v, "/hostname")),
                ("ADDRESSES", |v| text(v, "/addresses")),
                ("PORTS", |v| ports(v)),
                ("ENDPOINTS", |v| {
                    format!("{}/{}", text(v, "/endpoints/eligible"), text(v, "/endpoints/known"))
                }),
            ],
        ),
        "policies" => print(
            rows,
            &[
                ("NAME", |v| text(v, "/name")),
                ("SCOPE", |v| text(v, "/scope")),
                ("ACTION", |v| text(v, "/action")),
                ("RULES", |v| text(v, "/rules")),
                ("DRY RUN", |v| text(v, "/dry_run")),
            ],
        ),
        "certificates" => print(
            rows,
            &[
                ("IDENTITY", |v| text(v, "/identity")),
                ("STATE", |v| text(v, "/state")),
                ("SERIAL", |v| text(v, "/serial")),
                ("EXPIRES IN", |v| expires(v)),
                ("LAST ERROR", |v| text(v, "/last_error")),
            ],
        ),
        _ => print(
            rows,
            &[
                ("ID", |v| text(v, "/id")),
                ("DIRECTION", |v| text(v, "/direction")),
                ("SOURCE", |v| end(v, "source")),
                ("SOURCE IDENTITY", |v| text(v, "/source/identity")),
                ("DESTINATION", |v| end(v, "destination")),
                ("DESTINATION IDENTITY", |v| text(v, "/destination/identity")),
                ("TRANSPORT", |v| text(v, "/transport")),
                ("SENT", |v| text(v, "/sent")),
                ("RECEIVED", |v| text(v, "/received")),
                ("MS", |v| text(v, "/duration_ms")),
            ],
        ),
    }
}

fn print_status(status: &Value) {
    println!("node       {}", text(status, "/node"));
    println!("version    {}", text(status, "/version"));
    println!("ready      {}", text(status, "/ready"));
    println!(
        "discovery  {}",
        match status.pointer("/discovery_connected") {
            Some(Value::Bool(true)) => "connected",
            _ => "not connected; the last good state is in force",
        }
    );
    println!(
        "open       {} connections, {} pooled, {} streams",
        text(status, "/connections"),
        text(status, "/pool/connections"),
        text(status, "/pool/streams")
    );
    println!();
    let pods = status.pointer("/pods").and_then(Value::as_array).cloned().unwrap_or_default();
    print(
        &pods,
        &[
            ("POD", |v| text(v, "/uid")),
            ("IDENTITY", |v| text(v, "/identity")),
            ("ADDRESSES", |v| text(v, "/addresses")),
            ("CAPTURED", |v| text(v, "/captured")),
            ("EARLIER", |v| text(v, "/earlier_connections")),
            ("DROPPED", |v| dropped(v)),
        ],
    );
}

fn dropped(pod: &Value) -> String {
    let reasons = ["syn", "segment", "fragment", "protocol", "malformed"];
    let sum: u64 = reasons
        .iter()
        .filter_map(|r| pod.get(format!("dropped_{r}")).and_then(Value::as_u64))
        .sum();
    sum.to_string()
}

fn print(rows: &[Value], columns: &[Column]) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(columns.iter().map(|(name, _)| *name));
    for row in rows {
        table.add_row(columns.iter().map(|(_, value)| value(row)));
    }
    println!("{table}");
}

fn text(v: &Value, pointer: &str) -> String {
    match v.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(s)) if s.is_empty() => "-".to_owned(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(a)) if a.is_empty() => "-".to_owned(),
        Some(Value::Array(a)) => a
            .iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned))
            .collect::<Vec<_>>()
            .join(","),
        Some(other) => other.to_string(),
    }
}

fn end(v: &Value, side: &str) -> String {
    let workload = text(v, &format!("/{side}/workload"));
    format!("{workload} {}", text(v, &format!("/{side}/address")))
}

fn ports(v: &Value) -> String {
    let ports = v.pointer("/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    ports
        .iter()
        .map(|p| format!("{}>{}", text(p, "/service_port"), text(p, "/target_port")))
        .collect::<Vec<_>>()
        .join(",")
}

fn expires(v: &Value) -> String {
    let Some(at) = v.pointer("/not_after").and_then(Value::as_u64) else { return "-".to_owned() };
    match (UNIX_EPOCH + Duration::from_secs(at)).duration_since(SystemTime::now()) {
        Ok(left) => format!("{}h{:02}m", left.as_secs() / 3600, left.as_secs() % 3600 / 60),
        Err(_) => "expired".to_owned(),
    }
}
