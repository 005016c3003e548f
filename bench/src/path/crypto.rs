//! What TLS costs at least: AES-256-GCM over records of 16 KiB, as rustls seals and opens them, on one core.

use crate::role::say;
use anyhow::{Context as _, ensure};
use rustls::{
    ContentType, ProtocolVersion,
    crypto::{
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher::{AeadKey, InboundOpaqueMessage, Iv, OutboundPlainMessage},
    },
};
use std::time::{Duration, Instant};

const RECORD: usize = 16 * 1024;
const RECORDS: u64 = 200_000;

pub fn play() -> anyhow::Result<()> {
    let suite = TLS13_AES_256_GCM_SHA384.tls13().context("no suite of TLS 1.3")?;
    let (key, iv) = ([7; 32], [9; 12]);
    let mut seals = suite.aead_alg.encrypter(AeadKey::from(key), Iv::new(iv));
    let mut opens = suite.aead_alg.decrypter(AeadKey::from(key), Iv::new(iv));
    let (mut sealing, mut opening) = (Duration::ZERO, Duration::ZERO);
    let plain = [b'x'; RECORD];
    for number in 0..RECORDS {
        let begun = Instant::now();
        let mut sealed = seals.encrypt(
            OutboundPlainMessage {
                typ: ContentType::ApplicationData,
                version: ProtocolVersion::TLSv1_3,
                payload: plain.as_slice().into(),
            },
            number,
        )?;
        sealing += begun.elapsed();
        let begun = Instant::now();
        let message =
            InboundOpaqueMessage::new(sealed.typ, sealed.version, sealed.payload.as_mut());
        let opened = opens.decrypt(message, number)?;
        opening += begun.elapsed();
        ensure!(opened.payload.len() == RECORD, "a record was not opened whole");
    }
    let bytes = RECORD as f64 * RECORDS as f64;
    say("floor-crypto", bytes / sealing.as_secs_f64() / 1e9);
    say("floor-crypto-open", bytes / opening.as_secs_f64() / 1e9);
    Ok(())
}
