//! Which files of a directory have changed, once they are quiet.

use notify::{Event, EventKind, event::ModifyKind};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, timeout_at},
};

/// Editors and `kubectl` write a file in several steps: it is read once all has been quiet for this
/// long.
const QUIET: Duration = Duration::from_millis(10);

/// Where something is written all the time, a file that is quiet waits no longer than this for the
/// others.
const LONGEST: Duration = Duration::from_millis(100);

/// Without events, files are looked at again this often: some file systems tell nothing.
const RESCAN: Duration = Duration::from_secs(30);

/// What is to be read again.
#[derive(PartialEq, Eq, Debug)]
pub enum Touched {
    /// Manifests, and names that are there no more.
    Files(Vec<PathBuf>),
    Everything,
}

/// Events as they come, and when each file was last named by one.
pub struct Watched {
    events: UnboundedReceiver<notify::Result<Event>>,
    files: HashMap<PathBuf, Instant>,
    everything: Option<Instant>,
    /// Since when there has been something to read.
    since: Option<Instant>,
}

pub fn is_manifest(path: &Path) -> bool {
    matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"))
}

impl Watched {
    pub fn new(events: UnboundedReceiver<notify::Result<Event>>) -> Self {
        Self { events, files: HashMap::new(), everything: None, since: None }
    }

    /// Waits until there is something to read. None: nobody watches any more.
    pub async fn next(&mut self) -> Option<Touched> {
        let rescan = Instant::now() + RESCAN;
        loop {
            let last = self.files.values().chain(&self.everything).max();
            let due = match (last, self.since) {
                (Some(last), Some(since)) => (*last + QUIET).min(since + LONGEST),
                _ => rescan,
            };
            match timeout_at(due, self.events.recv()).await {
                Ok(Some(event)) => self.note(event, Instant::now()),
                Ok(None) => return None,
                Err(_) if self.since.is_none() => return Some(Touched::Everything),
                Err(_) => {
                    if let Some(touched) = self.quiet(Instant::now()) {
                        return Some(touched);
                    }
                }
            }
        }
    }

    fn note(&mut self, event: notify::Result<Event>, now: Instant) {
        match event {
            Ok(e) if !e.need_rescan() => {
                let comes_or_goes = matches!(
                    e.kind,
                    EventKind::Create(_)
                        | EventKind::Remove(_)
                        | EventKind::Modify(ModifyKind::Name(_))
                );
                for path in e.paths {
                    // Of the files in a directory that comes or goes nothing is told. One that has
                    // gone looks as any name does, and is asked for by it.
                    if comes_or_goes && path.is_dir() {
                        self.everything = Some(now);
                    } else if is_manifest(&path) || comes_or_goes && !path.exists() {
                        self.files.insert(path, now);
                    }
                }
            }
            // Events were lost.
            Ok(_) | Err(_) => self.everything = Some(now),
        }
        let any = self.everything.is_some() || !self.files.is_empty();
        self.since = any.then(|| self.since.unwrap_or(now));
    }

    /// Takes what has been quiet for long enough.
    fn quiet(&mut self, now: Instant) -> Option<Touched> {
        let is_quiet = |at: &Instant| *at + QUIET <= now;
        if self.everything.as_ref().is_some_and(is_quiet) {
            self.everything = None;
            self.files.clear();
            self.since = None;
            return Some(Touched::Everything);
        }
        let files: Vec<PathBuf> =
            self.files.extract_if(|_, at| is_quiet(at)).map(|(path, _)| path).collect();
        let any = self.everything.is_some() || !self.files.is_empty();
        self.since = any.then_some(now);
        (!files.is_empty()).then_some(Touched::Files(files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, DataChange, Flag, RenameMode};
    use tokio::{sync::mpsc, time::sleep};

    type Events = mpsc::UnboundedSender<notify::Result<Event>>;

    fn watched() -> (Events, Watched) {
        let (tx, rx) = mpsc::unbounded_channel();
        (tx, Watched::new(rx))
    }

    fn writes(to: &Events, path: &str) {
        let kind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        to.send(Ok(Event::new(kind).add_path(path.into()))).unwrap();
    }

    fn files(all: &[&str]) -> Option<Touched> {
        Some(Touched::Files(all.iter().map(PathBuf::from).collect()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_change_waits_for_its_own_quiet_alone() {
        let (events, mut watched) = watched();
        sleep(Duration::from_secs(3)).await;
        for _ in 0..3 {
            let begun = Instant::now();
            writes(&events, "a.yaml");
            assert_eq!(watched.next().await, files(&["a.yaml"]));
            assert!(begun.elapsed() <= QUIET + Duration::from_millis(1), "{:?}", begun.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn steps_of_one_change_are_one() {
        let (events, mut watched) = watched();
        let begun = Instant::now();
        let writing = async {
            for n in 0..4 {
                writes(&events, if n == 1 { "b.yaml" } else { "a.yaml" });
                sleep(QUIET / 2).await;
            }
        };
        let (touched, ()) = tokio::join!(watched.next(), writing);
        let Some(Touched::Files(mut all)) = touched else { panic!("{touched:?}") };
        all.sort();
        assert_eq!(Some(Touched::Files(all)), files(&["a.yaml", "b.yaml"]));
        assert!(begun.elapsed() >= QUIET / 2 * 3 + QUIET);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_all_the_time_holds_nobody_else_up() {
        let (events, mut watched) = watched();
        let begun = Instant::now();
        writes(&events, "a.yaml");
        let noise = tokio::spawn({
            let events = events.clone();
            async move {
                loop {
                    writes(&events, "busy.yaml");
                    writes(&events, "busy.log");
                    sleep(QUIET / 2).await;
                }
            }
        });
        assert_eq!(watched.next().await, files(&["a.yaml"]));
        assert!(begun.elapsed() <= LONGEST + QUIET, "{:?}", begun.elapsed());
        noise.abort();
        assert_eq!(watched.next().await, files(&["busy.yaml"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_has_gone_may_have_been_a_directory() {
        let (events, mut watched) = watched();
        let kind = EventKind::Modify(ModifyKind::Name(RenameMode::From));
        events.send(Ok(Event::new(kind).add_path("/nowhere/a.yaml.part".into()))).unwrap();
        writes(&events, "a.log");
        assert_eq!(watched.next().await, files(&["/nowhere/a.yaml.part"]));
    }

    #[tokio::test(start_paused = true)]
    async fn everything_is_read_where_files_are_not_told_of() {
        let (events, mut watched) = watched();
        let lost = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        let directory = Event::new(EventKind::Create(CreateKind::Folder)).add_path("/".into());
        for event in [Ok(lost), Ok(directory), Err(notify::Error::generic("broken"))] {
            writes(&events, "a.yaml");
            events.send(event).unwrap();
            assert_eq!(watched.next().await, Some(Touched::Everything));
        }
        // And now and then without any event.
        let begun = Instant::now();
        assert_eq!(watched.next().await, Some(Touched::Everything));
        assert!(begun.elapsed() >= RESCAN);
        drop(events);
        assert_eq!(watched.next().await, None);
    }
}
