//! Where objects come from: changes in, one after the other. A directory of manifests is one
//! source; an API server is the other (`kubernetes`).

use crate::touched::{Touched, Watched, is_manifest};
use istio_api::{
    AuthorizationAction, AuthorizationPolicy, Code, Diagnostic, Kind, Meta, MutualTls,
    MutualTlsMode, Object, ObjectKey, PeerAuthentication, Spec, parse_documents,
};
use notify::{RecursiveMode, Watcher as _};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::ErrorKind,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::mpsc;

/// One object that came, changed or went.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: ObjectKey,
    pub object: Option<Arc<Object>>,
}

/// What a source has to say at once: changes, and everything that is wrong with it now.
#[derive(Debug, Default)]
pub struct Batch {
    pub changes: Vec<Change>,
    pub diagnostics: Vec<Diagnostic>,
    /// `metadata.generation` of those that are refused now, where somebody counts it.
    pub refused: BTreeMap<ObjectKey, i64>,
}

impl Batch {
    /// What nothing may be served without: a file that cannot be read at all may hold policies, and
    /// MeshConfig says which trust domain and which root namespace are the mesh's.
    pub fn missing(&self) -> Option<&Diagnostic> {
        self.diagnostics.iter().find(|d| {
            let is_mesh_config =
                d.object.starts_with("MeshConfig ") && d.object.ends_with("/istio");
            d.code == Code::Malformed && d.object == "-"
                || is_mesh_config && d.code.is_error() && d.code != Code::Duplicate
        })
    }
}

/// A stream of batches; the first holds everything.
pub trait Source {
    fn start(self) -> anyhow::Result<mpsc::Receiver<Batch>>;
}

/// The manifests (`*.yaml`, `*.yml`, `*.json`) beneath a directory, watched.
pub struct Directory {
    pub path: PathBuf,
}

impl Source for Directory {
    fn start(self) -> anyhow::Result<mpsc::Receiver<Batch>> {
        let (events_tx, events) = mpsc::unbounded_channel();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // Reading is told, too, and this source reads: it would go on for ever.
                if !event.as_ref().is_ok_and(|e| e.kind.is_access()) {
                    let _ = events_tx.send(event);
                }
            })?;
        watcher
            .watch(&self.path, RecursiveMode::Recursive)
            .map_err(|e| anyhow::anyhow!("watching the directory {}: {e}", self.path.display()))?;
        let (tx, rx) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut files = Files::default();
            let _watcher = watcher;
            let mut watched = Watched::new(events);
            let mut batch = files.rescan(&self.path, &[]);
            loop {
                if tx.send(batch).await.is_err() {
                    return;
                }
                batch = loop {
                    let batch = match watched.next().await {
                        Some(Touched::Files(paths)) => files.reread(paths),
                        Some(Touched::Everything { except }) => files.rescan(&self.path, &except),
                        None => return,
                    };
                    if files.take_dirty() || !batch.changes.is_empty() {
                        break batch;
                    }
                };
            }
        });
        Ok(rx)
    }
}

/// The files as they were last read. Pure but for the reading.
#[derive(Default)]
struct Files {
    by_path: BTreeMap<PathBuf, File>,
    /// Which file an object was first seen in.
    owner: HashMap<ObjectKey, PathBuf>,
    /// Those with something wrong in them.
    wrong: BTreeSet<PathBuf>,
    dirty: bool,
    /// Everything has been read once.
    begun: bool,
}

#[derive(Default)]
struct File {
    text: String,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    diagnostics: Vec<Diagnostic>,
}

impl Files {
    /// Whether diagnostics have changed since the last question.
    fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    fn rescan(&mut self, root: &Path, except: &[PathBuf]) -> Batch {
        let mut paths: Vec<PathBuf> = self.by_path.keys().cloned().collect();
        let mut directories = vec![root.to_owned()];
        while let Some(dir) = directories.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    paths.push(path);
                }
            }
        }
        paths.retain(|p| !except.contains(p));
        let batch = self.reread(paths);
        self.begun = true;
        batch
    }

    /// Reads the files again that are at `paths`. What has gone goes first: an object that was moved
    /// to another file is not a duplicate there.
    fn reread(&mut self, mut paths: Vec<PathBuf>) -> Batch {
        let beneath: Vec<PathBuf> = paths.iter().flat_map(|p| self.beneath(p)).cloned().collect();
        paths.retain(|p| is_manifest(p));
        paths.extend(beneath);
        paths.sort();
        paths.dedup();
        let mut changes = Vec::new();
        let mut read = Vec::new();
        for path in paths {
            match fs::read_to_string(&path) {
                Ok(text) => read.push((path, text)),
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    self.gone(&path, &mut changes);
                }
                Err(e) => {
                    let file = self.by_path.entry(path.clone()).or_default();
                    file.diagnostics = vec![unreadable(&path, &e)];
                    // Once it can be read again, it is, though it says what it said.
                    file.text.clear();
                    self.wrong.insert(path);
                    self.dirty = true;
                }
            }
        }
        for (path, text) in read {
            self.file(path, text, &mut changes);
        }
        self.settle_duplicates(&mut changes);
        Batch {
            changes: last_of_each(changes),
            diagnostics: self.diagnostics(),
            ..Batch::default()
        }
    }

    /// The files that were read in a directory of this name.
    fn beneath<'a>(&'a self, name: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        let from = self.by_path.range::<Path, _>((Bound::Excluded(name), Bound::Unbounded));
        from.map(|(path, _)| path).take_while(move |path| path.starts_with(name))
    }

    /// A duplicate whose first has gone is one no longer.
    fn settle_duplicates(&mut self, changes: &mut Vec<Change>) {
        let freed: Vec<String> =
            changes.iter().filter(|c| c.object.is_none()).map(|c| c.key.to_string()).collect();
        let waiting: Vec<(PathBuf, String)> = self
            .wrong()
            .filter(|(_, f)| {
                f.diagnostics.iter().any(|d| d.code == Code::Duplicate && freed.contains(&d.object))
            })
            .map(|(path, f)| (path.clone(), f.text.clone()))
            .collect();
        for (path, text) in waiting {
            if let Some(f) = self.by_path.get_mut(&path) {
                f.text.clear();
            }
            self.file(path, text, changes);
        }
    }

    fn wrong(&self) -> impl Iterator<Item = (&PathBuf, &File)> {
        self.wrong.iter().filter_map(|path| self.by_path.get_key_value(path))
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        self.wrong().flat_map(|(_, f)| f.diagnostics.iter().cloned()).collect()
    }

    fn file(&mut self, path: PathBuf, text: String, changes: &mut Vec<Change>) {
        if self.by_path.get(&path).is_some_and(|f| f.text == text && !text.is_empty()) {
            return;
        }
        let name = path.display().to_string();
        let (objects, mut diagnostics) = parse_documents(&name, &text);
        let malformed = diagnostics.iter().any(|d| d.code == Code::Malformed && d.object == "-");
        let refused: Vec<String> =
            diagnostics.iter().filter(|d| d.code.is_error()).map(|d| d.object.clone()).collect();
        let old = self.by_path.remove(&path).unwrap_or_default();
        let mut now = BTreeMap::new();
        for object in objects {
            let owner = self.owner.get(&object.key);
            if owner.is_some_and(|o| *o != path) || now.contains_key(&object.key) {
                diagnostics.push(duplicate(&name, &object.key, owner.unwrap_or(&path)));
                continue;
            }
            now.insert(object.key.clone(), Arc::new(object));
        }
        // An object that is refused now keeps the last good state that it had.
        for (key, object) in &old.objects {
            let keeps = malformed || refused.contains(&key.to_string());
            if !now.contains_key(key) && keeps {
                now.insert(key.clone(), object.clone());
            }
        }
        if !self.begun {
            now.extend(closed_instead(&diagnostics).map(|o| (o.key.clone(), Arc::new(o))));
        }
        for (key, object) in &now {
            self.owner.insert(key.clone(), path.clone());
            if old.objects.get(key) != Some(object) {
                changes.push(Change { key: key.clone(), object: Some(object.clone()) });
            }
        }
        for key in old.objects.keys().filter(|k| !now.contains_key(*k)) {
            self.owner.remove(key);
            changes.push(Change { key: key.clone(), object: None });
        }
        self.dirty |= old.diagnostics != diagnostics;
        match diagnostics.is_empty() {
            true => self.wrong.remove(&path),
            false => self.wrong.insert(path.clone()),
        };
        self.by_path.insert(path, File { text, objects: now, diagnostics });
    }

    fn gone(&mut self, path: &Path, changes: &mut Vec<Change>) {
        let Some(old) = self.by_path.remove(path) else { return };
        self.wrong.remove(path);
        self.dirty |= !old.diagnostics.is_empty();
        for key in old.objects.into_keys() {
            self.owner.remove(&key);
            changes.push(Change { key, object: None });
        }
    }
}

/// The last change of each object, in order.
pub fn last_of_each(changes: Vec<Change>) -> Vec<Change> {
    let last: HashMap<ObjectKey, usize> =
        changes.iter().enumerate().map(|(i, c)| (c.key.clone(), i)).collect();
    let kept = |(i, c): (usize, Change)| (last.get(&c.key) == Some(&i)).then_some(c);
    changes.into_iter().enumerate().filter_map(kept).collect()
}

/// At the start there is no last good state. A security object that cannot be taken then denies
/// what it may have guarded, its whole namespace, until it is mended: without it a restart of the
/// control plane would open what was closed. One that would have guarded nothing closes nothing.
pub fn closed_instead(diagnostics: &[Diagnostic]) -> impl Iterator<Item = Object> {
    let closes = |code: Code| code.is_error() && !matches!(code, Code::Duplicate | Code::Idle);
    diagnostics.iter().filter(move |d| closes(d.code)).filter_map(|d| {
        let (kind, name) = d.object.split_once(' ')?;
        let (namespace, name) = name.split_once('/')?;
        let (kind, spec) = match kind {
            "AuthorizationPolicy" => {
                let deny = AuthorizationPolicy {
                    action: AuthorizationAction::Deny,
                    rules: vec![istio_api::Rule::default()],
                    ..AuthorizationPolicy::default()
                };
                (Kind::AuthorizationPolicy, Spec::AuthorizationPolicy(Box::new(deny)))
            }
            "PeerAuthentication" => {
                let strict = PeerAuthentication {
                    mtls: Some(MutualTls { mode: MutualTlsMode::Strict }),
                    ..PeerAuthentication::default()
                };
                (Kind::PeerAuthentication, Spec::PeerAuthentication(strict))
            }
            _ => return None,
        };
        tracing::error!(
            object = d.object,
            "refused at the start: its namespace is closed meanwhile"
        );
        let key = ObjectKey { kind, namespace: namespace.into(), name: name.into() };
        Some(Object { key, meta: Meta::default(), spec })
    })
}

fn unreadable(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic {
        file: path.display().to_string(),
        object: "-".into(),
        path: "-".into(),
        code: Code::Malformed,
        found: format!("cannot be read: {e}"),
        remedy: "make it readable, as UTF-8 text; until then what it held before stays".into(),
    }
}

fn duplicate(file: &str, key: &ObjectKey, first: &Path) -> Diagnostic {
    Diagnostic {
        file: file.into(),
        object: key.to_string(),
        path: "metadata.name".into(),
        code: Code::Duplicate,
        found: format!("also in {}", first.display()),
        remedy: "the one read first counts: remove the other".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
    }

    #[test]
    fn a_file_that_breaks_keeps_its_last_good_state() {
        let mut files = Files::default();
        let path = PathBuf::from("a.yaml");
        let mut changes = Vec::new();
        files.file(path.clone(), namespace("a"), &mut changes);
        assert_eq!(changes.len(), 1);
        changes.clear();
        files.file(path.clone(), "a: [".into(), &mut changes);
        assert!(changes.is_empty());
        assert_eq!(files.diagnostics().len(), 1);
        files.file(path, namespace("b"), &mut changes);
        assert_eq!(changes.len(), 2, "a goes, b comes");
        assert!(files.diagnostics().is_empty());
    }

    #[test]
    fn an_object_belongs_to_the_file_that_had_it_first() {
        let mut files = Files::default();
        let mut changes = Vec::new();
        files.file("a.yaml".into(), namespace("x"), &mut changes);
        files.file("b.yaml".into(), namespace("x"), &mut changes);
        assert_eq!(changes.len(), 1);
        assert_eq!(files.diagnostics()[0].code, Code::Duplicate);
        changes.clear();
        files.gone(Path::new("a.yaml"), &mut changes);
        files.settle_duplicates(&mut changes);
        let last = last_of_each(changes);
        assert_eq!(last.len(), 1);
        assert!(last[0].object.is_some(), "it is b's now");
        assert!(files.diagnostics().is_empty());
    }

    const BAD_POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: p, namespace: ns}\nspec: {action: DENNY}\n";

    #[test]
    fn with_a_directory_go_its_files() {
        let mut files = Files::default();
        for path in ["/nowhere/a/x.yaml", "/nowhere/a.yaml", "/nowhere/ab/y.yaml"] {
            files.file(path.into(), namespace(&path.replace('/', "-")), &mut Vec::new());
        }
        let batch = files.reread(vec!["/nowhere/a".into()]);
        assert_eq!(batch.changes.len(), 1);
        assert!(batch.changes[0].object.is_none());
        assert!(!files.by_path.contains_key(Path::new("/nowhere/a/x.yaml")));
        assert_eq!(files.by_path.len(), 2);
    }

    #[test]
    fn a_bad_policy_at_the_start_closes_its_namespace() {
        let mut files = Files::default();
        let mut changes = Vec::new();
        files.file("p.yaml".into(), BAD_POLICY.into(), &mut changes);
        let Some(Spec::AuthorizationPolicy(p)) = changes[0].object.as_ref().map(|o| &o.spec) else {
            panic!("{changes:?}")
        };
        assert_eq!((p.action, p.rules.len()), (AuthorizationAction::Deny, 1));
    }

    #[test]
    fn a_policy_that_would_guard_nothing_closes_nothing() {
        for spec in ["{action: DENY}", "{selector: {matchLabels: {app: 'a*'}}, rules: [{}]}"] {
            let text = BAD_POLICY.replace("{action: DENNY}", spec);
            let mut files = Files::default();
            let mut changes = Vec::new();
            files.file("p.yaml".into(), text, &mut changes);
            assert!(changes.is_empty(), "{changes:?}");
            assert!(files.diagnostics().iter().all(|d| d.code == Code::Idle), "{spec}");
            assert_eq!(files.diagnostics().len(), 1);
        }
    }

    #[test]
    fn nothing_is_served_without_mesh_config_that_is_refused() {
        let config = |name: &str, port: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\n\
                 data: {{mesh: \"{{rootNamespace: root, proxyListenPort: {port}}}\"}}\n"
            )
        };
        let read = |text: &str| {
            let mut files = Files::default();
            files.file("m.yaml".into(), text.to_owned(), &mut Vec::new());
            let batch = Batch { diagnostics: files.diagnostics(), ..Batch::default() };
            batch.missing().map(|d| d.path.clone())
        };
        assert_eq!(read(&config("istio", "15001")), None);
        assert_eq!(read(&config("istio", "0")).as_deref(), Some("data.mesh.proxyListenPort"));
        assert_eq!(read(&config("another", "0")), None);
        assert_eq!(read(BAD_POLICY), None);
        assert_eq!(read("a: [").as_deref(), Some("-"));
    }

    #[test]
    fn a_bad_policy_later_changes_nothing() {
        let mut files = Files { begun: true, ..Files::default() };
        let mut changes = Vec::new();
        files.file("p.yaml".into(), BAD_POLICY.into(), &mut changes);
        assert!(changes.is_empty());
        assert_eq!(files.diagnostics().len(), 1);
    }
}
