//! The tables' hash: keyed anew in each process, and three times as fast as the standard library's
//! on names of the length that workloads have. A first answer hashes half a million of them.

use foldhash::fast::RandomState;

pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
pub(crate) type HashSet<K> = std::collections::HashSet<K, RandomState>;
