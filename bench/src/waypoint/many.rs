//! 10,000 routes beside 10, as 10,000 hosts and as 10,000 matches of one host; and one of them
//! changed while others are asked for.

use super::{
    SUITE,
    alone::measure,
    apply, gateway,
    place::{self, Client, OTHERS, Place},
    to, unit,
};
use crate::{
    load::{Load, SECONDS},
    process,
    report::{Goal, Row},
    role::Samples,
};
use anyhow::ensure;
use culvert_tests::Mesh;
use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

const MANY: usize = 10_000;
const FEW: usize = 10;
/// In how many objects the many of one host may be.
const PARTS: usize = 100;
const CHANGED_PART: usize = 50;

/// The load under which throughput is compared.
const LOAD: Load = Load::Http1(16);
/// The one under which a route changes.
const PACED: Load = Load::Paced(20, 2000);

/// Changes while a load lasts.
const CHANGES: usize = 4;

struct Shape {
    name: &'static str,
    label: &'static str,
    /// Who is asked while the load lasts.
    host: String,
    path: String,
    /// Whose route changes.
    changed: String,
}

pub fn run(mesh: &Mesh, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let mut places = Vec::new();
    let last = |n: usize| format!("/{}", n - 2);
    let shape = |name, label, host: String, path, changed: String| Shape {
        name,
        label,
        host,
        path,
        changed,
    };
    let one = |label: &str| format!("{label}.example");
    let shapes = [
        shape("10 routes of one host", "few", one("few"), last(FEW), one("few")),
        shape("10,000 routes of one host", "long", one("long"), last(MANY), one("long")),
        shape("10,000 routes in 100 objects", "merged", one("merged"), last(MANY), one("merged")),
        shape("10,000 hosts", "wide", wide(MANY - 1), "/".to_owned(), wide(MANY / 2)),
    ];
    for shape in &shapes {
        gateway(mesh, shape.label);
    }
    eprintln!("writing 10,000 routes, and 10,000 hosts with one each");
    write_one_host(mesh, "few", FEW, 0);
    write_one_host(mesh, "long", MANY, 0);
    for part in 0..PARTS {
        write_part(mesh, part, 0);
    }
    for n in 0..MANY {
        write_wide(mesh, n, 0);
    }
    for shape in &shapes {
        let place = Place::new(mesh, 2, shape.label)?;
        place.serves(&shape.host, place::PORT, &shape.path)?;
        places.push(place);
    }
    let mut samples = Samples::default();
    for round in 1..=rounds {
        eprintln!("few routes and many, round {round} of {rounds}");
        for (shape, place) in shapes.iter().zip(&places) {
            let url = place.url(mesh, &shape.host, place::PORT, &shape.path);
            measure(place, &[place.gateway.pid()], LOAD, &url, OTHERS, shape.name, &mut samples)?;
        }
    }
    let mut revision = 0;
    for round in 1..=rounds {
        eprintln!("a route changes, round {round} of {rounds}");
        for (shape, place) in shapes.iter().zip(&places) {
            changing(mesh, shape, place, &mut revision, &mut samples)?;
        }
    }
    for (shape, place) in shapes.iter().zip(&places) {
        let resident = process::resident(place.gateway.pid())?;
        samples.add(&format!("{}: resident", shape.name), resident);
    }
    Ok(with_goals(&samples, &shapes))
}

fn wide(n: usize) -> String {
    format!("h{n}.wide.example")
}

/// A route that says its revision, one by header, and prefixes.
fn write_one_host(mesh: &Mesh, label: &str, routes: usize, revision: usize) {
    let mut http = vec![says(revision)];
    http.extend((0..routes - 1).map(route));
    // The longest first, as prefixes are asked in their order.
    http.reverse();
    write(mesh, label, label, &http);
}

/// One of those that are merged, the oldest of which has the longest prefixes.
fn write_part(mesh: &Mesh, part: usize, revision: usize) {
    let each = MANY / PARTS;
    let mut http: Vec<String> =
        (0..each).map(|n| (PARTS - 1 - part) * each + n).map(route).rev().collect();
    if part == CHANGED_PART {
        http[0] = says(revision);
    }
    write(mesh, "merged", &format!("merged-{part:03}"), &http);
}

fn write(mesh: &Mesh, host: &str, name: &str, http: &[String]) {
    let http = http.join(", ");
    let spec = format!("{{ hosts: [{host}.example], gateways: [{host}], http: [{http}] }}");
    apply(mesh, "VirtualService", name, &spec);
}

fn says(revision: usize) -> String {
    format!(
        "{{ match: [{{ uri: {{ exact: /revision }} }}], \
           directResponse: {{ status: 200, body: {{ string: \"r{revision}\" }} }} }}"
    )
}

fn route(n: usize) -> String {
    match n % 2 {
        0 => format!("{{ match: [{{ uri: {{ prefix: /{n} }} }}], route: [{}] }}", to("v0")),
        _ => format!(
            "{{ match: [{{ headers: {{ end-user: {{ exact: u{n} }} }} }}], route: [{}] }}",
            to("v1")
        ),
    }
}

fn write_wide(mesh: &Mesh, n: usize, revision: usize) {
    let route = match revision {
        0 => format!("route: [{}]", to("v0")),
        r => format!("directResponse: {{ status: 200, body: {{ string: \"r{r}\" }} }}"),
    };
    let spec = format!("{{ hosts: [{}], gateways: [wide], http: [{{ {route} }}] }}", wide(n));
    apply(mesh, "VirtualService", &format!("wide-{n}"), &spec);
}

/// A load without changes, then one with: how it went for others, and when each change showed.
fn changing(
    mesh: &Mesh,
    shape: &Shape,
    place: &Place,
    revision: &mut usize,
    into: &mut Samples,
) -> anyhow::Result<()> {
    let url = place.url(mesh, &shape.host, place::PORT, &shape.path);
    let pod = &place.gateway.pod;
    let quiet = PACED.run(pod, &url, OTHERS, SECONDS)?;
    into.add(&format!("{}: {}: p99", shape.name, PACED.name()), quiet.p99);
    let netns: PathBuf = pod.netns_path();
    let (disturbed, seen) = thread::scope(|s| {
        let load = s.spawn(|| PACED.run(pod, &url, OTHERS, SECONDS));
        thread::sleep(Duration::from_millis(200));
        let mut seen = Vec::new();
        for _ in 0..CHANGES {
            *revision += 1;
            seen.push(until_seen(mesh, shape, &netns, *revision));
            thread::sleep(Duration::from_millis(200));
        }
        (load.join().expect("the load's thread"), seen)
    });
    for took in seen {
        into.add(&format!("{}: a change in effect", shape.name), took?.as_secs_f64() * 1e3);
    }
    let name = format!("{}: {}, while routes change: p99", shape.name, PACED.name());
    into.add(&name, disturbed?.p99);
    Ok(())
}

/// Changes the route, and asks until the answer is the new one's.
fn until_seen(
    mesh: &Mesh,
    shape: &Shape,
    netns: &std::path::Path,
    revision: usize,
) -> anyhow::Result<Duration> {
    let mut client = Client::connect(netns, place::PORT)?;
    let begun = Instant::now();
    match shape.label {
        "few" => write_one_host(mesh, "few", FEW, revision),
        "long" => write_one_host(mesh, "long", MANY, revision),
        "merged" => write_part(mesh, CHANGED_PART, revision),
        _ => write_wide(mesh, MANY / 2, revision),
    }
    let body = format!("\r\n\r\nr{revision}");
    while !client.get(&shape.changed, "/revision")?.ends_with(&body) {
        ensure!(begun.elapsed() < Duration::from_secs(10), "{}: no change is seen", shape.name);
        thread::sleep(Duration::from_micros(500));
    }
    Ok(begun.elapsed())
}

fn with_goals(samples: &Samples, shapes: &[Shape]) -> Vec<Row> {
    let mut rows: Vec<Row> = samples
        .iter()
        .map(|(name, values)| Row::new(SUITE, name.to_owned(), unit(name), values))
        .collect();
    let of = |rows: &[Row], name: String| rows.iter().find(|r| r.name == name).map(Row::median);
    let few =
        of(&rows, format!("{}: {}: requests of a processor's second", shapes[0].name, LOAD.name()));
    for shape in shapes {
        let quiet = of(&rows, format!("{}: {}: p99", shape.name, PACED.name()));
        for row in rows.iter_mut().filter(|r| r.name.starts_with(shape.name)) {
            row.goal = match row.name.as_str() {
                n if n.ends_with("of a processor's second") && shape.label != "few" => {
                    few.map(|few| Goal::AtLeast(few * 0.9))
                }
                n if n.ends_with("in effect") => Some(Goal::AtMost(50.0)),
                // Not moved: by no more than two runs differ anyway.
                n if n.ends_with("while routes change: p99") => {
                    quiet.map(|q| Goal::AtMost(q * 1.1))
                }
                _ => None,
            };
        }
    }
    rows
}
