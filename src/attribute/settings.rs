//! Which settings belong to which method.

use super::name;
use crate::cli::{AttributeArgs, AttributionMethod, LeaveOutArgs, MethodSettings};
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
    if args.settings.prefilter.is_some() {
        if args.simulator.is_some() {
            bail!(
                "--simulator needs a score of every training example; leave --prefilter out, or --simulator"
            );
        }
        if args.out.is_none() {
            bail!(
                "--prefilter leaves training examples without a score, which `compare` cannot use; say with --out where the scores go"
            );
        }
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
