//! Reads a model folder in Hugging Face format and writes it to another: `save_again FROM TO`; with
//! a third folder the adapter there, for the model in the first: `save_again BASE TO ADAPTER`.
//! `tests/data/check_saved.py` has transformers and PEFT read what comes out.

use simfluence_models::hugging_face;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&Path> = arguments[1..].iter().map(Path::new).collect();
    match arguments[..] {
        [from, to] => hugging_face::save(&hugging_face::load(from, None)?, to)?,
        [base, to, adapter] => {
            let base = hugging_face::load(base, None)?;
            hugging_face::save_adapter(&hugging_face::load_adapter(&base, adapter)?, to)?;
        }
        _ => return Err("usage: save_again FROM TO [ADAPTER]".into()),
    }
    Ok(())
}
