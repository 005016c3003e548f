//! HTTPRoute and GRPCRoute before a service.

use super::scene::{PORT, Scene};
use culvert_tests::{Ask, HttpApp};

fn route(s: &Scene, kind: &str, spec: &str) {
    s.mesh.apply(
        &format!("{}-reviews", kind.to_lowercase()),
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
             metadata: {{ namespace: default, name: reviews }}\nspec: {spec}\n"
        ),
    );
}

/// Two more applications, each behind a service of its own, as the API's backends are services.
fn backends(s: &Scene, protocol: &str) -> [HttpApp; 2] {
    ["one", "two"].map(|name| {
        let app = s.mesh.http_app(1, name, "v1", PORT);
        s.mesh.service_of(name, protocol, PORT, PORT, &[&app.pod]);
        app
    })
}

const PARENT: &str = "parentRefs: [{ group: \"\", kind: Service, name: reviews }]";

#[test]
fn http_routes_are_taken_by_the_order_of_precedence_of_the_specification() {
    let s = Scene::new("http-route");
    let _backends = backends(&s, "http");
    let to = |v| format!("backendRefs: [{{ name: {v}, port: {PORT} }}]");
    route(
        &s,
        "HTTPRoute",
        &format!(
            "{{ {PARENT}, rules: [\
             {{ {v1} }}, \
             {{ matches: [{{ path: {{ value: /a }} }}], {v2} }}, \
             {{ matches: [{{ path: {{ value: /a }}, headers: [{{ name: x-one, value: yes }}] }}], {v1} }}, \
             {{ matches: [{{ path: {{ type: Exact, value: /a/exact }} }}], \
                filters: [{{ type: URLRewrite, urlRewrite: {{ path: {{ type: ReplaceFullPath, replaceFullPath: /whole }} }} }}], {v1} }}, \
             {{ matches: [{{ path: {{ value: /old }} }}], \
                filters: [{{ type: RequestRedirect, requestRedirect: {{ hostname: other.test, statusCode: 301, \
                path: {{ type: ReplacePrefixMatch, replacePrefixMatch: /new }} }} }}] }}, \
             {{ matches: [{{ method: DELETE }}] }}, \
             {{ matches: [{{ path: {{ value: /headers }} }}], filters: [\
                {{ type: RequestHeaderModifier, requestHeaderModifier: {{ set: [{{ name: X-Set, value: one }}], remove: [x-gone] }} }}, \
                {{ type: ResponseHeaderModifier, responseHeaderModifier: {{ add: [{{ name: x-back, value: two }}] }} }}], {v1} }}] }}",
            v1 = to("one"),
            v2 = to("two"),
        ),
    );
    let get = |path: &str| Ask::get(&s.url(path));
    s.until(&get("/a"), |a| a.by() == "two-v1");
    for (ask, by) in [
        (get("/"), "one-v1"),
        (get("/ab"), "one-v1"),
        (get("/a/b"), "two-v1"),
        (get("/a/b").header("x-one: yes"), "one-v1"),
        (get("/a/exact"), "one-v1"),
    ] {
        assert_eq!(s.ask(&ask).by(), by, "{ask:?}");
    }
    assert_eq!(s.get("/a/exact?q=1").asked()["path"], "/whole?q=1");
    let redirected = s.get("/old/x?q=1");
    assert_eq!(redirected.status, 301);
    assert_eq!(redirected.headers["location"], format!("http://other.test:{PORT}/new/x?q=1"));
    assert_eq!(s.ask(&get("/").method("DELETE")).status, 500);
    let changed = s.ask(&get("/headers").header("x-gone: now"));
    assert_eq!(changed.asked()["headers"]["x-set"], "one");
    assert!(changed.asked()["headers"]["x-gone"].is_null());
    assert_eq!(changed.headers["x-back"], "two");
    s.is_well();
}

#[test]
fn weights_mirrors_and_what_cannot_be_sent_to() {
    let s = Scene::new("http-route-weights");
    let backends = backends(&s, "http");
    route(
        &s,
        "HTTPRoute",
        &format!(
            "{{ {PARENT}, rules: [{{ filters: [{{ type: RequestMirror, requestMirror: \
             {{ backendRef: {{ name: two, port: {PORT} }} }} }}], \
             backendRefs: [{{ name: one, port: {PORT}, weight: 3 }}, {{ name: two, port: {PORT}, weight: 0 }}] }}, \
             {{ matches: [{{ path: {{ value: /split }} }}], backendRefs: [\
             {{ name: one, port: {PORT}, weight: 1 }}, {{ name: two, port: {PORT}, weight: 3 }}] }}, \
             {{ matches: [{{ path: {{ value: /elsewhere }} }}], backendRefs: [{{ name: x, namespace: other, port: 80 }}] }}] }}"
        ),
    );
    let ask = Ask::get(&s.url("/?key=k"));
    s.until(&ask, |a| a.by() == "one-v1" && backends[1].count(PORT, "k") > 0);
    let by = s.answered_by(&Ask::get(&s.url("/split")), 8);
    assert_eq!(by.iter().filter(|b| *b == "one-v1").count(), 2, "{by:?}");
    assert_eq!(s.get("/elsewhere").status, 503);
    assert!(s.waypoint.log().contains("no ReferenceGrant in other"), "{}", s.waypoint.log());
    s.is_well();
}

#[test]
fn grpc_routes_match_methods_of_services() {
    let s = Scene::speaking("grpc-route", "grpc");
    let _backends = backends(&s, "grpc");
    route(
        &s,
        "GRPCRoute",
        &format!(
            "{{ {PARENT}, rules: [\
             {{ matches: [{{ method: {{ service: shop.Reviews, method: Get }} }}], backendRefs: [{{ name: two, port: {PORT} }}] }}, \
             {{ backendRefs: [{{ name: one, port: {PORT} }}] }}] }}"
        ),
    );
    let call = |method: &str| {
        let url = s.url(&format!("/shop.Reviews/{method}?grpc=0"));
        Ask::get(&url).method("POST").http2().header("content-type: application/grpc")
    };
    s.until(&call("Get"), |a| a.by() == "two-v1" && a.trailers["grpc-status"] == "0");
    assert_eq!(s.ask(&call("List")).by(), "one-v1");
    s.is_well();
}
