//! What is told of requests and connections, as the control plane has it: lines of the access log, and spans.

use http::{HeaderMap, HeaderName};
use prost::Message as _;
use routes::{
    execute::Target,
    proto::{self, telemetry::Log},
};
use telemetry::{Format, Logged, RequestRecord};

#[derive(Default)]
pub struct Telling {
    /// None: no line.
    pub log: Option<Logging>,
    pub tracing: Option<Tracing>,
}

pub struct Logging {
    format: Format,
    /// Headers that lines have in them.
    pub of_requests: Vec<String>,
    pub of_responses: Vec<String>,
}

pub struct Tracing {
    pub collector: Target,
    /// In millionths, of requests that nobody has decided about.
    pub sampled: u32,
    tags: Vec<Tag>,
}

/// What a span has in it beside what all have.
struct Tag {
    name: String,
    of: Of,
    default: String,
}

enum Of {
    Literal(String),
    Header(HeaderName),
}

impl Tracing {
    /// A request's tags, by its headers.
    pub fn tags(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let one = |t: &Tag| {
            let said = match &t.of {
                Of::Literal(text) => Some(text.clone()),
                Of::Header(name) => {
                    headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
                }
            };
            let value = said.filter(|v| !v.is_empty()).unwrap_or_else(|| t.default.clone());
            (!value.is_empty()).then(|| (t.name.clone(), value))
        };
        self.tags.iter().filter_map(one).collect()
    }
}

fn tag(t: proto::SpanTag) -> Result<Tag, String> {
    use proto::span_tag::From as Said;
    let of = match t.from {
        Some(Said::Literal(text)) => Of::Literal(text),
        // What this process was given does not change.
        Some(Said::Environment(name)) => Of::Literal(std::env::var(name).unwrap_or_default()),
        Some(Said::Header(name)) => Of::Header(
            name.parse().map_err(|_| format!("customTags.{}: {name:?} is no header", t.name))?,
        ),
        None => Of::Literal(String::new()),
    };
    Ok(Tag { name: t.name, of, default: t.default })
}

impl From<Format> for Logging {
    fn from(format: Format) -> Self {
        let owned = |all: Vec<&str>| all.into_iter().map(str::to_owned).collect();
        let (of_requests, of_responses) = format.headers();
        let (of_requests, of_responses) = (owned(of_requests), owned(of_responses));
        Self { format, of_requests, of_responses }
    }
}

impl Logging {
    /// The line of what has ended.
    pub fn write(&self, r: &RequestRecord, logged: &Logged) {
        match &self.format {
            Format::Own => tracing::info!(target: "access", "{}", r.line()),
            format => telemetry::log::line(format.line(r, logged)),
        }
    }
}

impl Telling {
    /// Where nobody has said anything.
    pub fn own() -> Self {
        Self { log: Some(Format::Own.into()), tracing: None }
    }

    pub fn load(body: &[u8]) -> Result<Self, String> {
        let t = proto::Telemetry::decode(body).map_err(|e| e.to_string())?;
        let named = |e: String| format!("accessLogFormat: {e}");
        let format = match t.log {
            None => Format::Own,
            Some(Log::Text(text)) => Format::text(&text).map_err(named)?,
            Some(Log::Object(text)) => Format::object(&text).map_err(named)?,
        };
        let tracing = |t: proto::Tracing| {
            Ok::<_, String>(Tracing {
                collector: Target::load(t.to.as_ref())?,
                sampled: t.sampled.map_or(0, |p| p.ppm),
                tags: t.tags.into_iter().map(tag).collect::<Result<_, _>>()?,
            })
        };
        Ok(Self {
            log: (!t.silent).then(|| format.into()),
            tracing: t.tracing.map(tracing).transpose()?,
        })
    }
}
