//! Reads commands from stdin and runs each as a task of its own.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::{Value, json};
use testbed::puppet::PuppetError;
use testbed::puppet::protocol::{Command, Hello, Outcome, Request, Resolved, Response, VERSION};
use tokio::sync::mpsc;

use crate::sockets::Sockets;
use crate::{bulk, connect, error, raw};

pub(crate) fn run() -> Result<()> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let (say, said) = mpsc::unbounded_channel::<Vec<u8>>();
    let writer = std::thread::spawn(move || write_answers(said));
    let _ = say.send(line(&Hello { puppet: VERSION }));

    let sockets = Arc::new(Sockets::default());
    for line_in in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line_in?).context("strange command")?;
        let (say, sockets) = (say.clone(), sockets.clone());
        runtime.spawn(async move {
            let doing = name(&request.command);
            let deadline = Instant::now() + Duration::from_millis(request.deadline_ms);
            let work = Box::pin(perform(&sockets, request.command));
            let outcome = match tokio::time::timeout_at(deadline.into(), work).await {
                Ok(Ok(value)) => Outcome::Ok(value),
                Ok(Err(e)) => Outcome::Err(e),
                Err(_) => Outcome::Err(error::timeout(&doing)),
            };
            let _ = say.send(line(&Response { id: request.id, outcome }));
        });
    }
    // The owner is gone: nothing that is under way matters any more.
    runtime.shutdown_background();
    drop((say, writer));
    Ok(())
}

async fn perform(sockets: &Arc<Sockets>, command: Command) -> Result<Value, PuppetError> {
    match command {
        Command::Listen { addr, serve } => to_value(sockets.listen(addr, serve)?),
        Command::Accept { listener } => to_value(sockets.accept(listener).await?),
        Command::CloseListener { listener } => to_value(sockets.close_listener(listener).await?),
        Command::Connect { addr, opts } => {
            to_value(sockets.add(connect::connect(&addr, &opts).await?)?)
        }
        Command::Write { sock, hex } => to_value(sockets.get(sock)?.write(&hex).await?),
        Command::Read { sock, amount } => to_value(sockets.get(sock)?.read(amount).await?),
        Command::SendPattern { sock, bytes, seed } => {
            to_value(sockets.get(sock)?.send_pattern(bytes, seed).await?)
        }
        Command::RecvPattern { sock, bytes } => {
            to_value(sockets.get(sock)?.recv_pattern(bytes).await?)
        }
        Command::ShutdownWrite { sock } => to_value(sockets.get(sock)?.shutdown_write()?),
        Command::Close { sock, reset } => to_value(sockets.close(sock, reset).await?),
        Command::Names { sock } => to_value(sockets.get(sock)?.names()?),
        Command::SetOption { sock, option } => to_value(sockets.get(sock)?.set(option)?),
        Command::HoldOpen { addr, count, bytes_each_way, seed } => {
            to_value(bulk::hold_open(&addr, count, bytes_each_way, seed).await?)
        }
        Command::ShortConnections { addr, count, concurrency } => {
            to_value(bulk::short_connections(&addr, count, concurrency).await?)
        }
        Command::Syscall { number, args } => to_value(raw::syscall(number, args).await?),
        Command::RingConnect { fd, to } => to_value(raw::ring_connect(fd, to).await?),
        Command::Adopt { fd } => to_value(sockets.add(raw::adopt(fd)?)?),
        Command::Resolve { name } => {
            let found = connect::resolve(&name, 0).await?;
            to_value(Resolved { addrs: found.iter().map(std::net::SocketAddr::ip).collect() })
        }
    }
}

fn to_value(value: impl Serialize) -> Result<Value, PuppetError> {
    serde_json::to_value(value).map_err(|e| PuppetError::new("other", e.to_string()))
}

/// The command's own word for itself, for error messages.
fn name(command: &Command) -> String {
    let value = serde_json::to_value(command).unwrap_or(json!({}));
    value.get("cmd").and_then(Value::as_str).unwrap_or("command").to_owned()
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

fn write_answers(mut said: mpsc::UnboundedReceiver<Vec<u8>>) {
    let mut stdout = std::io::stdout().lock();
    while let Some(line) = said.blocking_recv() {
        if stdout.write_all(&line).and_then(|()| stdout.flush()).is_err() {
            return;
        }
    }
}

/// Ten thousand connections need as many descriptors, and again for what the test does beside.
fn raise_file_limit() {
    const WANTED: u64 = 200_000;
    if setrlimit(Resource::RLIMIT_NOFILE, WANTED, WANTED).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        // Without the right to raise the hard limit, what there is must do.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
