//! Several test examples side by side, so that one read of the shared exposures serves them all.
//!
//! A value per test example is an array `[f64; N]`. The kernels are plain loops over such arrays;
//! [`dispatch`] compiles them for AVX2 with fused multiply-add where the processor has both.

use std::ops::Mul;

/// Test examples that are fitted or simulated together. Fixed, so that results do not depend on
/// the number of threads; 8 is one cache line of `f64`.
pub const LANES: usize = 8;

/// `a · b + c`, fused where that is one instruction.
pub(crate) trait MulAdd: Copy {
    fn double(a: f64, b: f64, c: f64) -> f64;
    fn single(a: f32, b: f32, c: f32) -> f32;
}

/// One rounding; for processors that have the instruction.
#[derive(Clone, Copy)]
pub(crate) struct Fused;

impl MulAdd for Fused {
    #[inline(always)]
    fn double(a: f64, b: f64, c: f64) -> f64 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn single(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Two roundings; without the instruction a fused one would be a slow library call.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl MulAdd for Plain {
    #[inline(always)]
    fn double(a: f64, b: f64, c: f64) -> f64 {
        a * b + c
    }

    #[inline(always)]
    fn single(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// The two precisions that kernels are written for.
pub(crate) trait Real: Copy + Mul<Output = Self> + 'static {
    const ZERO: Self;
    fn mul_add<M: MulAdd>(self, b: Self, c: Self) -> Self;
    fn of(value: f64) -> Self;
    fn widen(self) -> f64;
}

impl Real for f64 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn mul_add<M: MulAdd>(self, b: Self, c: Self) -> Self {
        M::double(self, b, c)
    }

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
}

impl Real for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn mul_add<M: MulAdd>(self, b: Self, c: Self) -> Self {
        M::single(self, b, c)
    }

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn widen(self) -> f64 {
        f64::from(self)
    }
}

/// Work that [`dispatch`] compiles for the processor it runs on. `run` and everything hot that it
/// calls must be `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<M: MulAdd>(self) -> Self::Output;
}

/// Runs the kernel with the best instructions that this processor has.
#[cfg(target_arch = "x86_64")]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    struct WithFma<K>(K);
    impl<K: Kernel> pulp::NullaryFnOnce for WithFma<K> {
        type Output = K::Output;
        #[inline(always)]
        fn call(self) -> K::Output {
            self.0.run::<Fused>()
        }
    }
    match pulp::x86::V3::try_new() {
        Some(v3) => v3.vectorize(WithFma(kernel)),
        None => kernel.run::<Plain>(),
    }
}

/// Runs the kernel; on AArch64 fused multiply-add is always there.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    if cfg!(target_arch = "aarch64") {
        kernel.run::<Fused>()
    } else {
        kernel.run::<Plain>()
    }
}

/// `acc[l] += x · v[l]`.
#[inline(always)]
pub(crate) fn axpy<T: Real, const N: usize, M: MulAdd>(acc: &mut [T; N], x: T, v: &[T; N]) {
    for l in 0..N {
        acc[l] = x.mul_add::<M>(v[l], acc[l]);
    }
}

/// `acc[l] += a[l] · b[l]`.
#[inline(always)]
pub(crate) fn accumulate<T: Real, const N: usize, M: MulAdd>(
    acc: &mut [T; N],
    a: &[T; N],
    b: &[T; N],
) {
    for l in 0..N {
        acc[l] = a[l].mul_add::<M>(b[l], acc[l]);
    }
}
