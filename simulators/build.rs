//! Lets the tests and benchmarks of this package find LibTorch at run time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Set by simfluence-models when it links LibTorch (feature `torch`).
    if let Ok(folder) = std::env::var("DEP_SIMFLUENCE_MODELS_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
