//! What an API's messages are made of: declared once, read by serde, listed for the tables and
//! tests that no field may escape.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    str::FromStr,
    time::Duration,
};

/// What a field holds.
#[derive(Clone, Copy)]
pub enum Shape {
    Leaf(&'static str),
    /// With the names that it may have.
    Names(&'static str, &'static [&'static str]),
    Message(&'static str, fn() -> &'static [Field]),
    List(fn() -> Shape),
    Map(fn() -> Shape),
}

pub struct Field {
    /// As it is written in JSON.
    pub name: String,
    /// `Message.field`.
    pub whole: String,
    pub shape: Shape,
    /// At most one of a group may be given.
    pub group: Option<&'static str>,
}

pub trait Schema {
    fn shape() -> Shape;
}

macro_rules! leaves {
    ($($ty:ty = $name:literal),* $(,)?) => {
        $(impl Schema for $ty {
            fn shape() -> Shape {
                Shape::Leaf($name)
            }
        })*
    };
}

leaves! {
    String = "string", bool = "bool", i32 = "int32", u32 = "uint32", u16 = "uint32", f64 = "double",
    Number<i64> = "int64", Number<u64> = "uint64", Span = "duration", Value = "struct",
    Base64 = "bytes",
}

impl<T: Schema> Schema for Option<T> {
    fn shape() -> Shape {
        T::shape()
    }
}

impl<T: Schema> Schema for Vec<T> {
    fn shape() -> Shape {
        Shape::List(T::shape)
    }
}

impl<T: Schema> Schema for BTreeMap<String, T> {
    fn shape() -> Shape {
        Shape::Map(T::shape)
    }
}

/// `http_redirect` as `httpRedirect`: what serde makes of a field's name.
pub fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut parts = name.trim_start_matches("r#").split('_');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let mut letters = part.chars();
        out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

/// Declares messages: a struct each, with the name that Istio has for it. `in` names the oneof that a
/// field belongs to, `as` its name in JSON where that is not the field's in camel case.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident = $proto:literal {
        $($(#[$more:meta])* $field:ident $(as $json:literal)? $(in $group:ident)? : $ty:ty,)*
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, PartialEq, Debug, Default, serde::Deserialize)]
            #[serde(default, rename_all = "camelCase", deny_unknown_fields)]
            pub struct $name {
                $(
                    $(#[$more])*
                    #[serde(deserialize_with = "crate::kubernetes::nullable")]
                    $(#[serde(rename = $json)])?
                    pub $field: $ty,
                )*
            }

            impl crate::schema::Schema for $name {
                fn shape() -> crate::schema::Shape {
                    // Made once: thousands of one message are looked at in an object.
                    static FIELDS: std::sync::LazyLock<Vec<crate::schema::Field>> =
                        std::sync::LazyLock::new(|| vec![$(crate::schema::Field::new(
                            $proto,
                            stringify!($field),
                            crate::schema::last(&[$($json)?]),
                            <$ty as crate::schema::Schema>::shape(),
                            crate::schema::last(&[$(stringify!($group))?]),
                        )),*]);
                    crate::schema::Shape::Message($proto, || &FIELDS)
                }
            }
        )*
    };
}

/// Declares an enum by the names of its values; the first is what is meant without any.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident = $proto:literal {
        $first:ident = $text:literal, $($rest:ident = $more:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
        pub enum $name {
            #[default]
            #[serde(rename = $text)]
            $first,
            $(#[serde(rename = $more)] $rest,)*
        }

        impl $name {
            /// As it is written.
            pub fn name(self) -> &'static str {
                match self {
                    Self::$first => $text,
                    $(Self::$rest => $more,)*
                }
            }
        }

        impl crate::schema::Schema for $name {
            fn shape() -> crate::schema::Shape {
                crate::schema::Shape::Names($proto, &[$text, $($more),*])
            }
        }
    };
}

pub(crate) use {messages, names};

impl Field {
    pub fn new(
        message: &str,
        field: &str,
        json: Option<&str>,
        shape: Shape,
        group: Option<&'static str>,
    ) -> Self {
        let name = json.map_or_else(|| camel(field), str::to_owned);
        Self { whole: format!("{message}.{name}"), name, shape, group }
    }
}

pub const fn last(given: &[&'static str]) -> Option<&'static str> {
    match given {
        [] => None,
        [.., last] => Some(last),
    }
}

/// A length of time as Istio writes it, in Go's syntax: `1h`, `1m30s`, `10ms`, `1.5s`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a duration, such as 1h, 1m30s, 1.5s or 10ms");
        if text == "0" {
            return Ok(Self::default());
        }
        let mut left = text;
        let mut sum = Duration::ZERO;
        while !left.is_empty() {
            let digits = left.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, rest) = left.split_at_checked(digits).ok_or_else(wrong)?;
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let (unit, rest) = rest.split_at_checked(letters).ok_or_else(wrong)?;
            sum = decimal(number, unit_nanos(unit).ok_or_else(wrong)?)
                .and_then(|part| sum.checked_add(part))
                .ok_or_else(wrong)?;
            left = rest;
        }
        if text.is_empty() { Err(wrong()) } else { Ok(Self(sum)) }
    }
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "h" => 3_600_000_000_000,
        "m" => 60_000_000_000,
        "s" => 1_000_000_000,
        "ms" => 1_000_000,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ns" => 1,
        _ => return None,
    })
}

/// So many units, exactly; what is less than a nanosecond is cut off.
fn decimal(number: &str, unit: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let parse = |digits: &str| match digits {
        "" => Some(0),
        d if d.bytes().all(|b| b.is_ascii_digit()) => d.parse::<u64>().ok(),
        _ => None,
    };
    let mut nanos = parse(whole)?.checked_mul(unit)?;
    let fraction = fraction.get(..fraction.len().min(15))?;
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = u128::from(parse(fraction)?) * u128::from(unit) / scale;
    nanos = nanos.checked_add(u64::try_from(part).ok()?)?;
    Some(Duration::from_nanos(nanos))
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// Bytes, as JSON writes them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Base64(pub String);

impl Base64 {
    /// What it stands for; empty where it is not base64, which parsing has refused.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() * 3 / 4);
        let (mut bits, mut held) = (0_u32, 0);
        for digit in self.0.bytes().filter(|b| *b != b'=') {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' | b'-' => 62,
                b'/' | b'_' => 63,
                _ => return Vec::new(),
            };
            bits = bits << 6 | u32::from(value);
            held += 6;
            if held >= 8 {
                held -= 8;
                out.push((bits >> held & 0xff) as u8);
            }
        }
        out
    }
}

/// A number of 64 bits, which JSON may write as a string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Number<T>(pub T);

impl<'de, T: Deserialize<'de> + FromStr> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Number(T),
            Text(String),
        }
        match Either::deserialize(d)? {
            Either::Number(n) => Ok(Self(n)),
            Either::Text(t) => t
                .parse()
                .map(Self)
                .map_err(|_| de::Error::custom(format!("{t:?} is not a whole number"))),
        }
    }
}

/// Every field of a message and of those within it, as `Message.field`, with what it holds.
pub fn fields(root: Shape) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    collect(root, &mut all);
    all
}

fn collect(shape: Shape, all: &mut BTreeMap<String, String>) {
    match shape {
        Shape::List(of) | Shape::Map(of) => collect(of(), all),
        Shape::Message(_, fields) => {
            for field in fields() {
                let group = field.group.map(|g| format!("oneof:{} ", camel(g))).unwrap_or_default();
                let known =
                    all.insert(field.whole.clone(), format!("{group}{}", describe(field.shape)));
                if known.is_none() {
                    collect(field.shape, all);
                }
            }
        }
        Shape::Leaf(_) | Shape::Names(..) => {}
    }
}

fn describe(shape: Shape) -> String {
    match shape {
        Shape::Leaf(name) => name.to_owned(),
        Shape::Names(name, values) => format!("enum:{name}({})", values.join("|")),
        Shape::Message(name, _) => format!("message:{name}"),
        Shape::List(of) => format!("repeated {}", describe(of())),
        Shape::Map(of) => format!("map<string,{}>", describe(of())),
    }
}

/// A field that an object gives, of those that the message has or not.
pub struct Given<'a> {
    /// As in `spec.http[0].retries.attempts`.
    pub path: &'a str,
    pub name: &'a str,
    /// None: the message has no such field.
    pub field: Option<&'static Field>,
    /// All that the message has.
    pub known: &'static [Field],
    beside: &'a serde_json::Map<String, Value>,
}

impl Given<'_> {
    /// One of the same group that is given before it.
    pub fn rival(&self) -> Option<&'static str> {
        let group = self.field?.group?;
        let is_rival = |f: &&Field| {
            f.group == Some(group)
                && *f.name < *self.name
                && self.beside.get(&f.name).is_some_and(|v| !v.is_null())
        };
        self.known.iter().find(is_rival).map(|f| &*f.name)
    }
}

/// Calls `visit` for each field that `value` gives; where it says no, not for those within.
pub fn walk(shape: Shape, value: &Value, path: &str, visit: &mut impl FnMut(Given<'_>) -> bool) {
    step(shape, value, &mut path.to_owned(), visit);
}

/// `path` is as it was, afterwards.
fn step(shape: Shape, value: &Value, path: &mut String, visit: &mut impl FnMut(Given<'_>) -> bool) {
    let length = path.len();
    match (shape, value) {
        (Shape::List(of), Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                let _ = write!(path, "[{i}]");
                step(of(), item, path, visit);
                path.truncate(length);
            }
        }
        (Shape::Map(of), Value::Object(items)) => {
            for (key, item) in items {
                path.extend([".", key]);
                step(of(), item, path, visit);
                path.truncate(length);
            }
        }
        (Shape::Message(_, fields), Value::Object(items)) => {
            let known = fields();
            for (name, value) in items.iter().filter(|(_, v)| !v.is_null()) {
                let field = known.iter().find(|f| f.name == *name);
                path.extend([".", name]);
                if visit(Given { path, name, field, known, beside: items })
                    && let Some(field) = field
                {
                    step(field.shape, value, path, visit);
                }
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Takes out what is no field of the message, nor of those within it.
pub fn keep_known(shape: Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::List(of), Value::Array(items)) => {
            items.iter_mut().for_each(|item| keep_known(of(), item));
        }
        (Shape::Map(of), Value::Object(items)) => {
            items.values_mut().for_each(|item| keep_known(of(), item));
        }
        (Shape::Message(_, fields), Value::Object(items)) => {
            let fields = fields();
            items.retain(|name, value| {
                let field = fields.iter().find(|f| f.name == *name);
                field.is_some_and(|f| {
                    keep_known(f.shape, value);
                    true
                })
            });
        }
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let span = |s: &str| s.parse::<Span>().map(|s| s.0);
        assert_eq!(span("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(span("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(span(".5s"), Ok(Duration::from_millis(500)));
        assert_eq!(span("10ms"), Ok(Duration::from_millis(10)));
        assert_eq!(span("0.000001s"), Ok(Duration::from_micros(1)));
        assert_eq!(span("0"), Ok(Duration::ZERO));
        for wrong in ["", "1", "s", ".s", "1d", "-1s", "1 s", "1.2.3s", "99999999999h", "1s1"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_of_64_bits_may_be_strings() {
        let number = |s: &str| serde_json::from_str::<Number<u64>>(s).map(|n| n.0);
        assert_eq!(number("7").unwrap(), 7);
        assert_eq!(number("\"18446744073709551615\"").unwrap(), u64::MAX);
        assert!(number("\"seven\"").is_err());
        assert!(number("-1").is_err());
    }

    #[test]
    fn base64_stands_for_bytes() {
        let bytes = |s: &str| Base64(s.to_owned()).bytes();
        assert_eq!(bytes("aGVsbG8="), b"hello");
        assert_eq!(bytes("_-8="), [0xff, 0xef]);
        assert_eq!(bytes(""), b"");
    }

    #[test]
    fn names_are_as_serde_makes_them() {
        assert_eq!(camel("https_redirect"), "httpsRedirect");
        assert_eq!(camel("r#match"), "match");
        assert_eq!(camel("consecutive_5xx_errors"), "consecutive5xxErrors");
    }
}
