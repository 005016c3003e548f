//! Is a byte stream a sequence of TLS records? (RFC 8446 section 5.1; the payload is not looked at.)

/// RFC 5246 section 6.2.3 allows 2048 bytes of expansion, TLS 1.3 only 256; the mesh speaks 1.3 alone.
const MAX_RECORD: usize = 16_384 + 256;

#[derive(Default)]
pub(super) struct Records {
    header: Vec<u8>,
    /// Bytes of the current record's body that are still to come.
    body: usize,
    pub bytes: u64,
}

impl Records {
    /// Takes the next bytes of the stream, cut anywhere.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.body > 0 {
                let part = self.body.min(bytes.len());
                self.body -= part;
                bytes = bytes.get(part..).unwrap_or_default();
                continue;
            }
            let part = (5 - self.header.len()).min(bytes.len());
            let (start, rest) = bytes.split_at(part);
            self.header.extend_from_slice(start);
            bytes = rest;
            self.check_header()?;
        }
        Ok(())
    }

    /// Refuses at the first byte that cannot be right: a stream may end before its header is complete.
    fn check_header(&mut self) -> Result<(), String> {
        let kind_ok = self.header.first().is_none_or(|kind| (20..=23).contains(kind));
        let major_ok = self.header.get(1).is_none_or(|&major| major == 3);
        let minor_ok = self.header.get(2).is_none_or(|minor| (1..=3).contains(minor));
        if !(kind_ok && major_ok && minor_ok) {
            return Err(format!("not a TLS record: starts with {:02x?}", self.header));
        }
        if let [_, _, _, high, low] = *self.header.as_slice() {
            self.body = u16::from_be_bytes([high, low]).into();
            if self.body > MAX_RECORD {
                return Err(format!("not a TLS record: {} bytes long", self.body));
            }
            self.header.clear();
        }
        Ok(())
    }
}
