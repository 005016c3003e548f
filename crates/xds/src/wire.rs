//! Messages read where they lie: what only passes through is not copied.

use crate::proto::discovery::{DeltaDiscoveryResponse, UnopenedResponse};
use prost::{
    DecodeError, Message as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

/// Why a message cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    #[error(transparent)]
    Message(#[from] DecodeError),
    #[error("field {0} is cut short")]
    Short(u32),
    #[error("field {0} is of another type")]
    Type(u32),
    #[error("field {0} is not UTF-8")]
    Text(u32),
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    pub tag: u32,
    /// With its key, as it came.
    pub whole: &'a [u8],
    value: Value<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Field<'a> {
    pub fn bytes(&self) -> Result<&'a [u8], Malformed> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed::Type(self.tag)),
        }
    }

    pub fn text(&self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.bytes()?).map_err(|_| Malformed::Text(self.tag))
    }

    pub fn number(&self) -> Result<u64, Malformed> {
        match self.value {
            Value::Number(n) => Ok(n),
            _ => Err(Malformed::Type(self.tag)),
        }
    }
}

/// The fields of a message, in their order.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    left: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Self { left: message }
    }

    /// Those that have not been read.
    pub fn left(&self) -> &'a [u8] {
        self.left
    }

    fn field(&mut self) -> Result<Field<'a>, Malformed> {
        let begin = self.left;
        let (tag, kind) = decode_key(&mut self.left)?;
        let value = match kind {
            WireType::Varint => Value::Number(decode_varint(&mut self.left)?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut self.left)?);
                let split = length.ok().and_then(|l| self.left.split_at_checked(l));
                let (bytes, left) = split.ok_or(Malformed::Short(tag))?;
                self.left = left;
                Value::Bytes(bytes)
            }
            _ => {
                skip_field(kind, tag, &mut self.left, DecodeContext::default())?;
                Value::Other
            }
        };
        let whole = begin.get(..begin.len() - self.left.len()).unwrap_or_default();
        Ok(Field { tag, whole, value })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            // What follows cannot be told apart.
            self.left = &[];
        }
        Some(field)
    }
}

impl From<DeltaDiscoveryResponse> for UnopenedResponse {
    fn from(response: DeltaDiscoveryResponse) -> Self {
        Self {
            system_version_info: response.system_version_info,
            resources: response.resources.iter().map(|r| r.encode_to_vec().into()).collect(),
            type_url: response.type_url,
            nonce: response.nonce,
            removed_resources: response.removed_resources,
        }
    }
}

/// `Resource`, read where it lies.
#[derive(Clone, Copy, Default, Debug)]
pub struct Opened<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub body: Option<Any<'a>>,
}

/// `google.protobuf.Any`, likewise.
#[derive(Clone, Copy, Default, Debug)]
pub struct Any<'a> {
    pub type_url: &'a str,
    pub value: &'a [u8],
}

impl<'a> Opened<'a> {
    pub fn resource(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut opened = Self::default();
        for field in Fields::of(message) {
            let field = field?;
            match field.tag {
                1 => opened.version = field.text()?,
                2 => opened.body.get_or_insert_default().merge(field.bytes()?)?,
                3 => opened.name = field.text()?,
                4 => drop(field.text()?),
                _ => {}
            }
        }
        Ok(opened)
    }
}

impl<'a> Any<'a> {
    fn merge(&mut self, message: &'a [u8]) -> Result<(), Malformed> {
        for field in Fields::of(message) {
            let field = field?;
            match field.tag {
                1 => self.type_url = field.text()?,
                2 => self.value = field.bytes()?,
                _ => {}
            }
        }
        Ok(())
    }
}
