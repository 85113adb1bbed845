"""The fit of one test example after the other with scikit-learn's Ridge on sparse input.

Finds the solver that is fastest at an objective value within 1e-8 (relative) of the minimum, each
with its loosest sufficient tolerance, and then fits all test examples with it on all cores.
Building the matrices is not timed.
"""

import time
import warnings

import joblib
import numpy as np
import scipy.sparse
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

EXCESS = 1e-8
TOLERANCES = [3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7, 1e-8, 1e-9, 1e-10]


def exposures(batches, n):
    """Sparse exposures `[steps of all runs, n]`; an example twice in a batch counts twice."""
    runs, steps, batch = batches.shape
    rows = np.repeat(np.arange(runs * steps), batch)
    values = np.full(rows.size, 1 / batch)
    matrix = scipy.sparse.csr_matrix((values, (rows, batches.ravel().astype(np.int64))))
    matrix.resize(runs * steps, n)
    matrix.sum_duplicates()
    return matrix


def problem(x, losses, j):
    """`(Φ, y)` of test example j, for the deviations of (A, B) from (1, 0)."""
    before = losses[:, :-1, j].ravel().astype(np.float64)
    after = losses[:, 1:, j].ravel().astype(np.float64)
    phi = scipy.sparse.hstack([scipy.sparse.diags(before) @ x, x], format="csr")
    return phi, after - np.asarray(x.sum(1)).ravel() * before


def objective(phi, y, penalty, w):
    return float(((y - phi @ w) ** 2).sum() + penalty * (w @ w))


def ridge(solver, penalty, tolerance):
    return Ridge(
        alpha=penalty, fit_intercept=False, solver=solver, tol=tolerance, max_iter=20000,
        random_state=0,
    )


def try_solver(solver, penalty, problems, best, give_up):
    """Seconds per test example at the loosest sufficient tolerance, and that tolerance."""
    for tolerance in TOLERANCES:
        seconds = excess = 0.0
        for (phi, y), minimum in zip(problems, best):
            runs = []
            for _ in range(2):
                start = time.perf_counter()
                model = ridge(solver, penalty, tolerance).fit(phi, y)
                runs.append(time.perf_counter() - start)
                if runs[0] > give_up:
                    return float("inf"), tolerance
            seconds += min(runs)
            excess = max(excess, objective(phi, y, penalty, model.coef_) / minimum - 1)
        if excess <= EXCESS:
            return seconds / len(problems), tolerance
        if solver in ("cholesky", "svd"):
            break
    return float("inf"), tolerance


def fastest_solver(x, losses, penalty, minimum):
    """Compares the solvers on a few test examples; `minimum[j]` is the smallest objective."""
    tests = np.linspace(0, losses.shape[2] - 1, 4).astype(int)
    problems = [problem(x, losses, j) for j in tests]
    found, fastest = {}, float("inf")
    for solver in ["sparse_cg", "lsqr", "cholesky", "sag", "saga"]:
        if solver == "cholesky" and 2 * x.shape[1] > 2000:
            found[solver] = (float("inf"), None)  # forms and factors a dense matrix per example
            continue
        found[solver] = try_solver(
            solver, penalty, problems, [minimum[j] for j in tests], 10 * fastest
        )
        fastest = min(fastest, found[solver][0])
    return found


def fit_share(x, losses, tests, penalty, solver, tolerance):
    """Fits some test examples; gives the seconds spent in Ridge and the objectives."""
    seconds, values = 0.0, []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for j in tests:
            phi, y = problem(x, losses, j)
            model = ridge(solver, penalty, tolerance)
            start = time.perf_counter()
            model.fit(phi, y)
            seconds += time.perf_counter() - start
            values.append(objective(phi, y, penalty, model.coef_))
    return seconds, values


def fit_all(x, losses, penalty, solver, tolerance, cores):
    """All test examples, shared out over the cores; seconds of the busiest core."""
    m = losses.shape[2]
    shares = [range(c, m, cores) for c in range(cores)]
    with joblib.Parallel(n_jobs=cores) as pool:
        pool(joblib.delayed(time.sleep)(0.1) for _ in range(cores))
        results = pool(
            joblib.delayed(fit_share)(x, losses, share, penalty, solver, tolerance)
            for share in shares
        )
    values = np.empty(m)
    for share, (_, part) in zip(shares, results):
        values[list(share)] = part
    return max(seconds for seconds, _ in results), values
