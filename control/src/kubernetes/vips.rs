//! Virtual addresses that were given, in a ConfigMap: a control plane that comes after this one gives no
//! name another's.

use super::FIELD_MANAGER;
use crate::control::Control;
use anyhow::Context as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use std::{fs, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;

const NAME: &str = "culvert-vips";
const KEY: &str = "vips.json";

/// After a write that failed.
const TRY_AGAIN: Duration = Duration::from_secs(2);

pub struct Vips {
    api: Api<ConfigMap>,
    /// Where the control plane keeps them.
    file: PathBuf,
}

impl Vips {
    pub fn new(client: Client, namespace: &str, file: PathBuf) -> Self {
        Self { api: Api::namespaced(client, namespace), file }
    }

    /// Puts there what was given before, unless this state directory has it already.
    pub async fn restore(&self) -> anyhow::Result<()> {
        if self.file.exists() {
            return Ok(());
        }
        let found = self.api.get_opt(NAME).await;
        let found = found
            .map_err(|e| anyhow::anyhow!("reading ConfigMap {NAME}: {}", super::reason(&e)))?;
        let text = found.and_then(|m| m.data).and_then(|mut d| d.remove(KEY));
        match text {
            Some(text) => fs::write(&self.file, text)
                .with_context(|| format!("writing {}", self.file.display())),
            None => Ok(()),
        }
    }

    /// Keeps the ConfigMap like the file while this control plane leads.
    pub async fn keep(self, control: Arc<Control>, mut leads: watch::Receiver<bool>) {
        let mut changed = control.changed();
        let mut written = None;
        let mut failed = false;
        loop {
            tokio::select! {
                Ok(()) = changed.changed() => {}
                Ok(()) = leads.changed() => {}
                () = tokio::time::sleep(TRY_AGAIN), if failed => {}
            }
            failed = false;
            // None were given yet, or the file is being exchanged and will be there at the next change.
            let Ok(text) = fs::read_to_string(&self.file) else { continue };
            if !*leads.borrow() || written.as_ref() == Some(&text) {
                continue;
            }
            match self.write(&text).await {
                Ok(()) => written = Some(text),
                Err(error) => {
                    failed = true;
                    let error = super::reason(&error);
                    tracing::warn!(error, "ConfigMap {NAME} was not written; it is tried again");
                }
            }
        }
    }

    async fn write(&self, text: &str) -> Result<(), kube::Error> {
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            data: Some([(KEY.to_owned(), text.to_owned())].into()),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.api.patch(NAME, &params, &Patch::Apply(map)).await.map(drop)
    }
}
