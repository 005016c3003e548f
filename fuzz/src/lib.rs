//! What the fuzz targets share: an input cut into several messages, because what a peer said
//! before decides what the next thing it says does.

/// One message of an input: a byte for the target to choose by, and the message's bytes.
pub struct Message<'a> {
    pub choice: u8,
    pub body: &'a [u8],
}

/// Cuts `data` into messages: choice, length (two bytes, little endian), body. The last may be
/// shorter than it says.
pub fn messages(mut data: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let [choice, low, high, rest @ ..] = data else { return None };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (body, after) = rest.split_at(length);
        data = after;
        Some(Message { choice: *choice, body })
    })
}
