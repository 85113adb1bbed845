//! Which settings belong to which method.

use super::name;
use crate::cli::{AttributeArgs, AttributionMethod, LabelsArg, LeaveOutArgs, MethodSettings};
use anyhow::{Result, bail};

use AttributionMethod::*;

const GRADIENTS: &[AttributionMethod] = &[
    Graddot,
    GraddotPreconditioned,
    TracinCp,
    TracinCpPreconditioned,
    HifExact,
    HifCg,
    HifLissa,
    HifArnoldi,
    HifEkfac,
    HifKfac,
    HifDiagonal,
];
const BATCHED: &[AttributionMethod] = &[
    Graddot,
    GraddotPreconditioned,
    TracinCp,
    TracinCpPreconditioned,
    HifEkfac,
    HifKfac,
    HifDiagonal,
];
const PREFILTERED: &[AttributionMethod] = &[
    Graddot,
    GraddotPreconditioned,
    Gradcos,
    GradcosPreconditioned,
    TracinCp,
    TracinCpPreconditioned,
    HifEkfac,
    HifKfac,
    HifDiagonal,
];
const ITERATIVE: &[AttributionMethod] = &[HifExact, HifCg, HifLissa, HifArnoldi];
const FACTORED: &[AttributionMethod] = &[HifEkfac, HifKfac, HifDiagonal];
const INFLUENCE: &[AttributionMethod] = &[
    HifExact,
    HifCg,
    HifLissa,
    HifArnoldi,
    HifEkfac,
    HifKfac,
    HifDiagonal,
];
const DAMPED: &[AttributionMethod] = &[
    HifExact,
    HifCg,
    HifLissa,
    HifArnoldi,
    HifEkfac,
    HifKfac,
    HifDiagonal,
    Pbrf,
];
const TEST_UNITS: &[AttributionMethod] = &[
    UntracInv,
    HifExact,
    HifCg,
    HifLissa,
    HifArnoldi,
    HifEkfac,
    HifKfac,
    HifDiagonal,
];
const UNLEARNING: &[AttributionMethod] = &[Untrac, UntracInv];
const WALKING: &[AttributionMethod] = &[Untrac, UntracInv, Empirical];

/// Fails if a setting is given that the method does not have.
pub fn check(args: &AttributeArgs) -> Result<()> {
    for (setting, is_given, methods) in given(&args.settings, &args.leave_out) {
        if is_given && !methods.contains(&args.method) {
            let owners: Vec<String> = methods.iter().map(|m| name(*m)).collect();
            bail!(
                "{setting} is a setting of {}, not of {}",
                owners.join(", "),
                name(args.method)
            );
        }
    }
    check_together(&args.settings)?;
    let leaves_out = [
        ("--prefilter", args.settings.prefilter.is_some()),
        ("--trained-only", args.settings.trained_only),
    ];
    for (setting, _) in leaves_out.into_iter().filter(|(_, is_given)| *is_given) {
        if args.simulator.is_some() {
            bail!(
                "--simulator needs a score of every training example; leave {setting} out, or --simulator"
            );
        }
        if args.out.is_none() {
            bail!(
                "{setting} leaves training examples without a score, which `compare` cannot use; say with --out where the scores go"
            );
        }
    }
    Ok(())
}

/// Fails where one setting would make another one do nothing.
fn check_together(s: &MethodSettings) -> Result<()> {
    if s.test_unit.is_some() {
        let others = [
            ("--tokens", s.tokens.is_some()),
            ("--projection", s.projection.is_some()),
            ("--query-rank", s.query_rank.is_some()),
            ("--prefilter", s.prefilter.is_some()),
        ];
        if let Some((other, _)) = others.iter().find(|(_, is_given)| *is_given) {
            bail!("{other} is about single test examples; leave it or --test-unit out");
        }
    }
    if s.repeats.is_some_and(|n| n > 1) && s.batch_size.is_none() {
        bail!(
            "--repeats averages recursions over drawn batches; without --batch-size every recursion is the same: give one, or leave --repeats out"
        );
    }
    if s.draws.is_some() && s.labels.is_some_and(|l| l != LabelsArg::Sampled) {
        bail!("--draws counts sampled labels; leave it out, or --labels");
    }
    Ok(())
}

type Setting = (&'static str, bool, &'static [AttributionMethod]);

fn given(s: &MethodSettings, l: &LeaveOutArgs) -> Vec<Setting> {
    vec![
        ("--layers", s.layers, GRADIENTS),
        ("--tokens", s.tokens.is_some(), BATCHED),
        ("--query-rank", s.query_rank.is_some(), BATCHED),
        ("--projection", s.projection.is_some(), BATCHED),
        ("--prefilter", s.prefilter.is_some(), PREFILTERED),
        ("--curvature", s.curvature.is_some(), ITERATIVE),
        ("--damping", s.damping.is_some(), DAMPED),
        (
            "--relative-damping",
            s.relative_damping.is_some(),
            INFLUENCE,
        ),
        ("--epsilon", s.epsilon.is_some(), &[Pbrf]),
        (
            "--tolerance",
            s.tolerance.is_some(),
            &[HifCg, HifLissa, Pbrf],
        ),
        (
            "--iterations",
            s.iterations.is_some(),
            &[HifCg, HifArnoldi, Pbrf],
        ),
        (
            "--curvature-examples",
            s.curvature_examples.is_some(),
            INFLUENCE,
        ),
        ("--rank", s.rank.is_some(), &[HifArnoldi]),
        ("--complement", s.complement, &[HifArnoldi]),
        ("--depth", s.depth.is_some(), &[HifLissa]),
        ("--repeats", s.repeats.is_some(), &[HifLissa]),
        ("--scale", s.scale.is_some(), &[HifLissa]),
        ("--no-deflation", s.no_deflation, &[HifLissa]),
        ("--labels", s.labels.is_some(), FACTORED),
        ("--draws", s.draws.is_some(), FACTORED),
        ("--optimizer", s.optimizer.is_some(), WALKING),
        ("--learning-rate", s.learning_rate.is_some(), WALKING),
        (
            "--batch-size",
            s.batch_size.is_some(),
            &[Untrac, UntracInv, HifLissa],
        ),
        ("--epochs", s.epochs.is_some(), UNLEARNING),
        ("--steps", s.steps.is_some(), &[Empirical]),
        ("--from-base", s.from_base, &[Empirical]),
        ("--test-unit", s.test_unit.is_some(), TEST_UNITS),
        ("--trained-only", s.trained_only, &[Untrac, Empirical, Pbrf]),
        ("--curve-every", s.curve_every.is_some(), UNLEARNING),
        ("--curves", s.curves.is_some(), UNLEARNING),
        (
            "--unit",
            l.unit.is_some(),
            &[LeaveOut, Untrac, Empirical, Pbrf],
        ),
        ("--seeds", l.seeds.is_some(), &[LeaveOut]),
        ("--jobs", l.jobs.is_some(), &[LeaveOut]),
        ("--subsets", l.subsets.is_some(), &[LeaveOut]),
        ("--fraction", l.fraction.is_some(), &[LeaveOut]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_would_do_nothing_together_are_refused() {
        let refused = |change: fn(&mut MethodSettings)| {
            let mut settings = MethodSettings::default();
            change(&mut settings);
            check_together(&settings).map_err(|error| error.to_string())
        };
        assert_eq!(refused(|_| ()), Ok(()));
        let units = refused(|s| {
            s.test_unit = Some("dataset".to_owned());
            s.projection = Some(8);
        });
        assert!(units.unwrap_err().contains("--projection"));
        let repeats = refused(|s| s.repeats = Some(5));
        assert!(repeats.unwrap_err().contains("--batch-size"));
        let drawn = refused(|s| {
            s.repeats = Some(5);
            s.batch_size = Some(8);
        });
        assert_eq!(drawn, Ok(()));
        let draws = refused(|s| {
            s.draws = Some(5);
            s.labels = Some(LabelsArg::Given);
        });
        assert!(draws.unwrap_err().contains("--draws"));
    }
}
