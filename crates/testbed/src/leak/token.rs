//! Random marks that a test sends, and the search for them.

use std::fmt;

use rand::RngCore;

use crate::pattern::hex;

/// 32 random bytes that occur nowhere by chance. A test sends them as they are, or as hex where text is needed;
/// both forms are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token([u8; 32]);

impl Token {
    #[allow(clippy::new_without_default, reason = "two defaults would not be equal")]
    pub fn new() -> Self {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({self})")
    }
}

/// Where a token was found.
pub(super) struct Hit {
    pub token: Token,
    pub start: usize,
    pub end: usize,
}

/// All forms of all tokens, ready for one pass over the bytes.
pub(super) struct Needles<'a> {
    forms: Vec<(&'a Token, Vec<u8>)>,
    /// By the first two bytes: is there any form that starts so?
    starts: Vec<bool>,
    longest: usize,
}

impl<'a> Needles<'a> {
    pub fn new(tokens: &'a [Token]) -> Self {
        let mut forms = Vec::new();
        let mut starts = vec![false; 1 << 16];
        for token in tokens {
            let text = token.to_string();
            for form in [token.0.to_vec(), text.to_uppercase().into_bytes(), text.into_bytes()] {
                if let Some(pair) = form.first_chunk::<2>()
                    && let Some(start) = starts.get_mut(usize::from(u16::from_be_bytes(*pair)))
                {
                    *start = true;
                }
                forms.push((token, form));
            }
        }
        let longest = forms.iter().map(|(_, form)| form.len()).max().unwrap_or(0);
        Self { forms, starts, longest }
    }

    /// The length of the longest form.
    pub fn longest(&self) -> usize {
        self.longest
    }

    pub fn find(&self, bytes: &[u8]) -> Vec<Hit> {
        let mut hits = Vec::new();
        if self.forms.is_empty() {
            return hits;
        }
        for (start, pair) in bytes.array_windows::<2>().enumerate() {
            if !self.starts.get(usize::from(u16::from_be_bytes(*pair))).copied().unwrap_or(false) {
                continue;
            }
            let rest = bytes.get(start..).unwrap_or_default();
            for (token, form) in &self.forms {
                if rest.starts_with(form) {
                    hits.push(Hit { token: **token, start, end: start + form.len() });
                }
            }
        }
        hits
    }
}
