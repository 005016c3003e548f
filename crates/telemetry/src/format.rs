//! Lines of the access log in Envoy's words: a text, or an object of texts, with operators such as
//! `%RESPONSE_CODE%` and `%REQ(X-REQUEST-ID)%` in it.

use crate::request::{GRPC_UNKNOWN, RequestRecord};
use std::{fmt::Write as _, net::SocketAddr, ops::Range};

/// Istio's text, where nothing is said.
pub const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
    %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
    %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% \
    %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \
    \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" \
    %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// What a line is made of.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Format {
    /// [`RequestRecord`]'s own fields.
    #[default]
    Own,
    Text(Vec<Part>),
    Object(Vec<(String, Vec<Part>)>),
}

#[derive(Clone, PartialEq, Debug)]
pub enum Part {
    Plain(String),
    Field(Field),
    /// The first of these that the request has, and how much of it.
    Request(Vec<String>, Option<usize>),
    Response(Vec<String>, Option<usize>),
    StartTime(Vec<Moment>),
}

/// A part of a time: text of its own, or so many digits of RFC 3339's form, with zeros after them.
#[derive(Clone, PartialEq, Debug)]
pub enum Moment {
    Plain(String),
    Digits(Range<usize>, usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    StartTime,
    Protocol,
    ResponseCode,
    ResponseFlags,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    BytesReceived,
    BytesSent,
    Duration,
    UpstreamHost,
    UpstreamCluster,
    RouteName,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    DownstreamPeerUriSan,
    RequestedServerName,
    UpstreamRequestAttemptCount,
    GrpcStatus,
    /// Known to Envoy, and nothing here: `-`.
    Absent,
}

const FIELDS: [(&str, Field); 33] = [
    ("START_TIME", Field::StartTime),
    ("PROTOCOL", Field::Protocol),
    ("RESPONSE_CODE", Field::ResponseCode),
    ("RESPONSE_FLAGS", Field::ResponseFlags),
    ("RESPONSE_CODE_DETAILS", Field::ResponseCodeDetails),
    ("BYTES_RECEIVED", Field::BytesReceived),
    ("BYTES_SENT", Field::BytesSent),
    ("DURATION", Field::Duration),
    ("UPSTREAM_HOST", Field::UpstreamHost),
    ("UPSTREAM_REMOTE_ADDRESS", Field::UpstreamHost),
    ("UPSTREAM_CLUSTER", Field::UpstreamCluster),
    ("UPSTREAM_CLUSTER_RAW", Field::UpstreamCluster),
    ("ROUTE_NAME", Field::RouteName),
    ("DOWNSTREAM_REMOTE_ADDRESS", Field::DownstreamRemoteAddress),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Field::DownstreamRemoteAddress),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Field::DownstreamRemoteAddressWithoutPort),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Field::DownstreamRemoteAddressWithoutPort),
    ("DOWNSTREAM_LOCAL_ADDRESS", Field::DownstreamLocalAddress),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Field::DownstreamLocalAddressWithoutPort),
    ("DOWNSTREAM_LOCAL_PORT", Field::DownstreamLocalPort),
    ("DOWNSTREAM_PEER_URI_SAN", Field::DownstreamPeerUriSan),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Field::UpstreamRequestAttemptCount),
    ("GRPC_STATUS_NUMBER", Field::GrpcStatus),
    ("GRPC_STATUS", Field::GrpcStatus),
    ("CONNECTION_TERMINATION_DETAILS", Field::ConnectionTerminationDetails),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", Field::Absent),
    ("UPSTREAM_LOCAL_ADDRESS", Field::Absent),
    ("REQUESTED_SERVER_NAME", Field::RequestedServerName),
    ("RESPONSE_DURATION", Field::Absent),
    ("REQUEST_DURATION", Field::Absent),
    ("DOWNSTREAM_LOCAL_URI_SAN", Field::Absent),
    ("VIRTUAL_CLUSTER_NAME", Field::Absent),
    ("HOSTNAME", Field::Absent),
];

impl Format {
    pub fn text(of: &str) -> Result<Self, String> {
        parts(if of.is_empty() { ISTIO } else { of }).map(Self::Text)
    }

    /// `of`: an object of JSON whose values are texts.
    pub fn object(of: &str) -> Result<Self, String> {
        if of.is_empty() {
            return Ok(Self::Own);
        }
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(of).map_err(|e| format!("it is no object of JSON: {e}"))?;
        let field = |(name, value): (String, serde_json::Value)| match value {
            serde_json::Value::String(text) => Ok((name, parts(&text)?)),
            other => Err(format!("{name} is {other}, and no text")),
        };
        object.into_iter().map(field).collect::<Result<_, _>>().map(Self::Object)
    }

    /// Names of headers that lines have in them: of requests, and of answers.
    pub fn headers(&self) -> (Vec<&str>, Vec<&str>) {
        let all: Vec<&Part> = match self {
            Self::Own => Vec::new(),
            Self::Text(parts) => parts.iter().collect(),
            Self::Object(fields) => fields.iter().flat_map(|(_, parts)| parts).collect(),
        };
        let (mut request, mut response) = (Vec::new(), Vec::new());
        for part in all {
            match part {
                Part::Request(names, _) => request.extend(names.iter().map(String::as_str)),
                Part::Response(names, _) => response.extend(names.iter().map(String::as_str)),
                Part::Plain(_) | Part::Field(_) | Part::StartTime(_) => {}
            }
        }
        (request, response)
    }

    /// The line of a request or of a connection, without the end of the line.
    pub fn line(&self, r: &RequestRecord, logged: &Logged) -> String {
        match self {
            Self::Own => r.line(),
            Self::Text(parts) => {
                let mut line = String::with_capacity(512);
                parts.iter().for_each(|p| p.write(r, logged, &mut line));
                line.truncate(line.trim_end_matches('\n').len());
                line
            }
            Self::Object(fields) => {
                let value = |parts: &[Part]| {
                    let mut text = String::new();
                    parts.iter().for_each(|p| p.write(r, logged, &mut text));
                    // What is one number is a number.
                    match parts {
                        [Part::Field(_)] => text.parse::<u64>().map_or(text.into(), Into::into),
                        _ => serde_json::Value::from(text),
                    }
                };
                let object: serde_json::Map<String, serde_json::Value> =
                    fields.iter().map(|(name, parts)| (name.clone(), value(parts))).collect();
                serde_json::Value::Object(object).to_string()
            }
        }
    }
}

/// Headers of a request and of its answer, as far as the log has them: by their names in lower case.
#[derive(Clone, Debug, Default)]
pub struct Logged {
    pub request: Vec<(String, String)>,
    pub response: Vec<(String, String)>,
}

fn parts(text: &str) -> Result<Vec<Part>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (plain, from) = rest.split_at(at);
        if !plain.is_empty() {
            out.push(Part::Plain(plain.to_owned()));
        }
        let inside = from.get(1..).unwrap_or_default();
        if let Some(after) = inside.strip_prefix('%') {
            out.push(Part::Plain("%".to_owned()));
            rest = after;
            continue;
        }
        // What is in parentheses may have a % of its own.
        let word = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let argument = word.filter(|at| inside.get(*at..).is_some_and(|r| r.starts_with('(')));
        let before = argument.and_then(|at| Some(at + inside.get(at..)?.find(')')?)).unwrap_or(0);
        let end = inside.get(before..).and_then(|r| r.find('%')).map(|at| before + at);
        let end = end.ok_or_else(|| format!("{from:?} has no second %"))?;
        out.push(operator(inside.get(..end).unwrap_or_default())?);
        rest = inside.get(end + 1..).unwrap_or_default();
    }
    if !rest.is_empty() {
        out.push(Part::Plain(rest.to_owned()));
    }
    Ok(out)
}

/// `NAME`, `NAME(what)` or `NAME(what):most`.
fn operator(text: &str) -> Result<Part, String> {
    let unknown = || format!("%{text}% is no operator that is known here");
    let (name, rest) = match text.find('(') {
        Some(at) => text.split_at(at),
        None => text.split_once(':').map_or((text, ""), |(name, _)| (name, "")),
    };
    let (what, most) = match rest.strip_prefix('(') {
        None => ("", ""),
        Some(rest) => {
            let (what, after) = rest.rsplit_once(')').ok_or_else(unknown)?;
            (what, after.strip_prefix(':').unwrap_or_default())
        }
    };
    let most = match most {
        "" => None,
        most => Some(most.parse().map_err(|_| unknown())?),
    };
    let names = || what.split('?').map(|n| n.trim().to_ascii_lowercase()).collect::<Vec<_>>();
    match name {
        "REQ" if !what.is_empty() => Ok(Part::Request(names(), most)),
        "RESP" if !what.is_empty() => Ok(Part::Response(names(), most)),
        // Of these nothing is known here.
        "TRAILER" | "DYNAMIC_METADATA" | "CLUSTER_METADATA" | "UPSTREAM_METADATA"
        | "FILTER_STATE" | "ENVIRONMENT" | "METADATA" => Ok(Part::Field(Field::Absent)),
        "START_TIME" if !what.is_empty() => moments(what).map(Part::StartTime),
        name if !what.is_empty() => Err(format!("%{name}% takes nothing in parentheses here")),
        name => {
            let found = FIELDS.iter().find(|(n, _)| *n == name);
            found.map(|(_, f)| Part::Field(*f)).ok_or_else(unknown)
        }
    }
}

/// A time as strftime(3) has it, as far as its parts are RFC 3339's; `%f` is Envoy's: fractions of a
/// second, in nanoseconds or in as many digits as are before it.
fn moments(text: &str) -> Result<Vec<Moment>, String> {
    let (date, time) =
        ([(0..4, "-"), (5..7, "-"), (8..10, "")], [(11..13, ":"), (14..16, ":"), (17..19, "")]);
    let several = |of: [(Range<usize>, &str); 3]| {
        let one = |(digits, after): (Range<usize>, &str)| {
            [Moment::Digits(digits, 0), Moment::Plain(after.to_owned())]
        };
        of.into_iter().flat_map(one).collect::<Vec<_>>()
    };
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((plain, from)) = rest.split_once('%') {
        out.push(Moment::Plain(plain.to_owned()));
        let fraction = ["3f", "6f", "9f", "f"].into_iter().find(|f| from.starts_with(f));
        let length =
            fraction.map_or_else(|| from.chars().next().map_or(0, char::len_utf8), str::len);
        let (what, after) = from.split_at(length);
        rest = after;
        match what {
            "Y" => out.push(Moment::Digits(0..4, 0)),
            "m" => out.push(Moment::Digits(5..7, 0)),
            "d" => out.push(Moment::Digits(8..10, 0)),
            "H" => out.push(Moment::Digits(11..13, 0)),
            "M" => out.push(Moment::Digits(14..16, 0)),
            "S" => out.push(Moment::Digits(17..19, 0)),
            "F" => out.extend(several(date.clone())),
            "T" => out.extend(several(time.clone())),
            "3f" => out.push(Moment::Digits(20..23, 0)),
            "6f" => out.push(Moment::Digits(20..23, 3)),
            "9f" | "f" => out.push(Moment::Digits(20..23, 6)),
            "Z" => out.push(Moment::Plain("UTC".to_owned())),
            "z" => out.push(Moment::Plain("+0000".to_owned())),
            "%" => out.push(Moment::Plain("%".to_owned())),
            other => {
                return Err(format!(
                    "%{other} of START_TIME({text}) is not known here: there are \
                     Y m d H M S F T f 3f 6f 9f Z z"
                ));
            }
        }
    }
    out.push(Moment::Plain(rest.to_owned()));
    Ok(out)
}

impl Part {
    fn write(&self, r: &RequestRecord, logged: &Logged, out: &mut String) {
        match self {
            Self::Plain(text) => out.push_str(text),
            Self::Field(field) => field.write(r, out),
            Self::Request(names, most) => {
                let own = |name: &String| match name.as_str() {
                    ":method" => Some(r.method.as_str()),
                    ":path" => Some(r.path.as_str()),
                    ":authority" | "host" => Some(r.authority.as_str()),
                    "x-request-id" => Some(r.request_id.as_str()),
                    "user-agent" => Some(r.user_agent.as_str()),
                    name => find(&logged.request, name),
                };
                push(out, names.iter().filter_map(own).find(|v| !v.is_empty()), *most);
            }
            Self::StartTime(moments) => {
                for m in moments {
                    match m {
                        Moment::Plain(text) => out.push_str(text),
                        Moment::Digits(at, zeros) => {
                            out.push_str(r.start_time.get(at.clone()).unwrap_or_default());
                            out.extend(std::iter::repeat_n('0', *zeros));
                        }
                    }
                }
            }
            Self::Response(names, most) => {
                push(out, names.iter().find_map(|n| find(&logged.response, n)), *most);
            }
        }
    }
}

fn find<'a>(all: &'a [(String, String)], name: &str) -> Option<&'a str> {
    all.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
}

fn push(out: &mut String, value: Option<&str>, most: Option<usize>) {
    let value = value.unwrap_or("-");
    let end =
        most.and_then(|most| value.char_indices().nth(most)).map_or(value.len(), |(at, _)| at);
    out.push_str(value.get(..end).unwrap_or_default());
}

/// As Envoy's details are.
fn one_word(details: &str) -> String {
    details.replace(char::is_whitespace, "_")
}

impl Field {
    fn write(self, r: &RequestRecord, out: &mut String) {
        let text = |s: &str, out: &mut String| push(out, Some(s).filter(|s| !s.is_empty()), None);
        let ip = |a: Option<SocketAddr>| a.map(|a| a.ip().to_string());
        let or_none = |s: Option<String>, out: &mut String| push(out, s.as_deref(), None);
        let written = match self {
            Self::StartTime => return text(&r.start_time, out),
            Self::Protocol => return text(r.protocol, out),
            Self::ResponseFlags => return text(r.response_flags, out),
            Self::ResponseCodeDetails => return text(&one_word(&r.response_code_details), out),
            Self::ConnectionTerminationDetails => {
                return or_none(r.connection_termination_details.as_deref().map(one_word), out);
            }
            Self::RequestedServerName => {
                return push(out, r.requested_server_name.as_deref(), None);
            }
            Self::UpstreamCluster => return text(&r.upstream_cluster, out),
            Self::RouteName => return text(&r.route_name, out),
            Self::UpstreamHost => return or_none(r.upstream_host.map(|a| a.to_string()), out),
            Self::DownstreamRemoteAddress => {
                return or_none(r.downstream_remote_address.map(|a| a.to_string()), out);
            }
            Self::DownstreamRemoteAddressWithoutPort => {
                return or_none(ip(r.downstream_remote_address), out);
            }
            Self::DownstreamLocalAddress => {
                return or_none(r.downstream_local_address.map(|a| a.to_string()), out);
            }
            Self::DownstreamLocalAddressWithoutPort => {
                return or_none(ip(r.downstream_local_address), out);
            }
            Self::DownstreamLocalPort => {
                return or_none(r.downstream_local_address.map(|a| a.port().to_string()), out);
            }
            Self::DownstreamPeerUriSan => return push(out, r.downstream_peer.as_deref(), None),
            Self::GrpcStatus if r.grpc_status == GRPC_UNKNOWN => return push(out, None, None),
            Self::Absent => return push(out, None, None),
            Self::ResponseCode => u64::from(r.response_code),
            Self::BytesReceived => r.bytes_received,
            Self::BytesSent => r.bytes_sent,
            Self::Duration => r.duration,
            Self::UpstreamRequestAttemptCount => u64::from(r.attempts),
            Self::GrpcStatus => u64::from(r.grpc_status),
        };
        let _ = write!(out, "{written}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record() -> RequestRecord {
        RequestRecord {
            start_time: "2026-01-01T00:00:00.000Z".into(),
            method: "GET".into(),
            path: "/a?b".into(),
            protocol: "HTTP/1.1",
            response_code: 200,
            response_flags: "-",
            duration: 7,
            authority: "reviews".into(),
            request_id: "id".into(),
            upstream_cluster: "outbound|80||r".into(),
            upstream_host: Some("10.0.0.1:80".parse().unwrap()),
            grpc_status: GRPC_UNKNOWN,
            ..RequestRecord::default()
        }
    }

    fn line(format: &str) -> String {
        let logged = Logged {
            request: vec![("x-a".into(), "one two".into())],
            response: vec![("server".into(), "s".into())],
        };
        Format::text(format).unwrap().line(&record(), &logged)
    }

    #[test]
    fn istios_own_line_is_whole() {
        assert_eq!(
            line(""),
            "[2026-01-01T00:00:00.000Z] \"GET /a?b HTTP/1.1\" 200 - - - \"-\" 0 0 7 - \"-\" \"-\" \
             \"id\" \"reviews\" \"10.0.0.1:80\" outbound|80||r - - - - -"
        );
    }

    #[test]
    fn a_connection_of_bytes_has_what_there_is_of_it() {
        let connection = RequestRecord {
            start_time: "2026-01-01T00:00:00.000Z".into(),
            response_flags: "UF",
            connection_termination_details: Some("nobody is there".into()),
            requested_server_name: Some("db.example".into()),
            bytes_received: 5,
            grpc_status: GRPC_UNKNOWN,
            ..RequestRecord::default()
        };
        let line = Format::text("").unwrap().line(&connection, &Logged::default());
        assert_eq!(
            line,
            "[2026-01-01T00:00:00.000Z] \"- - -\" 0 UF - nobody_is_there \"-\" 5 0 0 - \"-\" \"-\" \"-\" \
             \"-\" \"-\" - - - - db.example -"
        );
        let own = Format::Own.line(&connection, &Logged::default());
        assert!(own.contains("\"requested_server_name\":\"db.example\""), "{own}");
        assert!(!own.contains("\"method\"") && !own.contains("\"path\""), "{own}");
    }

    #[test]
    fn operators_have_arguments_and_lengths() {
        assert_eq!(
            line("%REQ(X-B?X-A)% %REQ(X-A):3%|%RESP(server)%|%%|%REQ(none)%"),
            "one two one|s|%|-"
        );
    }

    #[test]
    fn times_are_written_as_they_are_asked_for() {
        assert_eq!(line("%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%|"), "2026-01-01T00:00:00.000Z|");
        assert_eq!(
            line("%START_TIME(%F %T.%f %z 100%%)%"),
            "2026-01-01 00:00:00.000000000 +0000 100%"
        );
        assert!(Format::text("%START_TIME(%s)%").unwrap_err().contains("%s of START_TIME"));
    }

    #[test]
    fn objects_have_numbers_where_there_are_numbers() {
        let format = Format::object(r#"{"code": "%RESPONSE_CODE%", "is": "%REQ(:METHOD)%"}"#);
        let line = format.unwrap().line(&record(), &Logged::default());
        assert_eq!(line, r#"{"code":200,"is":"GET"}"#);
    }

    #[test]
    fn what_is_no_operator_is_named() {
        for bad in ["%NONE%", "%REQ(%", "50%", "%REQ(A):x%", "%START_TIME(%q)%", "%DURATION(x)%"] {
            assert!(Format::text(bad).is_err(), "{bad}");
        }
        assert!(Format::text("%NONE%").unwrap_err().contains("%NONE%"));
    }
}
