import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtr
from scipy.stats import multivariate_normal

from nfexp.analysis.sequential import LEVELS, Rounds, level_at, nominal_levels, rounds_of, sequential_p
from tests.helpers.looks import ALPHA, PLANS, SHARES, false_rates, mean_tails, rounds_of_plan, share_tails

MANY = 4000  # seeds a round: t is then as good as normal
TIMES = np.arange(1, 6) / 5
PUBLISHED = {  # z of five equal looks at two-sided 5%, by what is spent at each (Lan and DeMets 1983; Reboussin 2000)
    "O'Brien-Fleming": (2 * ndtr(ndtri(0.025 / 2) / np.sqrt(TIMES)), (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
    "Pocock": (0.025 * np.log(1 + (math.e - 1) * TIMES), (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
}


@pytest.mark.parametrize("rule", PUBLISHED)
def test_published_boundaries(rule):
    spent, expected = PUBLISHED[rule]
    found = -ndtri(nominal_levels([MANY * k for k in range(1, 6)], spent[None])[0])
    assert found == pytest.approx(expected, abs=5e-4)


def test_boundaries_of_normal_increments_by_another_integral():
    counts = np.array([1000, 1500, 4000])
    spent = np.array([0.004, 0.012, 0.025])
    found = -ndtri(nominal_levels(counts, spent[None])[0])
    correlation = np.sqrt(np.minimum.outer(counts, counts) / np.maximum.outer(counts, counts))
    expected = [-ndtri(spent[0])]
    for k in (1, 2):
        law = multivariate_normal(np.zeros(k + 1), correlation[: k + 1, : k + 1], allow_singular=True)

        def excess(z, law=law, total=spent[k]):
            return 1 - law.cdf([*expected, z]) - total

        expected.append(brentq(excess, 1, 5, xtol=1e-5))
    assert found == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("counts", [(2, 4, 6), (3, 6, 9, 10), (5, 10, 15, 20)], ids=str)
def test_levels_are_exact_for_t_tests_of_few_seeds(counts):
    times = np.array(counts) / counts[-1]
    level = 0.1  # rejections that are not rare, so that a simulation tells their number
    boundary = nominal_levels(counts, level * times[None])[0]
    n_tables = 200_000
    x = np.random.default_rng(0).standard_normal((n_tables, counts[-1]))
    rejected = np.zeros(n_tables, dtype=bool)
    for k, n in enumerate(counts):
        own = x[:, :n]
        rejected |= stdtr(n - 1, -own.mean(1) / own.std(1, ddof=1) * math.sqrt(n)) <= boundary[k]
        spent = level * times[k]
        assert abs(rejected.mean() - spent) < 4 * math.sqrt(spent / n_tables)


def test_a_single_look_changes_no_p_value():
    for p in (0.0, 1e-9, 0.025, 0.5, 1.0):
        assert sequential_p(p, 1, (10,)) == p and level_at(p, 1, (10,)) == p


@pytest.mark.parametrize("counts", [(2, 4, 6), (3, 6, 8), (10, 20, 30, 40, 50)], ids=str)
def test_sequential_p_and_levels_are_inverse_and_ascend(counts):
    for look in range(1, len(counts) + 1):
        alphas = np.geomspace(1e-7, 0.9, 50)
        levels = [level_at(alpha, look, counts) for alpha in alphas]
        assert (np.diff(levels) > 0).all() and (np.array(levels) < alphas).all()
        back = [sequential_p(level, look, counts) for level in levels]
        assert back == pytest.approx(alphas, rel=1e-6)
    assert sequential_p(0.0, 1, counts) == 0 and sequential_p(1.0, 1, counts) == 1
    assert math.isnan(sequential_p(math.nan, 1, counts))


def test_interpolation_is_close_to_the_integral():
    counts = (5, 10, 15, 20)
    alpha = 0.025 / 7
    assert min(abs(alpha - LEVELS)) > 1e-5
    exact = nominal_levels(counts, alpha * np.array(counts)[None] / 20)[0]
    assert [level_at(alpha, k, counts) for k in (1, 2, 3, 4)] == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("plan", PLANS)
def test_false_verdicts_under_the_stopping_rule(plan):
    counts = rounds_of_plan(plan).counts
    levels = [level_at(ALPHA, look, counts) for look in range(1, len(counts) + 1)]
    n_studies = 20_000
    spread = 4 * math.sqrt(ALPHA / n_studies)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n_studies, counts[-1]))
    tails = [mean_tails(x[:, :n]) for n in counts]
    for rate in false_rates(tails, levels):
        assert abs(rate - ALPHA) < spread
    for rate in false_rates(tails, [ALPHA] * len(counts)):
        assert rate > 2 * ALPHA  # what the rule is for
    # "Alike within 1" where the difference is exactly 1: both tests at once
    both = [
        (np.maximum(below, mean_tails(x[:, :n] + 2)[0]), above) for n, (above, below) in zip(counts, tails, strict=True)
    ]
    assert max(false_rates(both, levels)) < ALPHA + spread
    for share in SHARES:
        hits = rng.random((n_studies, counts[-1])) < share
        assert max(false_rates([share_tails(hits[:, :n], share) for n in counts], levels)) < ALPHA + spread


def test_rounds_as_they_are_written():
    for rounds in (Rounds(first=(0, 1, 2), max_seeds=20), Rounds(first=(3, 7), max_seeds=2, margin=0.05)):
        assert rounds_of(rounds.written()) == rounds
    assert Rounds(first=(3, 7), max_seeds=7).seeds(3) == (3, 7, 8, 9, 10, 11)
    assert Rounds(first=(3, 7), max_seeds=7).seeds(4) == (3, 7, 8, 9, 10, 11, 12)


GOOD = {"first": [0, 1], "max_seeds": 6, "spending": "linear", "margin": None}
BAD = {
    "no seeds": ({"first": []}, "rounds.first"),
    "one seed": ({"first": [0]}, "rounds.first"),
    "seeds twice": ({"first": [0, 0]}, "rounds.first"),
    "a text": ({"first": "01"}, "rounds.first"),
    "a truth": ({"first": [False, True]}, "rounds.first"),
    "too few seeds": ({"max_seeds": 1}, "rounds.max_seeds"),
    "too many rounds": ({"max_seeds": 10**9}, "rounds.max_seeds"),
    "another rule": ({"spending": "none"}, "rounds.spending"),
    "no margin": ({"margin": 0}, "rounds.margin"),
    "a negative margin": ({"margin": -0.1}, "rounds.margin"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_rule_is_refused(case):
    change, key = BAD[case]
    with pytest.raises(ValueError, match=key):
        rounds_of(GOOD | change)
