//! nginx: a worker that answers each request with the same few bytes.

use culvert_tests::{MeshPod, SOON};
use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    process::Command,
};
use testbed::{Proc, eventually};

pub const PORT: u16 = 8080;

pub fn serve(pod: &MeshPod) -> anyhow::Result<Proc> {
    let dir = pod.node().dir();
    let file = dir.join(format!("nginx-{}.conf", pod.name()));
    let body = "x".repeat(128);
    fs::write(
        &file,
        format!(
            "daemon off;\nmaster_process off;\npid {dir}/nginx-{name}.pid;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n access_log off;\n keepalive_requests 1000000000;\n keepalive_timeout 1h;\n\
             server {{\n listen {PORT} backlog=4096;\n location / {{ return 200 {body}; }}\n }}\n}}\n",
            dir = dir.display(),
            name = pod.name(),
        ),
    )?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(file);
    let server = pod.spawn(command)?;
    let connect = || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?);
    eventually(SOON, || pod.inside(connect))?;
    Ok(server)
}
