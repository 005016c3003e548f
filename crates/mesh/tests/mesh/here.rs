//! The pods of the reader's own node.

use crate::feed::{Feed as _, mesh, workload};
use xds::proto::workload as pb;

fn pod(uid: &str, node: &str, pod_uid: &str) -> pb::Workload {
    pb::Workload {
        node: node.to_owned(),
        cluster_id: "c1".to_owned(),
        pod_uid: pod_uid.to_owned(),
        ..workload(uid, "10.0.0.1")
    }
}

#[test]
fn pods_of_this_node_are_known_with_their_metadata_uid() {
    let m = mesh();
    let here = || {
        let mut all: Vec<(String, String)> =
            m.pods_here().iter().map(|(w, uid)| (w.uid.to_string(), uid.to_string())).collect();
        all.sort();
        all
    };
    let is = |all: &[(&str, &str)]| {
        let expected: Vec<(String, String)> =
            all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(here(), expected);
    };
    m.put(pod("a", "here", "u-1"));
    m.put(pod("b", "elsewhere", "u-2"));
    m.put(pod("c", "here", ""));
    m.put(pb::Workload { cluster_id: "c2".to_owned(), ..pod("d", "here", "u-4") });
    is(&[("a", "u-1")]);
    assert_eq!(m.pod_uid("a").as_deref(), Some("u-1"));
    assert_eq!(m.pod_uid("b"), None);
    // The next of its name, and one that comes back elsewhere.
    m.put(pod("a", "here", "u-5"));
    is(&[("a", "u-5")]);
    m.put(pod("b", "here", "u-6"));
    m.put(pod("a", "elsewhere", "u-7"));
    is(&[("b", "u-6")]);
    m.remove("b");
    is(&[]);
}
