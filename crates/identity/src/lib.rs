//! Who a workload is: SPIFFE ids, keys, certificates and their rotation, and whom to trust.
//!
//! A private key is made here, stays in memory and is never shown. TLS configurations are built
//! once per identity and certificate ([`Certified`]), not per connection. A certificate is used
//! until it expires, and not after; [`CertStore`] renews it at half its life.

mod certified;
mod csr;
mod roots;
mod roots_file;
mod spiffe;
mod store;
mod verify;

pub use certified::{Certified, CertifiedError};
pub use csr::{KeyAndRequest, new_request};
pub use roots::{Roots, RootsError};
pub use roots_file::{RootsFile, RootsFileError};
pub use spiffe::{SpiffeId, SpiffeIdError};
pub use store::{CaError, CertStatus, CertStore, CertificateAuthority, Usable};
pub use verify::{PeerCertError, peer_identity};
