//! Lets everything that links LibTorch through this package find it at run time without
//! `LD_LIBRARY_PATH`, and tells the package which version of it that is.

use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Set by torch-sys, the library folder it links against; absent without the `torch` feature.
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
        // Becomes DEP_SIMFLUENCE_MODELS_LIBTORCH_LIB in packages that depend on this one.
        println!("cargo::metadata=libtorch_lib={folder}");
        let version = version(Path::new(&folder)).unwrap_or_else(|| "unknown".to_owned());
        println!("cargo::rustc-env=SIMFLUENCE_LIBTORCH_VERSION={version}");
    }
}

/// The version that stands in LibTorch's headers, beside its library folder.
fn version(libraries: &Path) -> Option<String> {
    let header = libraries.join("../include/torch/headeronly/version.h");
    println!("cargo::rerun-if-changed={}", header.display());
    let header = std::fs::read_to_string(header).ok()?;
    let part = |name: &str| {
        let definition = format!("#define TORCH_VERSION_{name} ");
        let line = header.lines().find_map(|l| l.strip_prefix(&definition))?;
        line.trim().parse::<u32>().ok()
    };
    Some(format!(
        "{}.{}.{}",
        part("MAJOR")?,
        part("MINOR")?,
        part("PATCH")?
    ))
}
