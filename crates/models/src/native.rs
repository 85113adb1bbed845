//! The only place with `unsafe`: two calls into the C library that LibTorch's bindings lack.
#![allow(unsafe_code)]

use std::ffi::CStr;

/// Lets the C library keep freed memory.
///
/// LibTorch allocates and frees each intermediate result. glibc hands large blocks back to the
/// kernel at once, and each next allocation pays for page faults again.
pub(crate) fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator and may be called at any time.
    unsafe {
        // 32 MiB is the most that glibc accepts.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Loads LibTorch's CUDA part, which registers itself.
///
/// Linkers drop it because nothing refers to it, and a program that needed it at its start could
/// not run on machines without CUDA.
pub(crate) fn load_cuda() -> Result<(), String> {
    #[cfg(unix)]
    {
        // SAFETY: the name is a C string; loading runs the constructors of LibTorch's own
        // library, as linking against it would have done; the handle is kept until exit.
        let handle = unsafe {
            libc::dlopen(
                c"libtorch_cuda.so".as_ptr(),
                libc::RTLD_NOW | libc::RTLD_GLOBAL,
            )
        };
        if handle.is_null() {
            // SAFETY: after a failure dlerror gives a C string that stays valid until the next
            // call of the loader on this thread.
            let message = unsafe { CStr::from_ptr(libc::dlerror()) };
            return Err(message.to_string_lossy().into_owned());
        }
    }
    Ok(())
}
