//! What a workload's memory is made of: the heap that each field takes, found by leaving it out.
//! What an empty field takes shows apart.

use super::corpus::{self, NODE, Shape, named_service, named_workload};
use crate::{
    memory::{heap_of, start_counting},
    role::say,
};
use anyhow::ensure;
use mesh::{Local, Mesh, Workload};
use xds::proto::workload as pb;

const COUNT: u32 = 20_000;
const SHAPE: Shape = Shape { workloads: COUNT, labels: true };

/// A field, and how to do without it.
type Field = (&'static str, fn(&mut pb::Workload));

const FIELDS: [Field; 14] = [
    ("labels", |w| w.extensions.clear()),
    ("services", |w| w.services.clear()),
    ("name", |w| w.name.clear()),
    ("namespace", |w| w.namespace = "n".to_owned()),
    ("addresses", |w| w.addresses.clear()),
    ("network", |w| w.network.clear()),
    ("trust_domain", |w| w.trust_domain = "d".to_owned()),
    ("service_account", |w| w.service_account = "a".to_owned()),
    ("node", |w| w.node.clear()),
    ("canonical_name", |w| w.canonical_name.clear()),
    ("canonical_revision", |w| w.canonical_revision.clear()),
    ("workload_name", |w| w.workload_name.clear()),
    ("cluster", |w| w.cluster_id.clear()),
    ("locality", |w| w.locality = None),
];

pub fn play() -> anyhow::Result<()> {
    start_counting();
    say("workload: the struct itself", size_of::<Workload>() as f64);
    let whole = heap_without(|_| ())?;
    say("workload: heap in the mesh, tables included", whole);
    say("workload: heap with all fields at their emptiest", heap_without(at_their_emptiest)?);
    for (name, leave_out) in FIELDS {
        say(&format!("workload: heap of {name}"), whole - heap_without(leave_out)?);
    }
    Ok(())
}

fn at_their_emptiest(w: &mut pb::Workload) {
    for (_, leave_out) in FIELDS {
        leave_out(w);
    }
}

/// Bytes per workload in a mesh of them.
fn heap_without(leave_out: fn(&mut pb::Workload)) -> anyhow::Result<f64> {
    let local = Local { node: NODE.into(), cluster: "Kubernetes".into(), ..Local::default() };
    let mesh = Mesh::new(local);
    corpus::apply(&mesh, (0..SHAPE.services()).map(|j| named_service(SHAPE.service(j))));
    // In pieces, so that no table is measured just after it doubled only.
    let (rejected, heap) = heap_of(|| {
        let mut rejected = 0;
        for first in (0..COUNT).step_by(1000) {
            let some = (first..first + 1000).map(|i| {
                let mut w = SHAPE.workload(i, 0);
                leave_out(&mut w);
                named_workload(w)
            });
            rejected += corpus::apply(&mesh, some);
        }
        rejected
    });
    ensure!(rejected == 0, "{rejected} workloads were rejected");
    Ok(heap / f64::from(COUNT))
}
