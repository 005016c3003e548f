//! What the demo shows of gateways: Bookinfo opened to somebody outside, over HTTP and HTTPS, and a
//! host outside opened to Bookinfo.

use crate::bookinfo::Bookinfo;
use anyhow::{Context as _, ensure};
use culvert_tests::{
    Spec, Waypoint, binary,
    https::{self, Authority},
};
use std::{process::Command, time::Duration};
use testbed::eventually;

const HOST: &str = "bookinfo.example";
const SOON: Duration = Duration::from_secs(30);

fn title(text: &str) {
    println!("\n== {text}");
}

pub fn all(b: &Bookinfo) -> anyhow::Result<Vec<Waypoint>> {
    println!("Bookinfo joins the mesh, and gets a gateway ...");
    for pod in b.all_pods() {
        b.mesh.enroll(pod);
    }
    let gateway = b.mesh.gateway(1, "ingress");
    let outsider = b.mesh.pod(2, "outsider");
    let apply = |name: &str, text: &str| {
        b.mesh.apply(name, text);
        println!("  applied {name}.yaml");
    };

    title("Bookinfo from outside, over HTTP");
    apply("00-gateway", include_str!("../manifests/gateway/00-gateway.yaml"));
    apply("10-bookinfo", include_str!("../manifests/gateway/10-bookinfo.yaml"));
    let get = |path: &str| -> anyhow::Result<String> {
        let mut command = Command::new(binary("bookinfo"));
        command.args(["get", &format!("http://{}:8080{path}", gateway.pod.ipv4())]);
        let process = outsider.spawn(command)?;
        let status = process.wait(SOON)?;
        ensure!(status.success(), "{path}: {}{}", process.stdout(), process.stderr());
        Ok(process.stdout())
    };
    let open = [
        "/productpage",
        "/static/logo",
        "/login",
        "/logout",
        "/api/v1/products",
        "/api/v1/products/0",
    ];
    for path in open {
        eventually(SOON, || get(path).map(drop))?;
        println!("  {path} is open");
    }
    let shut = format!("{:#}", get("/health").err().context("/health is open")?);
    ensure!(shut.contains("404"), "{shut}");
    println!("  /health is not: 404");

    title("And over HTTPS, with the certificate of a Secret");
    let authority = Authority::new("demo");
    https::secret(&b.mesh, "bookinfo", &authority.issue("bookinfo.example"), "");
    let at = (gateway.pod.ipv4(), 8443).into();
    let fetch = || {
        https::get(&outsider, at, HOST, HOST, "/productpage", &authority, None)
            .map_err(anyhow::Error::msg)
    };
    let page = eventually(SOON, fetch)?;
    ensure!(page.contains("Book Details"), "{page}");
    let next = Authority::new("next");
    https::secret(&b.mesh, "bookinfo", &next.issue("bookinfo.example"), "");
    eventually(SOON, || {
        https::get(&outsider, at, HOST, HOST, "/productpage", &next, None)
            .map_err(anyhow::Error::msg)
    })?;
    println!("  the page came; and with the next certificate, without a restart");

    title("From outside, read only");
    apply("20-readers", include_str!("../manifests/gateway/20-readers.yaml"));
    eventually(SOON, || {
        let post = culvert_tests::Ask::get(&format!("http://{}:8080/login", gateway.pod.ipv4()));
        let answer = post.method("POST").from(&outsider)?;
        ensure!(answer.status == 403, "{answer:?}");
        Ok(())
    })?;
    get("/login")?;
    println!("  POST /login is answered 403, GET is not");

    title("A host outside, for Bookinfo");
    let external = b.mesh.pod(1, Spec::named("external"));
    let mut command = Command::new(binary("bookinfo"));
    command.args(["serve", "--service", "details", "--version", "external"]);
    let process = external.spawn(command)?;
    process.wait_for_output("listens on", SOON)?;
    let waypoint = b.mesh.waypoint(2, "waypoint");
    let text = include_str!("../manifests/gateway/30-external.yaml");
    apply("30-external", &text.replace("ADDRESS", &external.ipv4().to_string()));
    eventually(SOON, || b.get("http://external.example:80/details/0").map(drop))?;
    let shut = format!("{:#}", b.get("http://external.example:80/health").err().context("open")?);
    ensure!(shut.contains("403"), "{shut}");
    println!("  external.example/details/0 answers; its other paths are shut by a VirtualService");
    // As long as its process is asked.
    drop(process);
    Ok(vec![gateway, waypoint])
}
