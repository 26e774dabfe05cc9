"""Baselines: densities that integrate to one, closed forms, the runs' own draws, a table that is read with distrust."""

import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from nfexp import baseline_fits as fits
from nfexp import baselines, report
from nfexp.analysis import statistics as stats
from nfexp.analysis import table
from nfexp.analysis.table.baselines import COLUMNS, KERNELS, MODELS, WITH_VALIDATION, data_key, load_baselines
from nfexp.data import Dataset, load, load_data, make_target
from nfexp.report.words import interval
from nfexp.spec import Data, from_mapping
from nfexp.streams import stream
from tests.helpers.fake_sweep import centre, write_sweep

SMALL = {"data.n_samples": 60, "data.n_val": 30, "data.n_test": 200}


def data(name="moons", noise=0.1, n_samples=200, n_test=500, text=None):
    given = {"name": name, "noise": noise, "n_samples": n_samples, "n_test": n_test, "text": text, "n_val": 2}
    return from_mapping(given, Data, "data.")


class Gaussian:
    """A target whose law the baselines can hold exactly: N(m, A Aᵀ), in units far from one."""

    mean = torch.tensor([300.0, -0.02], dtype=torch.float64)
    factor = torch.tensor([[40.0, 0.0], [0.003, 0.001]], dtype=torch.float64)

    def sample(self, n, generator):
        return self.mean + torch.randn(n, 2, generator=generator, dtype=torch.float64) @ self.factor.T

    def log_prob(self, x):
        return torch.distributions.MultivariateNormal(self.mean, scale_tril=self.factor).log_prob(x)


@pytest.fixture
def gaussian(monkeypatch):
    law = Gaussian()

    def load(data, seed):
        splits = {"train": data.n_samples, "val": data.n_val, "test": data.n_test}
        points = {split: law.sample(n, stream(seed, split)) for split, n in splits.items()}
        return Dataset(event_shape=(2,), **points, density=law, true_log_prob=lambda: law.log_prob(points["test"]))

    monkeypatch.setattr(fits, "load_data", load)


def test_all_find_a_gaussian_in_any_units(gaussian):
    rows = {r["model"]: r for r in fits.fit_draws(data(n_samples=500, n_test=1000), 0, list(MODELS))}
    x = Gaussian().sample(1000, stream(0, "test"))
    train = Gaussian().sample(500, stream(0, "train"))
    shift, cov = train.mean(0), train.T.cov(correction=0)
    best = torch.distributions.MultivariateNormal(shift, cov).log_prob(x)  # the closed form: the sample's own moments
    assert rows["gaussian"]["test_nll"] == pytest.approx(-best.mean().item(), abs=1e-4)
    assert abs(rows["gaussian"]["kl"]) < 5 / 500  # five parameters cost 5 / 2n on average
    assert rows["mixture"]["n_components"] == 1 and rows["mixture"]["kl"] == rows["gaussian"]["kl"]
    assert rows["gaussian"]["n_parameters"] == 5 and 0.2 < rows["kde"]["bandwidth"] / 500 ** (-1 / 6) < 2
    assert 0 < rows["kde"]["kl"] < 0.1
    for row in rows.values():
        assert row["kl"] == pytest.approx(row["test_nll"] - row["true_nll"], abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_densities_integrate_to_one(model):
    """The KL of fit_draws rests on log q: what is exponentiated here is what it averages there."""
    target = make_target("moons", noise=0.1, text=None)
    low_x, high_x, low_y, high_y = target.extent()
    x, y = np.linspace(low_x - 1, high_x + 1, 300), np.linspace(low_y - 1, high_y + 1, 300)
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    train = target.sample(300, stream(0, "train")).numpy()
    total = np.exp(fits.fit(train, model, 0).log_prob(grid)).sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert total == pytest.approx(1, abs=1e-3 if model != "gaussian" else 1e-2)


@pytest.mark.parametrize("model", MODELS)
def test_given_a_context_densities_integrate_to_one(model):
    rng = np.random.default_rng(0)
    c = rng.normal(size=(200, 2)) * [1, 50]
    x = np.sin(c[:, :1]) * 30 + rng.normal(size=(200, 1)) * 9
    fitted = fits.fit(np.concatenate([x, c], 1), model, 0)
    line = np.linspace(-200, 200, 2000)[:, None]
    for one in ([0.5, 20.0], [-1.0, -50.0]):
        density = np.exp(fitted.log_prob_given(line, np.tile(one, (len(line), 1))))
        assert density.sum() * (line[1, 0] - line[0, 0]) == pytest.approx(1, abs=2e-3)


def test_a_gaussian_given_a_context_is_a_linear_regression():
    rng = np.random.default_rng(1)
    c = rng.normal(size=(500, 2)) * [1, 50] + 4
    x = c @ np.array([[1.0, -2.0], [0.1, 0.0]]) + rng.normal(size=(500, 2)) * [1, 0.2]
    found = fits.fit(np.concatenate([x, c], 1), "gaussian", 0).log_prob_given(x, c)
    design = np.concatenate([np.ones((500, 1)), c], 1)
    residuals = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    exact = multivariate_normal(np.zeros(2), residuals.T @ residuals / 500).logpdf(residuals)
    assert np.abs(found - exact).max() < 1e-2  # scikit-learn adds 1e-6 to variances
    assert found.mean() == pytest.approx(exact.mean(), abs=1e-4)


def test_a_kernel_density_is_the_mean_of_its_kernels():
    rng = np.random.default_rng(0)
    x, points = rng.normal(size=(400, 2)) * [1, 1e3], rng.normal(size=(50, 2)) * [3, 3e3]
    fitted = fits.fit(x, "kde", 0)
    sd = fitted.facts["bandwidth"] * x.std(0)
    terms = -0.5 * (((points[:, None] - x) / sd) ** 2).sum(-1) - math.log(2 * math.pi * sd.prod() * len(x))
    assert np.abs(fitted.log_prob(points) - np.logaddexp.reduce(terms, axis=1)).max() <= 2 * fits.RTOL


def test_the_bandwidth_is_the_one_of_the_highest_held_out_likelihood():
    x = np.random.default_rng(1).normal(size=(100, 2))
    folds = np.array_split(np.arange(100), 5)
    square = ((x[:, None] - x) ** 2).sum(-1)

    def held_out(h):
        held = [np.logaddexp.reduce(-np.delete(square[f], f, axis=1) / (2 * h**2), axis=1) for f in folds]
        return np.concatenate(held).mean() - math.log(2 * math.pi * h**2 * 80)

    coarse = max(100 ** (-1 / 6) * fits.COARSE, key=held_out)
    assert fits.fit_kernel(x).bandwidth_ == pytest.approx(max(coarse * fits.FINE, key=held_out))


def test_the_lowest_bic_of_all_is_taken_not_the_first_minimum():
    x = make_target("circles", noise=0.05, text=None).sample(4000, stream(0, "train")).numpy()
    bic = {k: GaussianMixture(k, n_init=2, max_iter=300, random_state=0).fit(x).bic(x) for k in (6, 8, 12, 16, 32)}
    assert bic[32] < bic[8] < min(bic[6], bic[12], bic[16])
    assert fits.fit_mixture(x, list(bic)).n_components == 32


def test_a_mixture_of_as_many_gaussians_as_there_are():
    (row,) = fits.fit_draws(data("gaussians8", noise=0.3, n_samples=2000, n_test=4000), 1, ["mixture"])
    assert row["n_components"] == 8 and row["n_parameters"] == 47 and abs(row["kl"]) < 0.04


@pytest.mark.parametrize("name", ["moons", "text"])
def test_the_draws_are_those_of_the_runs(make_spec, monkeypatch, name):
    spec = make_spec(data__name=name, data__text="ab" if name == "text" else None, seed=7)
    fit, seen = fits.fit, []
    monkeypatch.setattr(fits, "fit", lambda x, *how: seen.append(x) or fit(x, *how))
    (row,) = fits.fit_draws(spec.data, 7, ["gaussian"])
    dataset = load(spec)
    test, log_p = dataset.test, dataset.true_log_prob()
    assert np.array_equal(seen[0], dataset.train.numpy())
    kl = log_p - torch.from_numpy(fit(seen[0], "gaussian", 7).log_prob(test.numpy()))
    assert row["true_nll"] == pytest.approx(-log_p.mean().item(), abs=1e-12)
    assert row["kl"] == pytest.approx(kl.mean().item(), abs=1e-12)
    assert row["kl_se"] == pytest.approx(kl.std().item() / math.sqrt(len(kl)), abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_fewest_points_still_give_numbers(n):
    for row in fits.fit_draws(data(n_samples=n, n_test=50), 0, list(MODELS)):
        n_val = 2 if row["model"] in WITH_VALIDATION else 0
        assert math.isfinite(row["kl"]) and row["n_used"] == n + n_val


def test_long_draws_are_cut_and_say_so(monkeypatch):
    monkeypatch.setattr(fits, "USED", 50)
    used = {r["model"]: r["n_used"] for r in fits.fit_draws(data(n_samples=300, n_test=50), 0, list(MODELS))}
    assert used == {"gaussian": 300} | dict.fromkeys(("mixture", "mixture_val", "kde", "kde_val"), 50)


def test_validation_points_are_fitted_to_where_a_model_says_so(monkeypatch):
    fit, seen = fits.fit, {}
    monkeypatch.setattr(fits, "fit", lambda x, model, seed: seen.update({model: x}) or fit(x, model, seed))
    asked = replace(data(), n_val=70)
    fits.fit_draws(asked, 3, ["kde", "kde_val"])
    dataset = load_data(asked, 3)
    assert np.array_equal(seen["kde"], dataset.train.numpy())
    assert np.array_equal(seen["kde_val"], np.concatenate([dataset.train.numpy(), dataset.val.numpy()]))


def small_sweep(folder, seeds=2):
    """Runs of three targets' draws, some of which share them; one text that a spreadsheet would run."""
    runs = [(SMALL | {"seed": seed, "flow.n_flows": n}, {}, "completed") for seed in range(seeds) for n in (1, 6)]
    runs += [(SMALL | {"data.noise": 0.2}, {}, "diverged"), (SMALL | {"data.n_samples": 40}, {}, "missing")]
    runs += [(SMALL | {"data.name": "text", "data.text": "=a, 'b'"}, {}, "completed")]
    return write_sweep(folder, runs)


def test_each_draw_is_fitted_once_and_the_table_says_what_was_fitted(tmp_path, capsys):
    folder = small_sweep(tmp_path / "sweep")
    assert baselines.main([str(folder), "workers=1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{folder}: 5 draws to fit, 1 at a time" and out[-1] == str(folder / "baselines.csv")
    assert [line.split()[0] for line in out[1:-1]] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    found = load_baselines(folder)
    assert len(found) == 5 * len(MODELS) and tuple(found) == COLUMNS
    assert found[list(COLUMNS)].drop(columns=["data.text", "n_components", "bandwidth"]).notna().all(axis=None)
    assert (found["bandwidth"].notna() == found["model"].isin(KERNELS)).all()
    assert (found["n_components"].isna() == found["model"].isin(KERNELS)).all()
    small = found[(found["data.n_samples"] == 60) & found["model"].isin(WITH_VALIDATION)]
    assert set(small["n_used"]) == {60 + 30}  # and the validation points of the runs
    assert "'=a, 'b'" in (folder / "baselines.csv").read_text() and "=a, 'b'" in set(found["data.text"])
    (row,) = fits.fit_draws(data(noise=0.2, n_samples=60, n_test=200), 0, ["mixture"])
    at = found[(found["data.noise"] == 0.2) & (found["model"] == "mixture")].iloc[0]
    assert [at[k] for k in ("kl", "test_nll", "true_nll", "kl_se")] == pytest.approx(
        [row[k] for k in ("kl", "test_nll", "true_nll", "kl_se")], rel=1e-12
    )


@pytest.fixture
def here(monkeypatch):
    """Fit in this process: one that is started takes seconds to import what it needs."""

    def pool(n_workers, mp_context, initializer):
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(baselines, "ProcessPoolExecutor", pool)


def test_given_again_only_what_is_missing_is_fitted(here, tmp_path, capsys):
    folder = small_sweep(tmp_path / "sweep")
    assert baselines.main([str(folder)]) == 0
    path = folder / "baselines.csv"
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([head, *lines[:4], *lines[5:]]))
    capsys.readouterr()
    assert baselines.main([str(folder)]) == 0
    assert capsys.readouterr().out.count("KL ") == 1
    again = path.read_text().splitlines(keepends=True)
    assert again[:5] + again[6:] == [head, *lines[:4], *lines[5:]]
    assert again[5].split(",")[:-1] == lines[4].split(",")[:-1]  # but for the seconds


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
def test_ctrl_c_keeps_what_is_finished(tmp_path):
    folder = small_sweep(tmp_path / "sweep", seeds=400)
    code = "import sys; from nfexp.baselines import main; sys.exit(main())"
    paths = os.pathsep.join(filter(os.path.isabs, [str(Path(baselines.__file__).parents[1]), *sys.path]))
    command = [sys.executable, "-c", code, str(folder), "workers=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, start_new_session=True,
                               env=os.environ | {"PYTHONPATH": paths})  # fmt: skip
    try:
        assert "403 draws to fit, 1 at a time" in process.stdout.readline()  # before anything is fitted
        first = process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and err == "nfexp-baselines: interrupted; what is finished is kept\n"
    assert "KL gaussian" in first
    told, kept = 1 + out.count("KL "), len(load_baselines(folder)) / len(MODELS)
    assert kept in (told, told + 1) and kept < 403  # a fit is kept before it is told
    assert [p.name for p in folder.glob(".baselines*")] == []


def test_what_cannot_be_drawn_is_one_line_and_the_rest_is_fitted(here, tmp_path, capsys):
    cells = ({}, {"data.noise": 1e-9}, {"data.n_samples": 1}, {"data.name": "unheard"}, {"data.n_test": 2**60})
    folder = write_sweep(tmp_path / "sweep", [(SMALL | cell, {}, "completed") for cell in cells])
    assert baselines.main([str(folder)]) == 1
    err = capsys.readouterr().err.splitlines()
    for words in ("got a noise so small", "data.n_samples: expected an integer >= 2", "data.name: expected one of",
                  "data.n_test: expected an integer"):  # fmt: skip
        assert sum(words in line for line in err) == 1
    assert len(err) == 4 and len(load_baselines(folder)) == len(MODELS)


BAD_COMMANDS = {
    "nothing": (
        "",
        "nfexp-baselines: expected nfexp-baselines DIR… [workers=N] [target=",
    ),
    "absent": ("absent", "absent: expected a directory; got nothing there"),
    "no run": ("{empty}", "expected a finished run (a directory with result.json); got none"),
    "no worker": ("{sweep} workers=0", "workers: expected a whole number from 1 to 1000; got '0'"),
    "a target that is none": ("{sweep} target=ring", "target: expected FILE.py:NAME or MODULE:NAME; got 'ring'"),
    "a target that is not there": ("{sweep} target=ring.py:R", "data.target: expected a Python file in "),
    "unknown option": ("{sweep} out=x", "nfexp-baselines: expected workers=N or target=FILE.py:NAME; got out=x"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands_are_one_line(case, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    folder = write_sweep(tmp_path / "sweep", [(SMALL, {}, "completed")])
    words, message = BAD_COMMANDS[case]
    assert baselines.main(words.format(empty=tmp_path / "empty", sweep=folder).split()) == 1
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out
    assert not (folder / "baselines.csv").exists()


LINE = dict.fromkeys(COLUMNS, "") | {
    "data.name": "moons", "data.n_samples": "2000", "data.noise": "0.05", "data.n_test": "10000", "seed": "0",
    "model": "mixture", "n_used": "2000", "n_components": "12", "n_parameters": "71", "test_nll": "0.6",
    "true_nll": "0.4", "kl": "0.2", "kl_se": "0.01", "seconds": "1.5",
}  # fmt: skip
BAD_TABLES = {
    "empty": (b"", "expected the heading data.name,"),
    "no table": (b"\x00\xff\xfe", "expected a readable table"),
    "another heading": (b"a,b\n1,2\n", "expected the heading data.name,"),
    "a cell too few": ("moons,1", "line 2 as nfexp-baselines writes it"),
    "an open quote": ('"moons', "expected a readable table"),
    "unknown target": (LINE | {"data.name": "<b>"}, "data.name: expected letters, digits, .*; got '<b>'"),
    "unknown model": (LINE | {"model": "flow\x1b[31m"}, r"model: expected one of gaussian, .*"),
    "no number": (LINE | {"kl": "low"}, "could not convert"),
    "infinite": (LINE | {"kl": "inf"}, "kl: expected a finite number; got inf"),
    "huge": (LINE | {"kl": "1e300"}, "kl: expected a finite number"),
    "nan": (LINE | {"kl": "nan"}, "kl: expected a finite number"),
    "no noise": (LINE | {"data.noise": "0"}, "data.noise: expected a number > 0"),
    "half a point": (LINE | {"data.n_samples": "2.5"}, "invalid literal"),
    "negative seed": (LINE | {"seed": "-1"}, "seed: expected a whole number >= 0"),
    "no component": (LINE | {"n_components": "0"}, "n_components: expected a whole number >= 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_is_none_is_named_and_not_shown(case, tmp_path, capsys):
    content, message = BAD_TABLES[case]
    if isinstance(content, dict):
        content = ",".join(content.values())
    raw = content if isinstance(content, bytes) else f"{','.join(COLUMNS)}\n{content}\n".encode()
    (tmp_path / "baselines.csv").write_bytes(raw)
    with pytest.raises(table.ReportError, match=message) as caught:
        load_baselines(tmp_path)
    assert str(caught.value).isprintable() and str(caught.value).startswith(str(tmp_path / "baselines.csv"))
    skipped = []
    assert load_baselines(tmp_path, skipped=skipped).empty and len(skipped) == 1
    write_sweep(tmp_path, [(SMALL, {}, "completed")])
    assert baselines.main([str(tmp_path)]) == 1
    assert (tmp_path / "baselines.csv").read_bytes() == raw, "what is there is not overwritten"


def test_links_and_large_tables_are_refused(tmp_path):
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "baselines.csv").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(table.ReportError, match="a symbolic link"):
        load_baselines(tmp_path)


def write_baselines(folder, rows):
    frame = pd.DataFrame([LINE | {k: str(v) for k, v in row.items()} for row in rows], columns=list(COLUMNS))
    frame.to_csv(folder / "baselines.csv", index=False)


@pytest.fixture
def studied(tmp_path, monkeypatch):
    """Flows and samples of moons, with baselines whose KL says where they belong: 1 + n_samples / 10,000 + seed."""
    monkeypatch.setattr(report.figures, "draw_all", lambda *args, **keywords: {})
    runs = []
    for seed in (0, 1):
        runs += [({"seed": seed} | cell, {"kl": 0.5 + 0.01 * seed}, "completed")
                 for cell in ({}, {"flow.n_flows": 1}, {"data.n_samples": 100},
                              {"flow.n_flows": 1, "data.n_samples": 100})]  # fmt: skip
    folder = write_sweep(tmp_path / "sweep", runs)
    write_baselines(folder, [
        {"data.n_samples": n, "seed": seed, "model": model, "kl": 1 + n / 10_000 + seed + 3 * (model == "kde"),
         "bandwidth": 0.07 if model == "kde" else "", "n_components": "" if model == "kde" else 12 + seed}
        for n in (100, 2000, 4000) for seed in (0, 1) for model in ("mixture", "kde")
    ])  # fmt: skip
    return folder


def test_the_report_shows_baselines_beside_the_flow(studied):
    page = report.build(studied).read_text(encoding="utf-8")
    rows = [line for line in (studied / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = {tuple(c.strip() for c in row.split("|")[1:3]): [c.strip() for c in row.split("|")[3:]] for row in rows}
    low, high = stats.mean_interval([1.2, 2.2])[1:]
    mean = interval(1.7, low, high)
    over = "+" + interval(*stats.mean_interval([0.7, 1.69]))
    assert cells["moons", "flow"][1] == ""
    assert cells["", "Gaussian mixture (12–13 components)"][:2] == [mean, over]
    assert cells["", "kernel density (bandwidth 0.07 sd)"][0].startswith("4.700")
    assert cells["Gaussian mixture", mean], "below the axis of flows, at the centre's sample count"
    assert cells["100, Gaussian mixture", interval(*stats.mean_interval([1.01, 2.01]))]
    assert cells["Gaussian mixture", "100"][0] == interval(*stats.mean_interval([1.01, 2.01]))
    assert "| 4000" not in "\n".join(rows), "no run has these draws"
    assert page.count('class="baseline"') == 2 + 2 * 2 + 2 * 2 and "nfexp-baselines" not in page
    tex = (studied / "tables" / "baselines.tex").read_text()
    assert "kernel density (bandwidth 0.07 sd) & 4.700" in tex
    assert "100, Gaussian mixture & 1.510" in (studied / "tables" / "samples.tex").read_text()


def test_without_baselines_the_report_says_how_to_get_them(studied):
    (studied / "baselines.csv").unlink()
    page = report.build(studied).read_text(encoding="utf-8")
    assert f"<code>nfexp-baselines {studied}</code>" in page and 'class="baseline"' not in page
    assert f"nfexp-baselines {studied}" in (studied / "report.md").read_text(encoding="utf-8")
    assert not (studied / "tables" / "baselines.tex").exists()


def test_baselines_that_cannot_be_read_are_listed_and_the_report_stands(studied):
    (studied / "baselines.csv").write_text("<script>")
    page = report.build(studied).read_text(encoding="utf-8")
    assert "Not read (1)" in page and "baselines.csv: expected the heading" in page and "<script" not in page


def test_reading_baselines_needs_no_torch_nor_scikit_learn():
    code = "import sys, nfexp.report; assert not {'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(baselines.__file__).parents[1])


def test_the_key_of_draws_is_the_same_from_runs_centres_and_tables(studied):
    found = table.collect(studied)
    run, fits = found.runs.iloc[0], load_baselines(studied)
    at = fits[(fits["data.n_samples"] == 2000) & (fits["seed"] == 0)].iloc[0]
    assert data_key(run) == data_key(found.sweep.centres["moons"]) == data_key(at) == data_key(centre())
