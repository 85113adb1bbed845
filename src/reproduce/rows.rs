//! The methods of the experiment, with their settings.

use crate::attribute::name;
use crate::cli::{AttributionMethod, CurvatureArg, MethodSettings, OptimizerArg};
use clap::ValueEnum;

use AttributionMethod::*;

/// Influence of one kind, computed for every run.
pub struct Row {
    /// Name: of the method, with what differs from its defaults.
    pub name: String,
    /// The method.
    pub method: AttributionMethod,
    /// Its settings.
    pub settings: MethodSettings,
    /// What is a unit of training examples.
    pub unit: Option<&'static str>,
    /// Which column of the sweep, if it is part of it.
    pub swept: Option<&'static str>,
}

/// Optimisers of the sweep, at the paper's learning rate.
pub const OPTIMIZERS: [(&str, OptimizerArg); 5] = [
    ("sgd", OptimizerArg::Sgd),
    ("momentum", OptimizerArg::Momentum),
    ("rmsprop", OptimizerArg::Rmsprop),
    ("adam", OptimizerArg::Adam),
    ("adafactor", OptimizerArg::Adafactor),
];

/// Learning rates of the sweep, with Adam.
pub const LEARNING_RATES: [(&str, f64); 5] = [
    ("5e-6", 5e-6),
    ("1e-5", 1e-5),
    ("5e-5", 5e-5),
    ("1e-4", 1e-4),
    ("5e-4", 5e-4),
];

/// Training examples that curvature is taken over: what can be afforded.
const CURVATURE_EXAMPLES: u32 = 128;

/// Methods that are not worth their cost here, or are not to be scored.
const LEFT_OUT: [AttributionMethod; 3] = [HifExact, Pbrf, LeaveOut];

/// Methods that solve a system for every test dataset: left out where there are several.
const ONE_TEST_ONLY: [AttributionMethod; 2] = [HifCg, HifLissa];

/// The methods without being asked for any.
pub fn default_methods(tests: usize) -> Vec<AttributionMethod> {
    let all = AttributionMethod::value_variants().iter().copied();
    all.filter(|method| !LEFT_OUT.contains(method))
        .filter(|method| tests == 1 || !ONE_TEST_ONLY.contains(method))
        .collect()
}

/// The methods with the settings of the experiment; `curve_every`: how often the losses are
/// measured while UnTrac unlearns.
pub fn rows(methods: &[AttributionMethod], curve_every: u32) -> Vec<Row> {
    let row = |&method: &AttributionMethod| {
        let (settings, unit) = settings(method, curve_every);
        Row {
            name: name(method),
            method,
            settings,
            unit,
            swept: None,
        }
    };
    methods.iter().map(row).collect()
}

fn settings(method: AttributionMethod, curve_every: u32) -> (MethodSettings, Option<&'static str>) {
    let mut settings = MethodSettings::default();
    let mut unit = None;
    match method {
        Untrac => {
            settings.curve_every = Some(curve_every);
            settings.trained_only = true;
        }
        Empirical | Pbrf => {
            settings.trained_only = true;
            unit = Some("dataset");
        }
        HifCg | HifLissa | HifArnoldi | HifExact => {
            // One system per test dataset, and a curvature that can be afforded.
            settings.test_unit = Some("dataset".to_owned());
            settings.curvature_examples = Some(CURVATURE_EXAMPLES);
            settings.curvature = Some(CurvatureArg::GaussNewton);
            if matches!(method, HifCg | HifLissa) {
                settings.tolerance = Some(0.05);
            }
        }
        HifEkfac | HifKfac | HifDiagonal => settings.test_unit = Some("dataset".to_owned()),
        _ => {}
    }
    (settings, unit)
}

/// The sweep of a method's optimisers and learning rates; what is its default already is not
/// among them.
pub fn sweep(method: AttributionMethod) -> Vec<Row> {
    let row = |swept: &'static str, optimizer, learning_rate| {
        let settings = MethodSettings {
            optimizer,
            learning_rate,
            // Only the end is wanted.
            curve_every: Some(u32::MAX),
            trained_only: method == Untrac,
            ..MethodSettings::default()
        };
        Row {
            name: format!("{} {swept}", name(method)),
            method,
            settings,
            unit: None,
            swept: Some(swept),
        }
    };
    let optimizers = OPTIMIZERS.iter().filter(|(_, o)| *o != OptimizerArg::Adam);
    let rates = LEARNING_RATES.iter().filter(|(_, rate)| *rate != 5e-5);
    optimizers
        .map(|&(swept, optimizer)| row(swept, Some(optimizer), None))
        .chain(rates.map(|&(swept, rate)| row(swept, None, Some(rate))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let mut all = rows(&default_methods(1), 16);
        all.extend(sweep(Untrac));
        all.extend(sweep(UntracInv));
        let names: BTreeSet<&str> = all.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(sweep(Untrac).len(), 8);
        assert_eq!(default_methods(2).len(), default_methods(1).len() - 2);
    }
}
