//! The eBPF objects, embedded by the build script. Empty when the crate was built without `cargo xtask build`.

/// Bytes that aya can read: ELF headers want alignment.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static BALANCER: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/balancer")));
static DECAP: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/decap")));

/// The binary has no data path in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this xlb was built without its data path (or with one older than its source): build it with `cargo xtask build`"
)]
pub struct NotBuilt;

/// The balancer.
pub fn balancer() -> Result<&'static [u8], NotBuilt> {
    Some(&BALANCER.0).filter(|o| !o.is_empty()).ok_or(NotBuilt)
}

/// The decapsulator for servers.
pub fn decap() -> Result<&'static [u8], NotBuilt> {
    Some(&DECAP.0).filter(|o| !o.is_empty()).ok_or(NotBuilt)
}
