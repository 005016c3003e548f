//! HTTP/2 frames by hand (RFC 9113, section 4), for what a well-behaved peer never sends.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY or RST_STREAM.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status at the front of a response's headers: from the static table, or a literal with that table's name
    /// (RFC 7541, appendix A and section 6.2), as encoders write those that the table does not have.
    pub fn status(&self) -> Option<u16> {
        match *self.payload.first()? {
            0x88 => Some(200),
            0x89 => Some(204),
            0x8c => Some(400),
            0x8d => Some(404),
            0x8e => Some(500),
            0x48 | 0x08 => {
                let length = *self.payload.get(1)?;
                let text = self.payload.get(2..2 + usize::from(length & 0x7f))?;
                if length & 0x80 == 0 {
                    std::str::from_utf8(text).ok()?.parse().ok()
                } else {
                    huffman_digits(text)
                }
            }
            _ => None,
        }
    }
}

/// Three digits in the Huffman code of RFC 7541, appendix B: 0, 1 and 2 have five bits, the others six.
fn huffman_digits(bytes: &[u8]) -> Option<u16> {
    let mut bits = bytes.iter().flat_map(|b| (0..8).rev().map(move |i| u16::from(b >> i & 1)));
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code << 1 | bits.next()?;
        }
        let digit = match code {
            0..=2 => code,
            // 3 is 011001, 4 is 011010 and so on up to 9, 011111.
            _ => (code << 1 | bits.next()?).checked_sub(0b01_1001)? + 3,
        };
        number = number * 10 + digit;
    }
    Some(number)
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A header block of literals: no table, no Huffman.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(headers: &[(N, V)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in headers {
        out.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            integer(text.len(), &mut out);
            out.extend(text);
        }
    }
    out
}

/// A length with a prefix of seven bits (RFC 7541, section 5.1).
fn integer(n: usize, out: &mut Vec<u8>) {
    if n < 127 {
        out.push(u8::try_from(n).unwrap());
        return;
    }
    out.push(127);
    let mut rest = n - 127;
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    out.push(u8::try_from(rest).unwrap());
}

pub fn headers<N: AsRef<[u8]>, V: AsRef<[u8]>>(stream: u32, list: &[(N, V)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(list))
}

/// One header block of any size, in as many frames as it takes.
pub fn long_headers(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut chunks = block.chunks(16 * 1024).peekable();
    let mut kind = HEADERS;
    let mut out = Vec::new();
    while let Some(chunk) = chunks.next() {
        let flags = if chunks.peek().is_none() { END_HEADERS } else { 0 };
        out.extend(frame(kind, flags, stream, chunk));
        kind = CONTINUATION;
    }
    out
}

pub fn connect(stream: u32, authority: &str) -> Vec<u8> {
    headers(stream, &[(":method", "CONNECT"), (":authority", authority)])
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// SETTINGS with these values (RFC 9113, section 6.5.2).
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()))
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub const MAX_CONCURRENT_STREAMS: u16 = 3;

/// A block of some 13 KB that stands for 30 MB: one long header in the table, named ten thousand times. `first` is
/// what stands before it.
pub fn bomb(first: &[(&str, &str)]) -> Vec<u8> {
    let mut bomb = block(first);
    // Literal with incremental indexing, name of 1 byte, value of 3,000 (RFC 7541, section 5.1).
    bomb.extend([0x40, 1, b'x', 0x7f, 0xb9, 0x16]);
    bomb.extend([b'y'; 3000]);
    // 62: the newest entry of the table.
    bomb.extend([0x80 | 62; 10_000]);
    bomb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_however_they_are_written() {
        let status = |payload: &[u8]| {
            Frame { kind: HEADERS, flags: 0, stream: 1, payload: payload.to_vec() }.status()
        };
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x48, 3, b'4', b'0', b'1']), Some(401));
        // RFC 7541, C.6.1: 302 is 6402.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), Some(302));
        // RFC 7541, C.6.2: 307 is 640eff.
        assert_eq!(status(&[0x48, 0x83, 0x64, 0x0e, 0xff]), Some(307));
    }

    #[test]
    fn long_literals_have_long_lengths() {
        assert_eq!(block(&[("x", "y".repeat(3000))])[3..6], [0x7f, 0xb9, 0x16]);
    }
}
