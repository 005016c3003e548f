//! What is wrong with an object, and what to do about it.

use serde::Serialize;
use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The file is not YAML, or a document in it is no object.
    Malformed,
    /// A kind that is not read here; the object is passed over.
    UnknownKind,
    UnknownField,
    InvalidValue,
    MissingValue,
    /// Valid Istio that is not served; the object is refused rather than half obeyed.
    NotServed,
    /// Refused as Istio refuses it, though it would guard nothing: nothing is closed in its place.
    Idle,
    /// Taken, with a meaning that may surprise.
    Warning,
    Duplicate,
}

impl Code {
    pub fn is_error(self) -> bool {
        !matches!(self, Code::Warning | Code::UnknownKind)
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Diagnostic {
    pub file: String,
    /// `Kind namespace/name`
    pub object: String,
    /// Path of the field, as in `spec.rules[0].from[0].source.ipBlocks[1]`.
    pub path: String,
    pub code: Code,
    pub found: String,
    pub remedy: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { file, object, path, found, remedy, .. } = self;
        write!(f, "{file}: {object}: {path}: {found}; {remedy}")
    }
}
