//! Where objects come from: changes in, one after the other. A directory of manifests is one
//! source; an API server would be another.

use istio_api::{Code, Diagnostic, Object, ObjectKey, parse_documents};
use notify::{RecursiveMode, Watcher as _};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
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
}

/// A stream of batches; the first holds everything.
pub trait Source {
    fn start(self) -> anyhow::Result<mpsc::Receiver<Batch>>;
}

/// The manifests (`*.yaml`, `*.yml`, `*.json`) beneath a directory, watched.
pub struct Directory {
    pub path: PathBuf,
}

/// Editors and `kubectl` write a file in several steps: a change is read once it has been quiet
/// for this long.
const QUIET: Duration = Duration::from_millis(10);

/// Without events, files are looked at again this often: some file systems tell nothing.
const RESCAN: Duration = Duration::from_secs(30);

impl Source for Directory {
    fn start(self) -> anyhow::Result<mpsc::Receiver<Batch>> {
        let (events_tx, mut events) = mpsc::unbounded_channel();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let _ = events_tx.send(event);
            })?;
        watcher
            .watch(&self.path, RecursiveMode::Recursive)
            .map_err(|e| anyhow::anyhow!("watching the directory {}: {e}", self.path.display()))?;
        let (tx, rx) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut files = Files::default();
            let _watcher = watcher;
            let mut batch = files.rescan(&self.path);
            loop {
                if tx.send(batch).await.is_err() {
                    return;
                }
                batch = loop {
                    let touched = touched(&mut events).await;
                    let batch = match touched {
                        Some(paths) if !paths.is_empty() => files.reread(paths),
                        _ => files.rescan(&self.path),
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

/// Paths that events have named, once they are quiet; none when everything is to be looked at.
async fn touched(
    events: &mut mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
) -> Option<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut take = |event: notify::Result<notify::Event>| match event {
        Ok(e) if e.need_rescan() => false,
        Ok(e) => {
            if !e.kind.is_access() {
                paths.extend(e.paths);
            }
            true
        }
        Err(_) => false,
    };
    let first = tokio::time::timeout(RESCAN, events.recv()).await;
    let Ok(Some(first)) = first else { return None };
    let mut complete = take(first);
    while let Ok(Some(event)) = tokio::time::timeout(QUIET, events.recv()).await {
        complete &= take(event);
    }
    complete.then_some(paths)
}

/// The files as they were last read. Pure but for the reading.
#[derive(Default)]
struct Files {
    by_path: BTreeMap<PathBuf, File>,
    /// Which file an object was first seen in.
    owner: HashMap<ObjectKey, PathBuf>,
    dirty: bool,
}

#[derive(Default)]
struct File {
    text: String,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    diagnostics: Vec<Diagnostic>,
}

fn is_manifest(path: &Path) -> bool {
    matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"))
}

impl Files {
    /// Whether diagnostics have changed since the last question.
    fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    fn rescan(&mut self, root: &Path) -> Batch {
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
        self.reread(paths)
    }

    fn reread(&mut self, mut paths: Vec<PathBuf>) -> Batch {
        paths.retain(|p| is_manifest(p));
        paths.sort();
        paths.dedup();
        let mut changes = Vec::new();
        for path in paths {
            match fs::read_to_string(&path) {
                Ok(text) => self.file(path, text, &mut changes),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    self.gone(&path, &mut changes)
                }
                Err(e) => {
                    let file = self.by_path.entry(path.clone()).or_default();
                    file.diagnostics = vec![unreadable(&path, &e)];
                    self.dirty = true;
                }
            }
        }
        Batch { changes, diagnostics: self.diagnostics() }
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        self.by_path.values().flat_map(|f| f.diagnostics.iter().cloned()).collect()
    }

    fn file(&mut self, path: PathBuf, text: String, changes: &mut Vec<Change>) {
        if self.by_path.get(&path).is_some_and(|f| f.text == text && !f.objects.is_empty()) {
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
        self.by_path.insert(path, File { text, objects: now, diagnostics });
    }

    fn gone(&mut self, path: &Path, changes: &mut Vec<Change>) {
        let Some(old) = self.by_path.remove(path) else { return };
        self.dirty |= !old.diagnostics.is_empty();
        for key in old.objects.into_keys() {
            self.owner.remove(&key);
            changes.push(Change { key, object: None });
        }
    }
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
    }
}
