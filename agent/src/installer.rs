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
        // So that there is a sender where there is no watcher.
        let _open = tell.clone();
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
                tracing::error!(
                    why,
                    "culvert-cni has no place yet: pods start uncaptured until then"
                );
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A node's two directories and a program, in a directory that goes with this.
    struct Node(Installer, PathBuf);

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.1);
        }
    }

    impl Node {
        fn new(configs: &[(&str, &str)]) -> Self {
            let dir = std::env::temp_dir().join(format!("culvert-cni-{:x}", rand::random::<u64>()));
            let (conf_dir, program) = (dir.join("net.d"), dir.join("program"));
            fs::create_dir_all(&conf_dir).unwrap();
            fs::write(&program, "the program").unwrap();
            for (name, text) in configs {
                fs::write(conf_dir.join(name), text).unwrap();
            }
            let installer = Installer {
                bin_dir: dir.join("bin"),
                conf_dir,
                program,
                run_dir: "/run/culvert".into(),
                exclude_namespaces: vec!["kube-system".into()],
            };
            Self(installer, dir)
        }

        fn conf(&self, name: &str) -> PathBuf {
            self.0.conf_dir.join(name)
        }

        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.conf(name)).unwrap()
        }

        fn plugins(&self, name: &str) -> Vec<Value> {
            let value: Value = serde_json::from_str(&self.text(name)).unwrap();
            value["plugins"].as_array().unwrap().clone()
        }

        fn files(&self) -> Vec<String> {
            let name = |e: fs::DirEntry| e.file_name().into_string().unwrap();
            let mut all: Vec<String> =
                fs::read_dir(&self.0.conf_dir).unwrap().map(|e| name(e.unwrap())).collect();
            all.sort();
            all
        }

        fn uninstall(&self) {
            uninstall(&self.0.conf_dir, Some(&self.0.bin_dir)).unwrap();
        }
    }

    const LIST: &str =
        "{\"cniVersion\": \"0.3.1\",  \"name\": \"n\", \"plugins\": [ {\"type\": \"ptp\"} ]}\n";
    const SINGLE: &str = "{\"cniVersion\": \"0.4.0\", \"name\": \"n\", \"type\": \"ptp\"}\n";

    #[test]
    fn it_is_in_the_first_list_and_nowhere_else_and_goes_without_a_trace() {
        let other = LIST.replace("\"n\"", "\"other\"");
        let node = Node::new(&[("20-b.conflist", &other), ("10-a.conflist", LIST), ("05-x", "")]);
        fs::set_permissions(node.conf("10-a.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
        for _ in 0..2 {
            node.0.install().unwrap();
            let plugins = node.plugins("10-a.conflist");
            assert_eq!(plugins.len(), 2);
            assert_eq!(plugins[1], node.0.plugin());
        }
        assert_eq!(plugins_of_culvert(&node.text("20-b.conflist")), 0);
        assert_eq!(node.files(), ["05-x", "10-a.conflist", "20-b.conflist"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&node.conf("10-a.conflist")), 0o600);
        let program = node.0.bin_dir.join(PLUGIN);
        assert_eq!(mode(&program), 0o755);
        assert_eq!(fs::read_to_string(&program).unwrap(), "the program");

        node.uninstall();
        assert_eq!(node.text("10-a.conflist"), LIST);
        assert!(!program.exists());
        node.uninstall();
    }

    fn plugins_of_culvert(text: &str) -> usize {
        text.matches(PLUGIN).count()
    }

    #[test]
    fn it_comes_back_after_a_rewrite_and_a_newer_program_replaces_the_old() {
        let node = Node::new(&[("10-a.conflist", LIST)]);
        node.0.install().unwrap();
        fs::write(node.conf("10-a.conflist"), LIST).unwrap();
        fs::write(&node.0.program, "a newer one").unwrap();
        node.0.install().unwrap();
        assert_eq!(plugins_of_culvert(&node.text("10-a.conflist")), 1);
        let installed = fs::read_to_string(node.0.bin_dir.join(PLUGIN)).unwrap();
        assert_eq!(installed, "a newer one");
    }

    #[test]
    fn a_single_plugin_becomes_a_list_and_a_single_one_again() {
        let node = Node::new(&[("10-a.conf", SINGLE)]);
        node.0.install().unwrap();
        assert_eq!(node.files(), ["10-a.conf.before-culvert", "10-a.conflist"]);
        assert_eq!(node.plugins("10-a.conflist").len(), 2);
        node.0.install().unwrap();
        // The network's own plugin writes its file again.
        fs::write(node.conf("10-a.conf"), SINGLE.replace("ptp", "bridge")).unwrap();
        node.0.install().unwrap();
        assert_eq!(node.plugins("10-a.conflist")[0]["type"], "bridge");
        assert_eq!(node.files(), ["10-a.conf.before-culvert", "10-a.conflist"]);
        node.uninstall();
        assert_eq!(node.files(), ["10-a.conf"]);
        assert_eq!(node.text("10-a.conf"), SINGLE.replace("ptp", "bridge"));
    }

    #[test]
    fn what_is_not_understood_is_left_alone_and_named() {
        let node = Node::new(&[("10-a.conflist", "{\"plugins\": [")]);
        let says = |what: &str| {
            let why = format!("{:#}", node.0.install().unwrap_err());
            assert!(why.contains(what) && why.contains("10-a.conflist"), "{why}");
        };
        says("not JSON");
        assert_eq!(node.text("10-a.conflist"), "{\"plugins\": [");
        node.uninstall();
        // Somebody else's list would be lost.
        fs::write(node.conf("10-a.conflist"), LIST).unwrap();
        fs::write(node.conf("10-a.conf"), SINGLE).unwrap();
        says("there already");
        assert_eq!(node.text("10-a.conflist"), LIST);

        let empty = Node::new(&[]);
        let why = format!("{:#}", empty.0.install().unwrap_err());
        assert!(why.contains("no network configuration yet"), "{why}");
    }
}
