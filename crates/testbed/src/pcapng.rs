//! The part of the pcapng file format that a capture needs (draft-ietf-opsawg-pcapng): writing and reading.

use std::io::{self, Read, Write};
use std::time::{SystemTime, UNIX_EPOCH};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
/// No block that this crate writes comes near; a larger length is a broken file, not a reason to allocate.
const MAX_BLOCK: usize = 64 << 20;

/// Writes one section with one Ethernet interface.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub fn new(mut out: W, snaplen: usize) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(BYTE_ORDER.to_le_bytes());
        body.extend(1u16.to_le_bytes());
        body.extend(0u16.to_le_bytes());
        body.extend((-1i64).to_le_bytes()); // section length: not known
        block(&mut out, SECTION_HEADER, &body)?;
        body.clear();
        body.extend(LINKTYPE_ETHERNET.to_le_bytes());
        body.extend(0u16.to_le_bytes());
        body.extend(u32::try_from(snaplen).unwrap_or(0).to_le_bytes());
        // if_tsresol: timestamps count nanoseconds.
        body.extend([9, 0, 1, 0, 9, 0, 0, 0]);
        body.extend([0; 4]); // opt_endofopt
        block(&mut out, INTERFACE, &body)?;
        Ok(Self { out })
    }

    /// Writes a frame, of which `length` bytes were on the wire.
    pub fn packet(&mut self, at: SystemTime, frame: &[u8], length: usize) -> io::Result<()> {
        let nanos = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let pad = frame.len().next_multiple_of(4) - frame.len();
        let total = (12 + 20 + frame.len() + pad) as u32;
        let mut head = Vec::with_capacity(28);
        head.extend(ENHANCED_PACKET.to_le_bytes());
        head.extend(total.to_le_bytes());
        head.extend(0u32.to_le_bytes()); // interface
        head.extend(((nanos >> 32) as u32).to_le_bytes());
        head.extend((nanos as u32).to_le_bytes());
        head.extend((frame.len() as u32).to_le_bytes());
        head.extend((length as u32).to_le_bytes());
        self.out.write_all(&head)?;
        self.out.write_all(frame)?;
        self.out.write_all(&[0; 3][..pad])?;
        self.out.write_all(&total.to_le_bytes())
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let total = (12 + body.len()) as u32;
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&total.to_le_bytes())?;
    out.write_all(body)?;
    out.write_all(&total.to_le_bytes())
}

/// One frame of a capture.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    pub frame: Vec<u8>,
    /// Its length on the wire; more than `frame` holds when it was cut.
    pub length: usize,
}

/// Reads the frames of a little-endian file with Ethernet interfaces, skipping blocks of other kinds.
pub struct Reader<R> {
    input: R,
}

impl<R: Read> Reader<R> {
    /// # Errors
    /// When the file does not start as a little-endian pcapng section.
    pub fn new(mut input: R) -> io::Result<Self> {
        match read_block(&mut input)? {
            Some((SECTION_HEADER, body)) if body.starts_with(&BYTE_ORDER.to_le_bytes()) => {
                Ok(Self { input })
            }
            _ => Err(invalid("not a little-endian pcapng file")),
        }
    }

    fn next_packet(&mut self) -> io::Result<Option<Packet>> {
        loop {
            let Some((kind, body)) = read_block(&mut self.input)? else { return Ok(None) };
            match kind {
                ENHANCED_PACKET => {
                    return packet(&body).map(Some).ok_or_else(|| invalid("broken packet block"));
                }
                INTERFACE if !body.starts_with(&LINKTYPE_ETHERNET.to_le_bytes()) => {
                    return Err(invalid("not an Ethernet interface"));
                }
                _ => {}
            }
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = io::Result<Packet>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_packet().transpose()
    }
}

fn packet(body: &[u8]) -> Option<Packet> {
    let captured = u32_at(body, 12)? as usize;
    let length = u32_at(body, 16)? as usize;
    let frame = body.get(20..)?.get(..captured)?.to_vec();
    Some(Packet { frame, length })
}

/// Reads a block's type and body; `None` at the end of the file.
fn read_block(input: &mut impl Read) -> io::Result<Option<(u32, Vec<u8>)>> {
    let mut head = [0; 8];
    match input.read_exact(&mut head[..1]) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    input.read_exact(&mut head[1..])?;
    let kind = u32_at(&head, 0).unwrap_or(0);
    let total = u32_at(&head, 4).unwrap_or(0) as usize;
    if !(12..=MAX_BLOCK).contains(&total) || !total.is_multiple_of(4) {
        return Err(invalid("broken block length"));
    }
    let mut body = vec![0; total - 8];
    input.read_exact(&mut body)?;
    // The length is repeated behind the body.
    body.truncate(total - 12);
    Ok(Some((kind, body)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*four))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::new(Vec::new(), 100).unwrap();
        for len in 0..6 {
            writer.packet(SystemTime::now(), &vec![7; len], len + 1).unwrap();
        }
        let file = writer.finish().unwrap();
        let packets: Vec<_> = Reader::new(&file[..]).unwrap().map(Result::unwrap).collect();
        assert_eq!(packets.len(), 6);
        for (len, packet) in packets.iter().enumerate() {
            assert_eq!(*packet, Packet { frame: vec![7; len], length: len + 1 });
        }
    }

    #[test]
    fn any_cut_is_an_error_or_an_end() {
        let mut writer = Writer::new(Vec::new(), 100).unwrap();
        writer.packet(SystemTime::now(), b"some frame", 10).unwrap();
        let file = writer.finish().unwrap();
        for cut in 0..file.len() {
            if let Ok(reader) = Reader::new(&file[..cut]) {
                let _ = reader.collect::<Vec<_>>();
            }
        }
    }
}
