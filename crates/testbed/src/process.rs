//! Processes in a chosen cgroup and namespaces, with their output in files.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where a process is to run.
#[derive(Clone, Debug)]
pub struct Placement {
    pub cgroup: PathBuf,
    pub netns: Option<PathBuf>,
    pub mntns: Option<PathBuf>,
}

impl Placement {
    /// Makes `cmd` move itself there before it executes its program. Its stdio and environment stay the caller's.
    pub fn apply(&self, cmd: &mut Command) -> Result<()> {
        let open = |path: &PathBuf| {
            File::open(path).with_context(|| format!("cannot open {}", path.display()))
        };
        let procs = self.cgroup.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("cannot open {}", procs.display()))?;
        let netns = self.netns.as_ref().map(open).transpose()?;
        let mntns = self.mntns.as_ref().map(open).transpose()?;
        // Entering a mount namespace puts the process at its root.
        let cwd = match (&mntns, cmd.get_current_dir()) {
            (Some(_), Some(dir)) => Some(CString::new(dir.as_os_str().as_bytes())?),
            _ => None,
        };
        let enter = move || -> std::io::Result<()> {
            nix::unistd::write(procs.as_fd(), b"0")?;
            if let Some(fd) = &netns {
                setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
            }
            if let Some(fd) = &mntns {
                setns(fd.as_fd(), CloneFlags::CLONE_NEWNS)?;
            }
            if let Some(dir) = &cwd {
                nix::unistd::chdir(dir.as_c_str())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls (write, setns, chdir) and builds errors from a number;
        // nothing allocates or takes a lock, and what it needs was opened before the fork.
        unsafe {
            cmd.pre_exec(enter);
        }
        Ok(())
    }
}

/// A running program. Killed when dropped.
#[derive(Debug)]
pub struct Proc {
    child: Mutex<Child>,
    pid: i32,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Proc {
    /// Starts `cmd` there, without stdin, with its output in files of `dir` whose names start with `label`.
    pub(crate) fn spawn(
        mut cmd: Command,
        place: &Placement,
        dir: &Path,
        label: &str,
    ) -> Result<Self> {
        let (name, stdout, stderr) = output_files(&cmd, dir, label);
        cmd.stdin(Stdio::null());
        cmd.stdout(File::create(&stdout)?);
        cmd.stderr(File::create(&stderr)?);
        place.apply(&mut cmd)?;
        let child = cmd.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = i32::try_from(child.id())?;
        Ok(Self { child: Mutex::new(child), pid, name, stdout, stderr })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Not to a number that the kernel has given away since: only while it has not been waited for.
        if self.try_wait()?.is_some() {
            bail!("{} has ended", self.name);
        }
        kill(Pid::from_raw(self.pid), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child().try_wait()?)
    }

    pub fn is_running(&self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Waits for the end of the program.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        eventually(deadline, || self.try_wait()?.context("still running"))
            .with_context(|| format!("waiting for {}", self.name))
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.child();
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    pub fn stdout_path(&self) -> &Path {
        &self.stdout
    }

    pub fn stderr_path(&self) -> &Path {
        &self.stderr
    }

    /// Waits until stdout or stderr holds `text`; fails at once if the program ends before.
    pub fn wait_for_output(&self, text: &str, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        loop {
            let ended = self.try_wait()?;
            if self.stdout().contains(text) || self.stderr().contains(text) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) without saying {text:?}:\n{}", self.name, self.stderr());
            }
            if Instant::now() > until {
                bail!("{} did not say {text:?} in {deadline:?}:\n{}", self.name, self.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // Fails only when it has already ended.
        let _ = self.kill();
    }
}

/// `<dir>/<label>-<n>-<program>.out` and `.err`.
fn output_files(cmd: &Command, dir: &Path, label: &str) -> (String, PathBuf, PathBuf) {
    let program =
        Path::new(cmd.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = numbered(dir, label, &program);
    (program, stem.with_extension("out"), stem.with_extension("err"))
}

pub(crate) fn numbered(dir: &Path, label: &str, what: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    // Dots would be taken for an extension.
    let what = what.replace('.', "_");
    dir.join(format!("{}-{n}-{what}", label.replace('.', "_")))
}

/// Tries until it succeeds or the deadline passes, then gives the last error.
pub fn eventually<T>(deadline: Duration, mut f: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    loop {
        let began = Instant::now();
        match f() {
            Ok(value) => return Ok(value),
            Err(e) if Instant::now() > until => {
                return Err(e.context(format!("not within {deadline:?}")));
            }
            // Asking, which may be a program of its own, is not to keep what is waited for from happening.
            Err(_) => {
                let costly = (began.elapsed() * 3).min(Duration::from_secs(1));
                std::thread::sleep(pause.max(costly));
            }
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

pub(crate) fn wait_deadline(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    eventually(deadline, || child.try_wait()?.context("still running"))
}

/// Shows the end of what every process of a bed wrote to stderr: the work dir is about to go.
pub(crate) fn print_tails(dir: &Path) {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            // Of the entry itself: a link may lead out of the bed, and back into it for ever.
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            if is_dir && !path.ends_with("bpf") {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "err") {
                let text = read_lossy(&path);
                let lines: Vec<_> = text.lines().collect();
                if !lines.is_empty() {
                    let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
                    eprintln!("--- {}\n{}", path.display(), tail.join("\n"));
                }
            }
        }
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}
