//! Programs that everybody runs, between two pods of one node: without a mesh, and past the agent. They
//! have to come to the same results.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use culvert_tests::{Mesh, MeshPod};
use nix::unistd::User;
use testbed::{Proc, eventually};

const PATIENCE: Duration = Duration::from_secs(120);

/// A client and a server, in the mesh or not.
struct Pair {
    mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
}

/// Runs `each` without a mesh, then with one, and gives what both said.
fn both<T>(name: &str, mut each: impl FnMut(&Pair) -> T) -> [T; 2] {
    let mesh = Mesh::new(name);
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(1, "server"));
    let pair = Pair { mesh, client, server };
    let plain = each(&pair);
    pair.mesh.enroll_all(&[pair.client.clone(), pair.server.clone()]);
    let meshed = each(&pair);
    let agent = pair.mesh.agent_of(&pair.client);
    let (captured, direct) =
        (agent.counter(&pair.client, "captured"), agent.counter(&pair.client, "direct"));
    assert!(direct > captured, "{captured} connections by the agent, {direct} past it");
    [plain, meshed]
}

impl Pair {
    fn host(&self) -> String {
        self.server.ipv4().to_string()
    }

    fn serve(&self, program: &str, args: &[&str]) -> Proc {
        let mut command = Command::new(program);
        command.args(args);
        self.server.spawn(command).unwrap()
    }

    /// Runs to its end, which is a success, and gives what it said.
    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(args);
        let process = self.client.spawn(command).unwrap();
        let status = process.wait(PATIENCE).unwrap();
        let said = process.stdout();
        assert!(status.success(), "{program} {args:?}: {status}\n{said}\n{}", process.stderr());
        said
    }

    /// Until the client finds somebody there.
    fn answers(&self, program: &str, args: &[&str]) {
        eventually(PATIENCE, || {
            let mut command = Command::new(program);
            command.args(args);
            let process = self.client.spawn(command)?;
            anyhow::ensure!(process.wait(PATIENCE)?.success(), "{}", process.stderr());
            Ok(())
        })
        .unwrap();
    }

    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.mesh.bed.dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }
}

fn end(process: &Proc) {
    process.signal(testbed::Signal::SIGTERM).unwrap();
    process.wait(PATIENCE).unwrap();
}

#[test]
fn redis() {
    let said = both("redis", |pair| {
        let host = pair.host();
        let args = ["--protected-mode", "no", "--save", "", "--appendonly", "no"];
        let server = pair.serve("redis-server", &args);
        pair.answers("redis-cli", &["-h", &host, "ping"]);
        // Connections one after the other, many at a time, and pipelines.
        for more in [
            &["-c", "1", "-n", "500", "-k", "0"][..],
            &["-c", "50", "-n", "20000"],
            &["-P", "16", "-n", "20000"],
        ] {
            let mut args = vec!["-h", &host, "-q", "-t", "set,get,lpush,lrange_100"];
            args.extend(more);
            let said = pair.run("redis-benchmark", &args);
            assert_eq!(said.matches("requests per second").count(), 5, "{said}");
            assert!(!said.contains("rror"), "{said}");
        }
        let _ = pair.run("redis-cli", &["-h", &host, "set", "key", &"v".repeat(100_000)]);
        let kept = pair.run("redis-cli", &["-h", &host, "get", "key"]);
        let count = pair.run("redis-cli", &["-h", &host, "llen", "mylist"]);
        end(&server);
        (kept, count)
    });
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].0.trim().len(), 100_000);
}

#[test]
fn nginx_and_wrk() {
    let said = both("nginx", |pair| {
        let dir = pair.dir("nginx");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.join("large"), vec![b'x'; 3_000_000]).unwrap();
        let config = dir.join("nginx.conf");
        let root = dir.display();
        fs::write(
            &config,
            format!(
                "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;\n\
                 events {{ worker_connections 1024; }}\n\
                 http {{ access_log {root}/access.log; client_body_temp_path {root}/body;\n\
                 proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
                 uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi; sendfile on;\n\
                 server {{ listen 8080; location / {{ return 200 \"hello\\n\"; }}\n\
                 location /large {{ root {root}; }} }} }}\n"
            ),
        )
        .unwrap();
        let server = pair.serve("nginx", &["-c", &config.display().to_string()]);
        let url = format!("http://{}:8080/", pair.host());
        pair.answers("wrk", &["-t", "1", "-c", "1", "-d", "1", &url]);
        let kept_alive = pair.run("wrk", &["-t", "2", "-c", "64", "-d", "1", &url]);
        let close = ["-t", "2", "-c", "16", "-d", "1", "-H", "Connection: close", &url];
        let closing = pair.run("wrk", &close);
        let large = pair.run("wrk", &["-t", "1", "-c", "4", "-d", "1", &format!("{url}large")]);
        end(&server);
        for said in [&kept_alive, &closing, &large] {
            assert!(said.contains("Requests/sec"), "{said}");
            assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
        }
        // Every answer of the large file was whole.
        let log = fs::read_to_string(dir.join("access.log")).unwrap();
        let sizes = log.lines().filter(|l| l.contains("/large")).filter_map(|l| {
            let words: Vec<&str> = l.split_whitespace().collect();
            words.get(9).and_then(|size| size.parse::<u64>().ok())
        });
        sizes.max()
    });
    assert_eq!(said, [Some(3_000_000); 2]);
}

#[test]
fn postgres_and_pgbench() {
    let bin = newest_postgres();
    let said = both("postgres", |pair| {
        let (dir, host) = (pair.dir("postgres"), pair.host());
        let user = User::from_name("postgres").unwrap().unwrap();
        chown(&dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        let (data, sockets) = (dir.join("data").display().to_string(), dir.display().to_string());
        let program = |name: &str| bin.join(name).display().to_string();
        let as_postgres = |name: &str, args: &[&str]| {
            let mut all =
                vec!["-u".to_owned(), "postgres".to_owned(), "--".to_owned(), program(name)];
            all.extend(args.iter().map(|&a| a.to_owned()));
            all
        };
        let initdb = as_postgres("initdb", &["-D", &data, "-A", "trust", "-N"]);
        let initdb: Vec<&str> = initdb.iter().map(String::as_str).collect();
        let made = pair.serve("runuser", &initdb);
        assert!(made.wait(PATIENCE).unwrap().success(), "{}{}", made.stdout(), made.stderr());
        fs::write(dir.join("data/pg_hba.conf"), "host all all all trust\nlocal all all trust\n")
            .unwrap();
        let run = as_postgres(
            "postgres",
            &["-D", &data, "-h", "0.0.0.0", "-k", &sockets, "-c", "fsync=off"],
        );
        let run: Vec<&str> = run.iter().map(String::as_str).collect();
        let server = pair.serve("runuser", &run);
        let psql = program("psql");
        let ask = |sql: &str| {
            pair.run(&psql, &["-h", &host, "-U", "postgres", "-At", "-c", sql]).trim().to_owned()
        };
        pair.answers(&psql, &["-h", &host, "-U", "postgres", "-c", "select 1"]);
        let pgbench = program("pgbench");
        pair.run(&pgbench, &["-h", &host, "-U", "postgres", "-i", "-s", "1", "postgres"]);
        for more in [
            &["-c", "4", "-t", "100"][..],
            &["-C", "-c", "2", "-t", "50"],
            &["-M", "prepared", "-S", "-c", "8", "-t", "200"],
        ] {
            let mut args = vec!["-h", &host, "-U", "postgres", "-n"];
            args.extend(more);
            args.push("postgres");
            let said = pair.run(&pgbench, &args);
            assert!(said.contains("number of failed transactions: 0"), "{said}");
        }
        // What every transaction wrote is in three tables, and they agree.
        let sums = ask(
            "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history) \
             and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history), \
             (select count(*) from pgbench_history)",
        );
        // A result of a few megabytes, by COPY.
        let copied = pair.run(
            &psql,
            &[
                "-h",
                &host,
                "-U",
                "postgres",
                "-c",
                "copy (select generate_series(1, 500000)) to stdout",
            ],
        );
        end(&server);
        (sums, copied.len())
    });
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0].0, "t|500");
}

/// Debian has them by version.
fn newest_postgres() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin: &PathBuf| Path::is_file(&bin.join("postgres")))
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("postgresql is not installed"))
}

#[test]
fn iperf3() {
    let said = both("iperf3", |pair| {
        let server = pair.serve("iperf3", &["-s"]);
        let host = pair.host();
        let mut complaints = Vec::new();
        pair.answers("iperf3", &["-c", &host, "-n", "1K"]);
        for more in [&[][..], &["-R"], &["-P", "4"], &["-l", "100"], &["--bidir"]] {
            let mut args = vec!["-c", &host, "-J", "-n", "50M"];
            args.extend(more);
            let said: serde_json::Value = serde_json::from_str(&pair.run("iperf3", &args)).unwrap();
            let sum = &said["end"]["sum_received"]["bytes"];
            assert!(sum.as_u64().unwrap() > 0, "{said}");
            complaints.push(said["error"].clone());
        }
        end(&server);
        complaints
    });
    assert_eq!(said[0], said[1]);
}
