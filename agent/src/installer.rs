//! culvert-cni on its node: the program among the CNI plugins, and its place in the network's
//! configuration, kept there for as long as the agent serves. When the agent goes both stay: pods must
//! wait for the next one.

use crate::{
    agent::Agent,
    cni_config::{PLUGIN, list_of, with_plugin, without_plugin},
};
use anyhow::{Context as _, anyhow, bail};
use notify::{RecursiveMode, Watcher as _};
use serde_json::{Value, json};
use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};

pub struct Installer {
    /// Where container runtimes look for plugins.
    pub bin_dir: PathBuf,
    /// Where they look for the network's configuration.
    pub conf_dir: PathBuf,
    pub program: PathBuf,
    pub run_dir: PathBuf,
    /// Their pods start whether there is an agent or not.
    pub exclude_namespaces: Vec<String>,
}

/// Behind the name of a single plugin's configuration that a list stands for.
const REPLACED: &str = "before-culvert";

/// Whoever writes the configuration may write it in several steps.
const QUIET: Duration = Duration::from_millis(100);

/// Without events, things are looked at again this often.
const LOOK: Duration = Duration::from_secs(5);

impl Installer {
    /// Installs it, and puts it back whenever somebody has written over it.
    pub async fn keep(self, agent: Arc<Agent>) {
        let (tell, mut events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if !event.is_ok_and(|e| e.kind.is_access()) {
                let _ = tell.send(());
            }
        });
        let watching = watcher.and_then(|mut w| {
            w.watch(&self.conf_dir, RecursiveMode::NonRecursive)?;
            Ok(w)
        });
        if let Err(error) = &watching {
            let dir = self.conf_dir.display();
            tracing::warn!(%error, %dir, "cannot be watched; it is looked at every {LOOK:?}");
        }
        let mut serving = agent.serving.subscribe();
        let mut said = None;
        loop {
            if serving.wait_for(|s| *s).await.is_err()
                || *agent.draining.borrow()
                || agent.is_superseded()
            {
                return;
            }
            let problem = self.install().err().map(|error| format!("{error:#}"));
            if let Some(why) = problem.as_ref().filter(|_| problem != said) {
                tracing::error!(why, "culvert-cni has no place yet: pods start uncaptured until then");
            }
            said = problem;
            let _ = timeout(LOOK, events.recv()).await;
            while let Ok(Some(())) = timeout(QUIET, events.recv()).await {}
        }
    }

    /// The program first: a configuration that names it must find it.
    pub fn install(&self) -> anyhow::Result<()> {
        self.install_program()?;
        self.install_config()
    }

    fn install_program(&self) -> anyhow::Result<()> {
        let to = self.bin_dir.join(PLUGIN);
        let program = fs::read(&self.program).with_context(|| {
            format!("reading {} (--cni-program: where culvert-cni is)", self.program.display())
        })?;
        if fs::read(&to).is_ok_and(|there| there == program) {
            return Ok(());
        }
        fs::create_dir_all(&self.bin_dir)
            .with_context(|| format!("creating {} (--cni-bin-dir)", self.bin_dir.display()))?;
        put(&to, &program, 0o755)?;
        tracing::info!(path = %to.display(), "culvert-cni installed");
        Ok(())
    }

    fn install_config(&self) -> anyhow::Result<()> {
        let path = first_config(&self.conf_dir)?.ok_or_else(|| {
            anyhow!(
                "{} (--cni-conf-dir) holds no network configuration yet: is the node's network \
                 plugin installed?",
                self.conf_dir.display()
            )
        })?;
        let text = read(&path)?;
        let named = |why: String| anyhow!("{} {why}; it is left alone", path.display());
        let (to, text) = if is_list(&path) {
            match with_plugin(&text, &self.plugin()).map_err(named)? {
                Some(text) => (path.clone(), text),
                None => return Ok(()),
            }
        } else {
            let list = path.with_extension("conflist");
            if list.exists() && without_plugin(&read(&list)?).map_err(named)?.is_none() {
                bail!(
                    "{} is to become {}, which is there already; remove one of the two",
                    path.display(),
                    list.display()
                );
            }
            (list, list_of(&text, &self.plugin()).map_err(named)?)
        };
        let mode = fs::metadata(&path)?.permissions().mode();
        put(&to, text.as_bytes(), mode)?;
        if to != path {
            // Runtimes take the first by name, and this one is before the list.
            let aside = replaced(&path);
            fs::rename(&path, &aside)
                .with_context(|| format!("renaming {} out of the way", path.display()))?;
        }
        tracing::info!(path = %to.display(), "culvert-cni has its place in the network configuration");
        Ok(())
    }

    fn plugin(&self) -> Value {
        json!({
            "type": PLUGIN,
            "runDir": self.run_dir,
            "excludeNamespaces": self.exclude_namespaces,
        })
    }
}

/// Takes the plugin out of every configuration, and then its program away.
pub fn uninstall(conf_dir: &Path, bin_dir: Option<&Path>) -> anyhow::Result<()> {
    for path in configs(conf_dir)?.into_iter().filter(|p| is_list(p)) {
        let text = read(&path)?;
        // What is no configuration names no plugin.
        let Ok(Some(without)) = without_plugin(&text) else { continue };
        let before = before_list(&path);
        match before {
            Some((aside, single)) => {
                fs::rename(&aside, &single)
                    .with_context(|| format!("renaming {} back", aside.display()))?;
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
            None => {
                let mode = fs::metadata(&path)?.permissions().mode();
                put(&path, without.as_bytes(), mode)?;
            }
        }
    }
    if let Some(bin_dir) = bin_dir {
        let program = bin_dir.join(PLUGIN);
        match fs::remove_file(&program) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("removing {}", program.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What runtimes take for a configuration, in the order in which they do.
fn configs(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)
        .with_context(|| format!("reading the directory {} (--cni-conf-dir)", dir.display()))?;
    let is_config = |path: &PathBuf| {
        let extension = path.extension().and_then(OsStr::to_str);
        path.is_file() && matches!(extension, Some("conf" | "conflist" | "json"))
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_config).collect();
    found.sort();
    Ok(found)
}

fn first_config(dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    Ok(configs(dir)?.into_iter().next())
}

fn is_list(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("conflist"))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn replaced(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(REPLACED);
    name.into()
}

/// The single plugin's configuration that a list stands for: where it is, and where it was.
fn before_list(list: &Path) -> Option<(PathBuf, PathBuf)> {
    ["conf", "json"].into_iter().find_map(|extension| {
        let single = list.with_extension(extension);
        let aside = replaced(&single);
        aside.exists().then_some((aside, single))
    })
}

/// Whole or not at all. The name of what is not whole yet is no configuration's.
fn put(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let next = path.with_file_name(format!(".{name}.culvert"));
    fs::write(&next, bytes)
        .and_then(|()| fs::set_permissions(&next, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::File::open(&next)?.sync_all())
        .and_then(|()| fs::rename(&next, path))
        .with_context(|| format!("writing {}", path.display()))
}
