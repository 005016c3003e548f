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

/// What would become of a connection, to be read from top to bottom.
pub fn why(rows: &[Value]) {
    let Some(told) = rows.first() else { return };
    let end = |v: &Value| {
        let name =
            ["/workload", "/service", "/address"].iter().find_map(|p| v.pointer(p)?.as_str());
        let name = name.unwrap_or("?").to_owned();
        match v.pointer("/identity").and_then(Value::as_str) {
            Some(id) if v["in_mesh"] == true => format!("{name}, {id}"),
            Some(_) => format!("{name}, not in the mesh"),
            None => name,
        }
    };
    println!("from  {}", end(&told["source"]));
    println!("to    {}", end(&told["destination"]));
    for note in strings(&told["notes"]) {
        println!("note  {note}");
    }
    for answer in told["answers"].as_array().into_iter().flatten() {
        let verdict = if answer["allowed"] == true { "ALLOWED" } else { "REFUSED" };
        let endpoints = strings(&answer["endpoints"]).join(", ");
        let to = if endpoints.is_empty() { String::new() } else { format!(" at {endpoints}") };
        let transport = answer["transport"].as_str().unwrap_or_default();
        let by = if transport.is_empty() { String::new() } else { format!(", over {transport}") };
        println!("\n{verdict}{to}{by}");
        println!("  decided by: {}", answer["decided_by"].as_str().unwrap_or_default());
        for because in strings(&answer["because"]) {
            println!("  because:    {because}");
        }
        for n in answer["nearly"].as_array().into_iter().flatten() {
            println!(
                "  nearly:     {} policy {}, rule {}: {}",
                n["action"].as_str().unwrap_or_default().to_lowercase(),
                n["policy"].as_str().unwrap_or_default(),
                n["rule"],
                strings(&n["unmet"]).join("; ")
            );
        }
        if let Some(change) = answer["change"].as_str() {
            println!("  to change:  {change}");
        }
        let applied: Vec<String> = answer["policies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| Some(p["policy"].as_str()?.to_owned()))
            .collect();
        if !applied.is_empty() {
            println!("  applied:    {}", applied.join(", "));
        }
    }
}

fn strings(v: &Value) -> Vec<&str> {
    v.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
