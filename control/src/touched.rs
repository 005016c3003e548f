//! Which files of a directory have changed, once they are quiet.

use notify::{Event, EventKind, event::ModifyKind};
use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, timeout_at},
};

/// Editors and `kubectl` write a file in several steps, and a tool several files: they are read once all of
/// them have been quiet for this long.
const QUIET: Duration = Duration::from_millis(10);

/// Where something is written all the time, what came before it, and then nothing for [`QUIET`], is read after
/// this long.
const LONGEST: Duration = Duration::from_millis(100);

/// Files are looked at again this often: some file systems tell nothing.
const RESCAN: Duration = Duration::from_secs(30);

/// What is to be read again.
#[derive(PartialEq, Eq, Debug)]
pub enum Touched {
    /// Manifests, and names that may have been a directory's.
    Files(Vec<PathBuf>),
    /// All but those that are being written.
    Everything { except: Vec<PathBuf> },
}

/// Events as they come, and what they have named since it was last read.
pub struct Watched {
    events: UnboundedReceiver<notify::Result<Event>>,
    /// Manifests, and when each was last touched.
    files: HashMap<PathBuf, Instant>,
    /// Names that came or went and are no manifest's: of the files in a directory that has gone nothing is told.
    names: BTreeSet<PathBuf>,
    everything: bool,
    /// Since when there has been something to read.
    since: Option<Instant>,
    rescan: Instant,
}

pub fn is_manifest(path: &Path) -> bool {
    matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"))
}

impl Watched {
    pub fn new(events: UnboundedReceiver<notify::Result<Event>>) -> Self {
        Self {
            events,
            files: HashMap::new(),
            names: BTreeSet::new(),
            everything: false,
            since: None,
            rescan: Instant::now() + RESCAN,
        }
    }

    /// Waits until there is something to read. None: nobody watches any more.
    pub async fn next(&mut self) -> Option<Touched> {
        loop {
            let due = self.since.map_or(self.rescan, |since| {
                let last = self.files.values().max().unwrap_or(&since);
                (*last + QUIET).min(since + LONGEST).min(self.rescan)
            });
            match timeout_at(due, self.events.recv()).await {
                Ok(Some(event)) => self.note(event, Instant::now()),
                Ok(None) => return None,
                Err(_) => {
                    if let Some(touched) = self.take(Instant::now()) {
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
                    if comes_or_goes && path.is_dir() {
                        self.everything = true;
                    } else if is_manifest(&path) {
                        self.files.insert(path, now);
                    } else if comes_or_goes {
                        self.names.insert(path);
                    }
                }
            }
            // Events were lost.
            Ok(_) | Err(_) => self.everything = true,
        }
        if self.everything || !self.files.is_empty() || !self.names.is_empty() {
            self.since.get_or_insert(now);
        }
    }

    /// Takes what was followed by quiet. Files that were touched one soon after the other are taken together:
    /// an object may have moved between them.
    fn take(&mut self, now: Instant) -> Option<Touched> {
        let mut times: Vec<Instant> = self.files.values().copied().collect();
        times.sort_unstable();
        times.push(now);
        let until = times.windows(2).rev().find_map(|pair| match pair {
            [at, next] if *at + QUIET <= *next => Some(*at),
            _ => None,
        });
        let taken = self.files.extract_if(|_, at| until.is_some_and(|until| *at <= until));
        let mut taken: Vec<PathBuf> = taken.map(|(path, _)| path).collect();
        self.since = (!self.files.is_empty()).then_some(now);
        taken.extend(std::mem::take(&mut self.names));
        if std::mem::take(&mut self.everything) || now >= self.rescan {
            self.rescan = now + RESCAN;
            return Some(Touched::Everything { except: self.files.keys().cloned().collect() });
        }
        (!taken.is_empty()).then_some(Touched::Files(taken))
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

    /// Writes a file again and again.
    fn noise(to: &Events) -> tokio::task::JoinHandle<()> {
        let events = to.clone();
        tokio::spawn(async move {
            loop {
                writes(&events, "busy.yaml");
                writes(&events, "busy.log");
                sleep(QUIET / 2).await;
            }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_all_the_time_holds_nobody_else_up() {
        let (events, mut watched) = watched();
        let noise = noise(&events);
        for _ in 0..3 {
            sleep(Duration::from_millis(37)).await;
            let begun = Instant::now();
            writes(&events, "a.yaml");
            assert_eq!(watched.next().await, files(&["a.yaml"]));
            assert!(begun.elapsed() <= LONGEST + QUIET, "{:?}", begun.elapsed());
        }
        noise.abort();
        assert_eq!(watched.next().await, files(&["busy.yaml"]));
    }

    #[tokio::test(start_paused = true)]
    async fn files_of_one_change_are_not_parted() {
        let (events, mut watched) = watched();
        let _noise = noise(&events);
        // Whenever it happens to be looked.
        for n in 0..60 {
            sleep(Duration::from_millis(n)).await;
            writes(&events, "a.yaml");
            sleep(QUIET - Duration::from_millis(1)).await;
            writes(&events, "b.yaml");
            let Some(Touched::Files(mut all)) = watched.next().await else { panic!() };
            all.sort();
            assert_eq!(Some(Touched::Files(all)), files(&["a.yaml", "b.yaml"]));
        }
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
        let all = |except: &[&str]| {
            Some(Touched::Everything { except: except.iter().map(PathBuf::from).collect() })
        };
        let lost = Event::new(EventKind::Other).set_flag(Flag::Rescan);
        let directory = Event::new(EventKind::Create(CreateKind::Folder)).add_path("/".into());
        for event in [Ok(lost), Ok(directory.clone()), Err(notify::Error::generic("broken"))] {
            writes(&events, "a.yaml");
            events.send(event).unwrap();
            assert_eq!(watched.next().await, all(&[]));
        }
        // And now and then without any event.
        let begun = Instant::now();
        assert_eq!(watched.next().await, all(&[]));
        assert!(begun.elapsed() >= RESCAN - QUIET);
        // What is being written is left for later, and keeps nothing from being read.
        let noise = noise(&events);
        let begun = Instant::now();
        assert_eq!(watched.next().await, all(&["busy.yaml"]));
        assert!(begun.elapsed() >= RESCAN - LONGEST, "{:?}", begun.elapsed());
        events.send(Ok(directory)).unwrap();
        assert_eq!(watched.next().await, all(&["busy.yaml"]));
        noise.abort();
        assert_eq!(watched.next().await, files(&["busy.yaml"]));
        drop(events);
        let _ = noise.await;
        assert_eq!(watched.next().await, None);
    }
}
