//! Virtual addresses for ServiceEntries that have none of their own, from Istio's ranges: 240.240/16
//! and 2001:2::/48. A name keeps its address for good, across restarts, too: a client may hold it
//! in a cache, and must never reach another service by it.

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

#[derive(Debug, Default)]
pub struct Vips {
    /// By `namespace/host`.
    given: BTreeMap<String, u16>,
    taken: HashSet<u16>,
    unsaved: bool,
}

impl Vips {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let given: BTreeMap<String, u16> = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!(
                    "{} is damaged: restore it, or remove it to have virtual addresses given anew",
                    path.display()
                )
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        let taken = given.values().copied().collect();
        Ok(Self { given, taken, unsaved: false })
    }

    /// Writes down what was given since the last time, before anybody is told.
    pub fn save(&mut self, path: &Path) -> anyhow::Result<()> {
        if !self.unsaved {
            return Ok(());
        }
        let next = path.with_extension("next");
        fs::write(&next, serde_json::to_vec(&self.given)?)
            .and_then(|()| fs::rename(&next, path))
            .with_context(|| format!("writing {}", path.display()))?;
        self.unsaved = false;
        Ok(())
    }

    /// The addresses of `namespace/host`; none when all are given away.
    pub fn of(&mut self, namespace: &str, host: &str) -> Vec<IpAddr> {
        let name = format!("{namespace}/{host}");
        let number = match self.given.get(&name) {
            Some(n) => *n,
            None => {
                let hash = Sha256::digest(&name);
                let wanted = hash.first_chunk().map_or(0, |b| u16::from_be_bytes(*b));
                // The first and the last of the range stay free.
                let Some(free) = (0..=u16::MAX)
                    .map(|i| wanted.wrapping_add(i))
                    .find(|n| *n != 0 && *n != u16::MAX && !self.taken.contains(n))
                else {
                    return Vec::new();
                };
                self.taken.insert(free);
                self.given.insert(name, free);
                self.unsaved = true;
                free
            }
        };
        let [high, low] = number.to_be_bytes();
        vec![
            Ipv4Addr::new(240, 240, high, low).into(),
            Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, number).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_keeps_its_addresses_and_nobody_else_has_them() {
        let dir = std::env::temp_dir().join(format!("culvert-vips-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("vips.json");
        let mut vips = Vips::read(&file).unwrap();
        let names: Vec<String> = (0..5000).map(|i| format!("host-{i}.example.com")).collect();
        let given: Vec<_> = names.iter().map(|n| vips.of("default", n)).collect();
        let different: HashSet<_> = given.iter().collect();
        assert_eq!(different.len(), names.len());
        vips.save(&file).unwrap();

        let mut again = Vips::read(&file).unwrap();
        for (name, before) in names.iter().zip(&given).rev() {
            assert_eq!(again.of("default", name), *before);
        }
        assert!(!given.contains(&again.of("other", "host-1.example.com")));

        fs::write(&file, "{").unwrap();
        assert!(Vips::read(&file).unwrap_err().to_string().contains("is damaged"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_full_range_gives_nothing_more() {
        let mut vips = Vips::default();
        for i in 0..65_534 {
            assert_eq!(vips.of("default", &format!("h{i}")).len(), 2);
        }
        assert!(vips.of("default", "one-more").is_empty());
        assert_eq!(vips.of("default", "h1").len(), 2);
    }
}
