//! A value against what is asked of it.

use crate::proto::{StringMatch, string_match::Kind};
use regex::{Regex, RegexBuilder};

/// Most bytes that one compiled regular expression may take.
const REGEX_BYTES: usize = 1 << 20;

#[derive(Clone, Debug)]
pub enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    /// Of the whole value.
    Regex(Regex),
    Present,
    /// Whole segments.
    PathPrefix(String),
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadText {
    #[error("a match without a kind")]
    Nothing,
    #[error("the regular expression {0:?}: {1}")]
    Regex(String, String),
}

/// Of any part of a value.
pub fn part_regex(text: &str) -> Result<Regex, BadText> {
    RegexBuilder::new(text)
        .size_limit(REGEX_BYTES)
        .build()
        .map_err(|e| BadText::Regex(text.to_owned(), e.to_string()))
}

/// As a whole, in RE2's language: without backtracking, in time linear in the value.
pub fn whole_regex(text: &str) -> Result<Regex, BadText> {
    part_regex(&format!("^(?:{text})$"))
}

impl Text {
    pub fn load(m: &StringMatch) -> Result<Self, BadText> {
        Ok(match m.kind.as_ref().ok_or(BadText::Nothing)? {
            Kind::Exact(s) => Self::Exact(s.clone()),
            Kind::Prefix(s) => Self::Prefix(s.clone()),
            Kind::Suffix(s) => Self::Suffix(s.clone()),
            Kind::Regex(s) => Self::Regex(whole_regex(s)?),
            Kind::Present(_) => Self::Present,
            Kind::PathPrefix(s) => Self::PathPrefix(s.trim_end_matches('/').to_owned()),
        })
    }

    pub fn load_all(all: &[StringMatch]) -> Result<Vec<Self>, BadText> {
        all.iter().map(Self::load).collect()
    }

    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(s) => value == s,
            Self::Prefix(s) => value.starts_with(s.as_str()),
            Self::Suffix(s) => value.ends_with(s.as_str()),
            Self::Regex(r) => r.is_match(value),
            Self::Present => true,
            Self::PathPrefix(s) => value
                .strip_prefix(s.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }

    /// Without regard to the case of ASCII letters.
    pub fn matches_any_case(&self, value: &str) -> bool {
        let same = |a: &[u8], b: &str| a.eq_ignore_ascii_case(b.as_bytes());
        let v = value.as_bytes();
        match self {
            Self::Exact(s) => same(v, s),
            Self::Prefix(s) => v.get(..s.len()).is_some_and(|start| same(start, s)),
            Self::Suffix(s) => {
                v.len().checked_sub(s.len()).and_then(|at| v.get(at..)).is_some_and(|e| same(e, s))
            }
            Self::PathPrefix(s) => {
                v.get(..s.len()).is_some_and(|start| same(start, s))
                    && v.get(s.len()).is_none_or(|b| *b == b'/')
            }
            Self::Regex(_) | Self::Present => self.matches(value),
        }
    }
}
