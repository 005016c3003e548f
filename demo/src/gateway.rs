//! What the demo shows of gateways: Bookinfo opened to somebody outside, over HTTP and HTTPS, and a
//! host outside opened to Bookinfo.

use crate::bookinfo::Bookinfo;
use anyhow::{Context as _, ensure};
use culvert_tests::{
    Ask, HttpApp, Tls, Waypoint, binary,
    https::{self, Authority},
};
use serde_json::Value;
use std::{process::Command, time::Duration};
use testbed::eventually;

const HOST: &str = "bookinfo.example";
const SOON: Duration = Duration::from_secs(30);

fn title(text: &str) {
    println!("\n== {text}");
}

/// What is asked for as long as the demo runs.
pub struct Held {
    _proxies: [Waypoint; 2],
    _outside: HttpApp,
}

pub fn all(b: &Bookinfo) -> anyhow::Result<Held> {
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
        let post = Ask::get(&format!("http://{}:8080/login", gateway.pod.ipv4()));
        let answer = post.method("POST").from(&outsider)?;
        ensure!(answer.status == 403, "{answer:?}");
        Ok(())
    })?;
    get("/login")?;
    println!("  POST /login is answered 403, GET is not");

    title("A host outside, for Bookinfo: plaintext at the application, TLS on its way");
    let waypoint = b.mesh.waypoint(2, "waypoint");
    let outside = outside(b)?;
    Ok(Held { _proxies: [gateway, waypoint], _outside: outside })
}

/// A host that is in the DNS and speaks TLS alone: TLS begins at the waypoint, which knows whom to trust.
fn outside(b: &Bookinfo) -> anyhow::Result<HttpApp> {
    const OUTSIDE: &str = "external.example";
    let authority = Authority::new("outside");
    let own = authority.issue(OUTSIDE);
    let app = b.mesh.outside_app(1, "external", 443, Some(&Tls { own: &own, clients: None }));
    b.mesh.bed.dns(OUTSIDE, &[app.pod.ipv4().into()]);
    https::roots(&b.mesh, "external", &authority);
    b.mesh.apply("30-external", include_str!("../manifests/gateway/30-external.yaml"));
    println!("  applied 30-external.yaml");
    let ask = |path: &str| Ask::get(&format!("http://{OUTSIDE}{path}")).from(&b.client);
    let answer = eventually(SOON, || {
        let answer = ask("/details/0")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer)
    })?;
    let asked = answer.asked();
    let sni = asked.pointer("/tls/sni").and_then(Value::as_str);
    ensure!(sni == Some(OUTSIDE), "asked without TLS, or for another name: {asked}");
    println!("  http://{OUTSIDE}/details/0 answers; it was asked by TLS, for {OUTSIDE}");
    let shut = ask("/health")?;
    ensure!(shut.status == 403, "{shut:?}");
    println!("  its other paths are shut by a VirtualService: 403");
    https::roots(&b.mesh, "external", &Authority::new("somebody else"));
    eventually(SOON, || {
        let answer = ask("/details/0")?;
        ensure!(answer.status == 503, "{answer:?}");
        Ok(())
    })?;
    println!("  with somebody else's roots in the Secret it is not trusted: 503");
    https::roots(&b.mesh, "external", &authority);
    eventually(SOON, || {
        let answer = ask("/details/0")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    Ok(app)
}
