//! Lets the program find LibTorch from anywhere, without `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Set by simfluence-models when it links LibTorch (feature `torch`).
    if let Ok(folder) = std::env::var("DEP_SIMFLUENCE_MODELS_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
