//! Lets everything that links LibTorch through this package find it at run time without
//! `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Set by torch-sys, the library folder it links against; absent without the `torch` feature.
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
        // Becomes DEP_SIMFLUENCE_MODELS_LIBTORCH_LIB in packages that depend on this one.
        println!("cargo::metadata=libtorch_lib={folder}");
    }
}
