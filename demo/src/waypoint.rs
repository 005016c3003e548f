//! What the demo shows of a waypoint: each proof puts a manifest of Istio's own form into the
//! directory that the control plane watches, and looks at what a user sees.

use crate::bookinfo::Bookinfo;
use anyhow::{Context as _, ensure};
use culvert_tests::Waypoint;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};
use testbed::eventually;

const SOON: Duration = Duration::from_secs(30);
const REVIEWS: &str = "http://reviews:9080/reviews/0";
const RATINGS: &str = "http://ratings:9080/ratings/0";
const DETAILS: &str = "http://details:9080/details/0";

const REVIEWS_ROUTES: &str = "reviews-routes";

/// The manifests, as they are in `demo/manifests/waypoint`.
macro_rules! manifest {
    ($name:literal) => {
        (($name), include_str!(concat!("../manifests/waypoint/", $name, ".yaml")))
    };
}

pub fn all(b: &Bookinfo) -> anyhow::Result<Waypoint> {
    println!("Bookinfo joins the mesh, and gets a waypoint ...");
    for pod in b.all_pods() {
        b.mesh.enroll(pod);
    }
    let waypoint = b.mesh.waypoint(2, "waypoint");
    b.mesh.use_waypoint(Some("waypoint"));
    for service in &b.services {
        b.mesh.bound(service, Some("waypoint"));
    }
    let d = Demo { b, waypoint };
    d.apply(manifest!("00-subsets"));
    d.routes()?;
    d.splits()?;
    d.faults()?;
    d.patience()?;
    d.mirror()?;
    d.breakers()?;
    d.policy()?;
    d.seen()?;
    Ok(d.waypoint)
}

struct Demo<'a> {
    b: &'a Bookinfo,
    waypoint: Waypoint,
}

fn title(text: &str) {
    println!("\n== {text}");
}

impl Demo<'_> {
    /// A file per object: what routes reviews is replaced by what routes it next.
    fn apply(&self, (name, text): (&str, &str)) {
        let file = match name.as_bytes().first() {
            Some(b'1' | b'2' | b'3' | b'6') => REVIEWS_ROUTES,
            Some(b'4' | b'5') => "ratings-routes",
            _ => name,
        };
        self.b.mesh.apply(file, text);
        println!("  applied {name}.yaml");
    }

    fn mood(&self, pod: &str, mood: &str) -> anyhow::Result<()> {
        fs::write(self.b.mesh.bed.dir().join(format!("mood-{pod}")), mood)
            .with_context(|| format!("setting the mood of {pod}"))
    }

    /// Which pods answer so many requests for reviews.
    fn reviewers(
        &self,
        user: Option<&str>,
        times: usize,
    ) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut by = BTreeMap::new();
        for _ in 0..times {
            let answer: Value = serde_json::from_str(&self.b.get_as(user, REVIEWS)?)?;
            let who = answer.get("podname").and_then(Value::as_str).unwrap_or("nobody");
            *by.entry(who.to_owned()).or_default() += 1;
        }
        Ok(by)
    }

    /// Until the new rule is in effect: a rule that is applied is there within a moment.
    fn until(&self, what: &str, so: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        eventually(SOON, || {
            ensure!(so()?, "{what}: not so");
            Ok(())
        })
    }

    fn routes(&self) -> anyhow::Result<()> {
        title("All to v1");
        let only = |user, pod: &str| -> anyhow::Result<bool> {
            let by = self.reviewers(user, 10)?;
            Ok(by.len() == 1 && by.contains_key(pod))
        };
        self.apply(manifest!("10-all-v1"));
        self.until("v1 for all", || {
            Ok(only(None, "reviews-v1")? && only(Some("jason"), "reviews-v1")?)
        })?;
        println!("  20 of 20 requests were answered by reviews-v1");
        title("Jason to v2, the others to v1");
        self.apply(manifest!("20-jason-v2"));
        self.until("v2 for jason", || only(Some("jason"), "reviews-v2"))?;
        ensure!(only(None, "reviews-v1")?, "others see v1");
        let page = self.b.get("http://productpage:9080/api/v1/products/0/reviews")?;
        ensure!(page.contains("black"), "by way of productpage Jason sees black stars: {page}");
        println!("  end-user: jason sees black stars, everybody else none");
        Ok(())
    }

    fn splits(&self) -> anyhow::Result<()> {
        for (manifest, share) in
            [(manifest!("30-split-75-25"), 25), (manifest!("30-split-90-10"), 10)]
        {
            title(&format!("{share} of a hundred to v3"));
            self.apply(manifest);
            self.until("v3 answers", || {
                Ok(self.reviewers(Some("jason"), 10)?.contains_key("reviews-v3"))
            })?;
            let by = self.reviewers(None, 100)?;
            let v3 = by.get("reviews-v3").copied().unwrap_or(0);
            ensure!(v3 == share && by.get("reviews-v1") == Some(&(100 - share)), "{by:?}");
            println!("  of 100 requests: {by:?}");
        }
        self.apply(manifest!("20-jason-v2"));
        Ok(())
    }

    fn faults(&self) -> anyhow::Result<()> {
        title("Ratings keeps Jason waiting for 7 s");
        self.apply(manifest!("40-delay-for-jason"));
        self.until("jason waits", || {
            let begun = Instant::now();
            self.b.get(RATINGS)?;
            Ok(begun.elapsed() >= Duration::from_secs(7))
        })?;
        let begun = Instant::now();
        self.b.get_as(None, RATINGS)?;
        ensure!(begun.elapsed() < Duration::from_secs(7), "others do not wait");
        println!("  jason waited, others did not");
        title("Ratings fails for Jason");
        self.apply(manifest!("41-abort-for-jason"));
        self.until("jason fails", || Ok(self.b.get(RATINGS).is_err()))?;
        let said = format!("{:#}", self.b.get(RATINGS).err().context("it is aborted")?);
        ensure!(said.contains("500"), "{said}");
        self.b.get_as(None, RATINGS)?;
        self.until("v2 says so", || Ok(self.b.get(REVIEWS)?.contains("unavailable")))?;
        println!("  jason reads: Ratings service is currently unavailable");
        Ok(())
    }

    fn patience(&self) -> anyhow::Result<()> {
        title("A ratings that is slow, and half a second's patience");
        self.mood("ratings-v1", "slow")?;
        self.apply(manifest!("50-timeout"));
        self.until("it times out", || {
            Ok(self.b.get(RATINGS).err().is_some_and(|e| format!("{e:#}").contains("504")))
        })?;
        println!("  504 upstream request timeout");
        title("A ratings that fails every other time");
        self.mood("ratings-v1", "flaky")?;
        self.apply(manifest!("52-no-retries"));
        self.until("it fails", || {
            Ok(self.b.get(RATINGS).is_err_and(|e| format!("{e:#}").contains("500")))
        })?;
        let failed = |times| (0..times).filter(|_| self.b.get(RATINGS).is_err()).count();
        let without = failed(20);
        ensure!(without > 0, "without retries some fail");
        self.apply(manifest!("51-retries"));
        self.until("none fails", || Ok(failed(6) == 0))?;
        let with = failed(20);
        ensure!(with == 0, "with retries {with} of 20 failed");
        println!("  without retries {without} of 20 failed, with three retries none");
        self.mood("ratings-v1", "")?;
        Ok(())
    }

    fn mirror(&self) -> anyhow::Result<()> {
        title("v1 answers, v3 is asked as well");
        let asked = || self.b.pod("reviews-v3").map(|p| p.asked().len());
        self.apply(manifest!("60-mirror"));
        self.until("v3 hears", || {
            let before = asked()?;
            let by = self.reviewers(None, 3)?;
            Ok(by.len() == 1 && by.contains_key("reviews-v1") && asked()? > before)
        })?;
        let heard = self.b.pod("reviews-v3")?.asked();
        let shadow = heard.last().is_some_and(|l| l.contains("-shadow"));
        ensure!(shadow, "a shadow says that it is one: {heard:?}");
        println!("  reviews-v3 was asked for reviews-shadow, and nobody heard its answer");
        Ok(())
    }

    fn breakers(&self) -> anyhow::Result<()> {
        title("A version that fails is ejected");
        self.mood("reviews-v2", "broken")?;
        self.b.mesh.delete(REVIEWS_ROUTES);
        self.apply(manifest!("70-ejection"));
        self.until("it is ejected", || Ok((0..12).all(|_| self.b.get(REVIEWS).is_ok())))?;
        let by = self.reviewers(None, 12)?;
        ensure!(by.len() == 2 && !by.contains_key("reviews-v2"), "{by:?}");
        println!("  reviews-v2 answers 500 only; of 12 requests: {by:?}");
        self.mood("reviews-v2", "")?;
        title("A circuit breaker: one at a time, one that waits");
        self.mood("details-v1", "slow")?;
        self.apply(manifest!("71-circuit-breaker"));
        self.until("it breaks", || {
            let outcomes: Vec<bool> = std::thread::scope(|s| {
                let all: Vec<_> = (0..6).map(|_| s.spawn(|| self.b.get(DETAILS).is_ok())).collect();
                all.into_iter().map(|t| t.join().unwrap_or(false)).collect()
            });
            let passed = outcomes.iter().filter(|o| **o).count();
            // The rule may come into effect in the middle.
            if passed > 2 {
                return Ok(false);
            }
            println!("  of 6 at once {passed} passed, {} were turned away", 6 - passed);
            Ok(passed > 0)
        })?;
        self.mood("details-v1", "")?;
        Ok(())
    }

    fn policy(&self) -> anyhow::Result<()> {
        title("Ratings may be read, by reviews and by nobody else");
        self.apply(manifest!("80-readers"));
        self.until("it is refused", || {
            Ok(self.b.get(RATINGS).err().is_some_and(|e| format!("{e:#}").contains("403")))
        })?;
        self.until("reviews may", || Ok(self.b.get(REVIEWS)?.contains("stars")))?;
        println!("  sleep is answered 403, reviews gets its stars");
        title("Details, by method and path");
        let elsewhere = "http://details:9080/health";
        self.b.get(elsewhere).context("for now it is anybody's")?;
        self.apply(manifest!("81-details"));
        self.until("another path is refused", || {
            Ok(self.b.get(elsewhere).err().is_some_and(|e| format!("{e:#}").contains("403")))
        })?;
        self.b.get(DETAILS)?;
        println!("  /details/0 is answered, /health is answered 403");
        Ok(())
    }

    fn seen(&self) -> anyhow::Result<()> {
        title("What the waypoint has seen");
        let metrics = self.waypoint.metrics();
        let mut by: BTreeMap<(String, String), u64> = BTreeMap::new();
        for line in metrics.lines().filter(|l| l.starts_with("istio_requests_total{")) {
            let label = |name: &str| -> Option<String> {
                let (_, rest) = line.split_once(&format!("{name}=\""))?;
                Some(rest.split_once('"')?.0.to_owned())
            };
            let (Some(to), Some(code)) =
                (label("destination_service_name"), label("response_code"))
            else {
                continue;
            };
            let n: u64 = line.rsplit(' ').next().unwrap_or("0").parse().unwrap_or(0);
            *by.entry((to, code)).or_default() += n;
        }
        ensure!(by.contains_key(&("reviews".to_owned(), "200".to_owned())), "{by:?}");
        ensure!(by.contains_key(&("ratings".to_owned(), "403".to_owned())), "{by:?}");
        for ((to, code), n) in by {
            println!("  {to} {code}: {n}");
        }
        Ok(())
    }
}
