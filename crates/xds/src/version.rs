//! Versions of resources, as servers name them.

use std::fmt;

/// Those that are sixteen hexadecimal digits, as hashes are, need no string; there may be a hundred
/// thousand of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Version {
    Hash(u64),
    Text(Box<str>),
}

const DIGITS: usize = 16;

impl Default for Version {
    /// The empty one, which no resource has.
    fn default() -> Self {
        Self::Text(Box::default())
    }
}

impl From<&str> for Version {
    fn from(text: &str) -> Self {
        let is_hash =
            text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(hash) if is_hash => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash(hash) => write!(f, "{hash:0DIGITS$x}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}
