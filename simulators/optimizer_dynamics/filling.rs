//! What was not measured, filled in.

use super::model::{Model, Prepared, Shape};
use super::path::Path;
use rayon::prelude::*;

/// How often gaps are filled by what the fit before says.
const PASSES: usize = 2;

/// The paths of runs with their gaps filled by what a closed loop says that is fitted on them, and
/// then on what it filled in.
pub(super) fn fill(runs: &[&Prepared], shape: Shape, penalty: f64) -> Vec<Path> {
    let mut paths: Vec<Path> = runs.iter().map(|run| run.path.clone()).collect();
    if paths.iter().all(Path::is_complete) {
        return paths;
    }
    for _ in 0..PASSES {
        let models = Model::fit(runs, &paths, shape, &[penalty]);
        (runs.par_iter().zip(&mut paths))
            .for_each(|(run, path)| path.follow(&models[0].increments_along(run, path)));
    }
    paths
}
