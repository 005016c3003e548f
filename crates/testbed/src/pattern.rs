//! A byte stream that follows from a seed, so that both ends know it and neither has to keep it.

use sha2::{Digest, Sha256};

/// Generator of the stream (xorshift64*).
#[derive(Clone, Debug)]
pub struct Pattern {
    state: u64,
    /// Bytes of the current word that have not been given out, in the low end.
    word: u64,
    left: usize,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give related streams, and the state must not be zero.
        let state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self { state: state | 1, word: 0, left: 0 }
    }

    /// Fills `buf` with the next bytes. The stream does not depend on how it is cut into calls.
    pub fn fill(&mut self, buf: &mut [u8]) {
        let head = self.left.min(buf.len());
        let (start, rest) = buf.split_at_mut(head);
        self.take(start);
        let mut words = rest.chunks_exact_mut(8);
        for chunk in &mut words {
            chunk.copy_from_slice(&self.step().to_le_bytes());
        }
        let tail = words.into_remainder();
        if !tail.is_empty() {
            self.word = self.step();
            self.left = 8;
            self.take(tail);
        }
    }

    fn take(&mut self, out: &mut [u8]) {
        for byte in out {
            *byte = self.word as u8;
            self.word >>= 8;
            self.left -= 1;
        }
    }

    fn step(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// The first `n` bytes of the stream.
pub fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; n];
    Pattern::new(seed).fill(&mut out);
    out
}

/// SHA-256 of the first `n` bytes of the stream, in hex.
pub fn sha256(n: u64, seed: u64) -> String {
    let mut pattern = Pattern::new(seed);
    let mut digest = Sha256::new();
    let mut block = vec![0; 256 * 1024];
    let mut left = n;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        pattern.fill(&mut block[..part]);
        digest.update(&block[..part]);
        left -= part as u64;
    }
    hex(&digest.finalize())
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    out
}

/// Reads hex, `None` if it is none.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_does_not_depend_on_the_cuts() {
        let whole = bytes(1000, 7);
        let mut pattern = Pattern::new(7);
        let mut pieces = Vec::new();
        for len in [1, 2, 3, 8, 9, 0, 17, 460, 500] {
            let mut piece = vec![0; len];
            pattern.fill(&mut piece);
            pieces.extend(piece);
        }
        assert_eq!(pieces, whole);
        assert_ne!(bytes(1000, 8), whole);
    }

    #[test]
    fn hex_and_back() {
        assert_eq!(unhex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
    }
}
