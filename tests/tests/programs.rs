//! Programs that everybody runs, between two pods of one node: without a mesh, and past the agent. They
//! have to come to the same results.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use culvert_tests::{Mesh, MeshPod, binary};
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
    let pair = Pair::new(name);
    let plain = each(&pair);
    pair.enroll();
    let meshed = each(&pair);
    pair.went_past_the_agent();
    [plain, meshed]
}

impl Pair {
    /// Not in the mesh yet.
    fn new(name: &str) -> Self {
        let mesh = Mesh::new(name);
        let (client, server) = (mesh.pod(1, "client"), mesh.pod(1, "server"));
        Self { mesh, client, server }
    }

    fn enroll(&self) {
        self.mesh.enroll_all(&[self.client.clone(), self.server.clone()]);
    }

    /// Most connections have, of those since the enrolment.
    fn went_past_the_agent(&self) {
        let agent = self.mesh.agent_of(&self.client);
        let count = |name| agent.counter(&self.client, name);
        let (captured, direct) = (count("captured"), count("direct"));
        assert!(direct > captured, "{captured} connections by the agent, {direct} past it");
    }

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

/// The server and client of `tests/go`, built once.
fn go_program() -> String {
    static BUILT: OnceLock<String> = OnceLock::new();
    let build = || {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-http").display().to_string();
        let mut go = Command::new("go");
        go.args(["build", "-o", &out, "."]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/go"));
        // It is of the standard library alone, and of no module.
        let built = go
            .env("GO111MODULE", "off")
            .output()
            .unwrap_or_else(|e| panic!("go cannot be run, is it installed? {e}"));
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        out
    };
    BUILT.get_or_init(build).clone()
}

impl Pair {
    /// With listeners of MPTCP, as programs have them that were built by Go 1.24 or later.
    fn serve_go(&self, program: &str) -> Proc {
        let server = self.serve("env", &["GODEBUG=multipathtcp=2", program, "serve", "0.0.0.0"]);
        server.wait_for_output("listens", PATIENCE).unwrap();
        server
    }

    /// What the client saw, where everything went well.
    fn ask_go(&self, program: &str) -> String {
        let said = self.run(program, &["ask", &self.host()]);
        for part in [
            "one connection: 1 connections, \"hello 10.",
            "a connection each: 100 connections",
            "many at once: 640\n",
            "16 MiB there and back: true\n",
            "as it comes: \"0\\n1\\n2\\n3\\n4\\n\"\n",
            "cancelled: true\n",
            "aborted: 1000 bytes, unexpected EOF\n",
            "half-closed: 100000 bytes\n",
            "nobody listens: true\n",
            "deadline: true\n",
        ] {
            assert!(said.contains(part), "{part:?} is not in\n{said}");
        }
        said
    }
}

#[test]
fn go_http() {
    let program = go_program();
    let said = both("go-http", |pair| {
        let server = pair.serve_go(&program);
        let said = pair.ask_go(&program);
        end(&server);
        said
    });
    assert_eq!(said[0], said[1]);
}

/// Its listeners are of MPTCP, which nothing that comes later is.
#[test]
fn go_http_whose_server_is_older_than_the_enrolment() {
    let program = go_program();
    let pair = Pair::new("go-older");
    let server = pair.serve_go(&program);
    let plain = pair.ask_go(&program);
    pair.enroll();
    let meshed = pair.ask_go(&program);
    pair.went_past_the_agent();
    assert_eq!(plain, meshed);
    end(&server);
}

#[test]
fn grpc_by_tonic() {
    let program = binary("grpc-app").display().to_string();
    let said = both("grpc", |pair| {
        let server = pair.serve(&program, &["serve", "0.0.0.0"]);
        server.wait_for_output("listens", PATIENCE).unwrap();
        let said = pair.run(&program, &["ask", &pair.host()]);
        end(&server);
        said
    });
    assert_eq!(said[0], said[1]);
    for part in [
        "calls one after the other: [\"199\", \"10.",
        "calls at once: 500\n",
        "connections: 50\n",
        "3 MB: true\n",
        "status: Err((FailedPrecondition, \"nothing was asked\"))\n",
        "stream: 2000\n",
        "after all: \"last\"\n",
    ] {
        assert!(said[0].contains(part), "{part:?} is not in\n{}", said[0]);
    }
}
