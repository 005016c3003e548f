//! The messages of a gRPC stream (gRPC over HTTP/2, Length-Prefixed-Message), counted as they go by.

/// Counts messages, however their bytes are cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages {
    pub count: u64,
    /// Bytes of the prefix that have come: a flag, and the length in four bytes.
    prefix: usize,
    length: u32,
    /// Bytes of the message that are still to come.
    left: usize,
}

const PREFIX: usize = 5;

impl Messages {
    pub fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let skipped = self.left.min(data.len());
            self.left -= skipped;
            data = data.get(skipped..).unwrap_or_default();
            while self.left == 0
                && let Some((byte, rest)) = data.split_first()
            {
                data = rest;
                if self.prefix > 0 {
                    self.length = self.length << 8 | u32::from(*byte);
                }
                self.prefix += 1;
                if self.prefix == PREFIX {
                    self.count += 1;
                    self.left = usize::try_from(self.length).unwrap_or(usize::MAX);
                    (self.prefix, self.length) = (0, 0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_they_are_cut() {
        let mut stream = Vec::new();
        for length in [0_u32, 1, 300, 0, 7] {
            stream.push(0);
            stream.extend(length.to_be_bytes());
            stream.resize(stream.len() + length as usize, 0xff);
        }
        for size in [1, 2, 3, 5, 6, 97, 1000] {
            let mut messages = Messages::default();
            stream.chunks(size).for_each(|part| messages.feed(part));
            assert_eq!(messages.count, 5, "in pieces of {size}");
        }
        let mut broken = Messages::default();
        broken.feed(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2]);
        assert_eq!(broken.count, 1);
    }
}
