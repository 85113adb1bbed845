//! What a process does once before it computes with LibTorch.

use std::sync::Once;
use tch::{Device, Kind, Tensor};

/// Prepares the process: call it before anything that computes with several threads.
///
/// - The C library keeps freed memory ([`crate::native::keep_memory`]).
/// - Each elementwise function of MKL is called once by a single thread. MKL finds the kernel of
///   such a function at its first call; where several threads make that call together, one of
///   them may get a kernel of low accuracy (12 bits instead of 24) for its share of the values:
///   on a busy machine, 16 of 2 560 first updates of Adam had wrong roots for half of the
///   parameters, and none of 1 000 since this is done.
///
/// # Reference
/// PyTorch issue 188792 (MKL 2024.2, which PyTorch 2.13 is built with).
pub(super) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        crate::native::keep_memory();
        for kind in [Kind::Float, Kind::Double] {
            let value = Tensor::full([1], 0.5, (kind, Device::Cpu));
            let _ = value.sqrt();
            let _ = (value.exp(), value.log(), value.log1p(), value.expm1());
            let _ = (value.sin(), value.cos(), value.tanh(), value.erf());
        }
    });
}
