from __future__ import annotations

import from_bergson
import from_dattri
import from_kronfluence
import numpy as np
import pytest
import torch
from by_hand import gradients, influence, inner_products, load
from runs import RATE
from scipy.stats import spearmanr

import simfluence

METHODS = [
    "TracInCP (captum)", "TRAK (traker)", "influence by CG (dattri)", "EK-FAC (kronfluence)",
    "GradDot (bergson)", "TrackStar (bergson)",
]  # fmt: skip


@pytest.fixture(scope="module")
def rows(comparison):
    return {(row["block"], row["method"]): row for row in comparison.table}


@pytest.fixture(scope="module")
def inner(tuned):
    """Inner products of gradients over all checkpoints, by hand."""
    return inner_products(tuned.model, tuned.checkpoints, tuned.train.words, tuned.test.words, RATE)


def at_last_checkpoint(tuned):
    return load(tuned.model, tuned.checkpoints[-1]), tuned.train.words, tuned.test.words


def gain(simulator):
    return float(simulator._described["gain"])


def assert_close(scores, expected, share=1e-5):
    """To this share of the largest."""
    assert scores.shape == expected.shape
    assert (scores - expected).abs().max() < share * expected.abs().max()


def dropped(run_set):
    """Runs without a dataset, and the run that each would have been with it."""
    edits = {run: run_set[run].info["design"]["edit"] for run in run_set.ids}
    return [(run, e["base_run"]) for run, e in edits.items() if e and e["kind"] == "dropped"]


def final_effect(run_set, edited, base, simulator=None):
    """How much leaving the dataset out changes the loss of each test example in the end."""

    def final(run):
        if simulator is None:
            return run_set[run].curves().final
        return simfluence.simulate(simulator, run_set, run).final

    return final(edited) - final(base)


def test_the_runs_learn_and_their_datasets_matter(tuned):
    runs = tuned.run_set
    assert len(tuned.checkpoints) == 3 and all(runs[one].status == "complete" for one in runs.ids)
    losses = runs["ordinary-000"].losses.mean(1)
    assert losses[-1] < losses[0] - 0.4
    of = np.array(tuned.test.datasets)
    for edited, base in dropped(runs):
        left_out = edited.rsplit("-", 1)[1]
        effect = final_effect(runs, edited, base)
        assert effect[of == left_out].mean() > 0.3 > 0 > effect[of != left_out].mean()


def test_ref_captum_gives_the_inner_products_of_gradients(scores, inner):
    assert_close(scores["TracInCP (captum)"], inner)


def test_ref_dattri_gives_the_inner_products_of_gradients(tuned, inner):
    words = tuned.train.words, tuned.test.words
    assert_close(from_dattri.tracin(tuned.model, tuned.checkpoints, *words, RATE), inner)


def test_ref_dattri_solves_the_system_of_influence_functions(tuned, scores):
    model, train, test = at_last_checkpoint(tuned)
    expected = influence(model, train, test[:3], from_dattri.DAMPING).float()
    assert_close(scores["influence by CG (dattri)"][:, :3], expected, 1e-3)


def test_ref_kronfluence_without_curvature_gives_them_over_linear_layers(tuned):
    model, *words = at_last_checkpoint(tuned)
    linear = lambda name: "proj" in name or "lm_head" in name  # noqa: E731
    train, test = (gradients(model, one, linear) for one in words)
    assert_close(from_kronfluence.influence(model, *words, strategy="identity"), train @ test.T)


def test_ref_bergson_gives_them_over_the_layers_below_the_output(tuned):
    model, *words = at_last_checkpoint(tuned)
    train, test = (gradients(model, one, lambda name: "proj" in name) for one in words)
    assert_close(from_bergson.grad_dot(model, *words), train @ test.T)


def test_the_same_scores_make_the_same_simulator_whoever_computed_them(tuned, scores, inner):
    of_captum, of_ours = (
        simfluence.from_scores(tuned.run_set, one, "TracInCP")
        for one in (scores["TracInCP (captum)"], inner)
    )
    assert gain(of_captum) == pytest.approx(gain(of_ours), rel=1e-5)
    for run in ("held-out-000", "ordinary-000"):
        first, second = (
            simfluence.simulate(one, tuned.run_set, run).values for one in (of_captum, of_ours)
        )
        assert first == pytest.approx(second, abs=1e-5)


def test_scores_as_captum_and_kronfluence_give_them_are_refused_untransposed(tuned, scores):
    for name in ("TracInCP (captum)", "EK-FAC (kronfluence)"):
        with pytest.raises(simfluence.UsageError, match="transpose it"):
            simfluence.from_scores(tuned.run_set, scores[name].T, name)


def test_scores_of_log_likelihoods_hurt_when_larger(tuned, scores):
    """dattri asked about the test sentences' log-likelihood instead of their loss."""
    words = tuned.train.words, tuned.test.words
    opposite = from_dattri.tracin(tuned.model, tuned.checkpoints, *words, RATE, target=torch.neg)
    assert_close(-opposite, scores["TracInCP (captum)"])
    wrong, right, same = (
        simfluence.from_scores(tuned.run_set, one, "s", larger_means=means)
        for one, means in (
            (opposite, "helps"), (opposite, "hurts"), (scores["TracInCP (captum)"], "helps"),
        )
    )  # fmt: skip
    assert gain(right) == pytest.approx(gain(same), rel=1e-5) and gain(right) > 0
    # A gain is never negative: scores that point the wrong way predict that nothing is learned.
    assert gain(wrong) == 0
    simulated = simfluence.simulate(wrong, tuned.run_set, "held-out-000")
    assert np.array_equal(simulated.final, simulated.initial)


@pytest.mark.parametrize("method", METHODS)
def test_every_library_is_judged(rows, method, scores):
    assert set(scores) == set(METHODS)
    for block in ("held-out", "suite", "dropped"):
        for name in (method, f"{method} (calibrated)"):
            row = rows[block, name]
            assert np.isfinite(row["mse"]) and np.isfinite(row["final_spearman"])


@pytest.mark.parametrize("method", METHODS)
def test_every_library_knows_what_leaving_a_dataset_out_does(rows, method):
    row = rows["dropped", method]
    assert row["effect_spearman"] > 0.5 and row["effect_r2"] > 0.3
    # Runs that nobody has seen are predicted better with the scores than without.
    for block in ("held-out", "dropped"):
        without = rows[block, "mean-run"]["mse"]
        assert rows[block, f"{method} (calibrated)"]["mse"] < 0.8 * without


def test_scores_of_the_wrong_examples_do_not_know_it(rows, shuffled):
    for name in shuffled:
        assert rows["dropped", name]["effect_r2"] < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_ref_the_effects_are_ranked_as_scipy_ranks_them(tuned, rows, simulators, method):
    """The mean over runs of Spearman's ρ of simulated and real final effects, by hand."""
    pairs = dropped(tuned.run_set)
    assert len(pairs) == rows["dropped", method]["runs"] == 6
    ranked = [
        spearmanr(
            final_effect(tuned.run_set, *pair),
            final_effect(tuned.run_set, *pair, simulator=simulators[method]),
        ).statistic
        for pair in pairs
    ]
    assert rows["dropped", method]["effect_spearman"] == pytest.approx(np.mean(ranked), abs=1e-6)
