//! The certificate authority in a Secret of the control plane's namespace: one that somebody plugged in
//! (`cacerts`, as in Istio), or else its own (`culvert-ca`), made when there is neither. It is followed:
//! a new one counts at once, one that cannot be used is told and changes nothing.

use crate::ca::{Authority, PARTS, Pems};
use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use std::time::Duration;
use tokio::time::timeout;

/// After what could not be read.
const READ_AGAIN: Duration = Duration::from_secs(5);

const PLUGGED_IN: &str = "cacerts";
const OWN: &str = "culvert-ca";

/// The Secret that counts, and where it is.
pub struct Store {
    api: Api<Secret>,
    life: Duration,
}

impl Store {
    pub fn new(client: Client, namespace: &str, life: Duration) -> Self {
        Self { api: Api::namespaced(client, namespace), life }
    }

    /// The authority as it is now, made if there is none.
    pub async fn get(&self, trust_domain: &str) -> anyhow::Result<Authority> {
        if let Some(authority) = self.read().await? {
            return Ok(authority);
        }
        let secret = secret(&Pems::self_signed(trust_domain)?);
        match self.api.create(&PostParams::default(), &secret).await {
            Ok(_) => tracing::info!(secret = OWN, "a self-signed root was made"),
            // Another control plane was first.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => bail!("creating Secret {OWN}: {}", super::reason(&e)),
        }
        self.read().await?.with_context(|| format!("Secret {OWN} is gone again"))
    }

    async fn read(&self) -> anyhow::Result<Option<Authority>> {
        for name in [PLUGGED_IN, OWN] {
            let found = self.api.get_opt(name).await;
            let found = found
                .map_err(|e| anyhow::anyhow!("reading Secret {name}: {}", super::reason(&e)))?;
            if let Some(secret) = found {
                return authority(&secret, self.life).map(Some);
            }
        }
        Ok(None)
    }

    /// Calls back with each authority that takes the place of the one before.
    pub async fn follow(&self, changed: impl Fn(Authority)) {
        let events = watcher(self.api.clone(), watcher::Config::default()).default_backoff();
        let touched = events.try_filter_map(async |event| {
            let of_authority = |s: &Secret| {
                let name = s.metadata.name.as_deref();
                name == Some(PLUGGED_IN) || name == Some(OWN)
            };
            Ok(match event {
                watcher::Event::Apply(s) | watcher::Event::Delete(s) => {
                    of_authority(&s).then_some(())
                }
                watcher::Event::InitDone => Some(()),
                watcher::Event::Init | watcher::Event::InitApply(_) => None,
            })
        });
        let mut touched = std::pin::pin!(touched);
        let mut before = None;
        let mut failed = false;
        loop {
            let next = match failed {
                // What was not read then is not told of again.
                true => timeout(READ_AGAIN, touched.next()).await.unwrap_or(Some(Ok(()))),
                false => touched.next().await,
            };
            match next {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(error = %super::watch_reason(&error), "the authority's Secret is not heard of");
                    continue;
                }
                None => return,
            }
            let read = self.read().await;
            failed = read.is_err();
            match read {
                Ok(Some(now)) => {
                    if before.replace(now.fingerprint()) != before {
                        changed(now);
                    }
                }
                Ok(None) => tracing::error!(
                    "Secret {OWN} is gone: its authority is used on, and \
                                             lost with this process; restore it"
                ),
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the authority's Secret cannot be used: the one before is used on"
                ),
            }
        }
    }
}

fn authority(secret: &Secret, life: Duration) -> anyhow::Result<Authority> {
    let name = secret.metadata.name.clone().unwrap_or_default();
    let pems = Pems::read(|part| {
        let value = secret.data.as_ref().and_then(|d| d.get(part));
        let value = value.with_context(|| {
            format!("Secret {name} has no {part}: it must have {}", PARTS.join(", "))
        })?;
        String::from_utf8(value.0.clone()).with_context(|| format!("{part} of Secret {name}"))
    })?;
    Authority::new(&pems, life).with_context(|| format!("the CA of Secret {name}"))
}

fn secret(pems: &Pems) -> Secret {
    let values = [&pems.certificate, &pems.key, &pems.chain, &pems.roots];
    let data = PARTS
        .iter()
        .zip(values)
        .map(|(name, value)| ((*name).to_owned(), ByteString(value.clone().into_bytes())))
        .collect();
    Secret {
        metadata: ObjectMeta { name: Some(OWN.to_owned()), ..ObjectMeta::default() },
        type_: Some("istio.io/ca-root".to_owned()),
        data: Some(data),
        ..Secret::default()
    }
}
