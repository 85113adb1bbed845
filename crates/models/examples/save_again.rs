//! Reads a model folder in Hugging Face format and writes it to another: `save_again FROM TO`.
//! `tests/data/check_saved.py` has transformers read what comes out.

use simfluence_models::hugging_face;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, from, to] = &arguments[..] else {
        return Err("usage: save_again FROM TO".into());
    };
    let weights = hugging_face::load(Path::new(from), None)?;
    Ok(hugging_face::save(&weights, Path::new(to))?)
}
