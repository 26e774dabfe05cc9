import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from fake_sweep import centre, write_run, write_sweep
from matplotlib.image import imread

from nfexp import figures, stats, table
from nfexp.figures.clouds import draw_gallery, draw_walk
from nfexp.figures.curves import draw_ablation, plain
from nfexp.figures.frames import exemplar, learning_curves

STORED = {"record.samples": 60, "record.grid": 16, "record.walk": 80}


def study(folder):
    """Two targets; flows, lr (0.1 all diverged) and activation axes, one flows x depth cell, one missing run."""
    runs = []
    for target in ("moons", "spiral2"):
        cells = [{}, {"flow.n_flows": 1}, {"flow.n_flows": 12}, {"train.lr": 0.1}, {"flow.activation": "tanh"},
                 {"flow.n_flows": 1, "flow.hidden_depth": 4}]  # fmt: skip
        for cell in cells:
            for seed in (0, 1, 2):
                status = "diverged" if "train.lr" in cell else "completed"
                if cell.get("flow.n_flows") == 12 and seed == 2:
                    status = "missing"
                kl = 0.6 if cell.get("flow.n_flows") == 1 else 0.05
                own = {"data.name": target, "seed": seed, "train.n_evals": 8} | cell
                runs.append((own | (STORED if not cell and seed == 0 else {}), {"kl": kl + 0.01 * seed}, status))
    return write_sweep(folder, runs, centres={t: centre(t, train__n_evals=8) for t in ("moons", "spiral2")})


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory):
    return study(tmp_path_factory.mktemp("figures") / "sweep")


def loaded(folder):
    runs = table.load_runs(folder)
    sweep = table.load_sweep([folder], runs)
    return runs, sweep, stats.ablations(runs, sweep.centres)


def counts(n, diverged=0, failed=0, missing=0):
    return {"n": n, "n_diverged": diverged, "n_failed": failed, "n_missing": missing}


def cell(value, kl, n=3, half=0.01, target="moons", column="train.lr", is_centre=False, **bad):
    ends = {"kl_low": kl - half, "kl_high": kl + half} if n > 1 else {"kl_low": np.nan, "kl_high": np.nan}
    return {"data.name": target, column: value, **counts(n, **bad), "kl_mean": kl if n else np.nan, **ends,
            "is_centre": is_centre}  # fmt: skip


def drawn(*cells, columns=("train.lr",)):
    with mpl.rc_context(fname=figures.STYLE):
        figure = draw_ablation(pd.DataFrame(cells), columns)
    figure.draw_without_rendering()
    return figure


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def labels(figure):
    return [t.get_text() for legend in figure.legends for t in legend.get_texts()]


def test_every_figure_of_a_sweep_is_there_and_not_blank(sweep_dir, tmp_path):
    paths = figures.draw_all(tmp_path, *loaded(sweep_dir))
    axes = ("flows", "lr", "activation")
    expected = {f"{kind}_{axis}" for kind in ("ablation", "convergence") for axis in axes}
    expected |= {"ablation_flows_x_depth", "convergence_centre"}
    expected |= {f"{kind}_{target}" for kind in ("gallery", "density", "walk") for target in ("moons", "spiral2")}
    assert set(paths) == expected
    for name, path in paths.items():
        image = imread(path)[..., :3]
        assert path.name == f"{name}.png" and min(image.shape[:2]) > 300
        assert image.std() > 0.03, name
        border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        assert border.min() > 0.99, f"{name} is cut off"
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert {p.suffix for p in (tmp_path / "figures").iterdir()} == {".png", ".pdf"}


def test_a_single_run_and_its_bytes(tmp_path):
    run = write_run(tmp_path / "run", centre(**{k.replace(".", "__"): v for k, v in STORED.items()}), {}, "completed")
    args = [str(run), "figures=gallery_*,density_moons,walk_moons,convergence_centre"]
    assert figures.main(args) == 0
    first = {p.name: p.read_bytes() for p in (run / "figures").iterdir()}
    assert len(first) == 8
    assert figures.main([str(run), "figures=gallery_moons"]) == 0
    assert all(
        (run / "figures" / f"gallery_moons.{k}").read_bytes() == first[f"gallery_moons.{k}"] for k in ("png", "pdf")
    )


def test_a_run_without_stored_samples_has_no_clouds(tmp_path):
    run = write_run(tmp_path / "run", centre(), {}, "completed", arrays=False)
    assert set(figures.plan(*loaded(run))) == {"convergence_centre"}


@pytest.mark.parametrize("n_snapshots", [1, 2, 5, 13, 30])
def test_gallery_takes_any_number_of_snapshots(n_snapshots):
    points = np.random.default_rng(0).standard_normal((n_snapshots + 3, 20, 2))
    arrays = {"base": points[0], "target": points[1], "best": points[2], "snapshots": points[3:],
              "snapshot_steps": np.arange(1, n_snapshots + 1)}  # fmt: skip
    figure = draw_gallery(arrays, "title")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["base", "target"] and titles[-1] == "best model"
    assert len(titles) == 3 + min(n_snapshots, 13) and titles[-2] == f"step {n_snapshots}"
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes[1:]}) == 1


def test_walk_colours_by_the_quadrant_of_the_base():
    base = np.array([[1.0, 1], [-1, 1], [-1, -1], [1, -1]])
    figure = draw_walk({"walk": np.stack([base, -base]), "walk_names": np.array(["base", "data"])}, "")
    first, last = (axes.collections[0].get_facecolors() for axes in figure.axes)
    assert len(np.unique(first, axis=0)) == 4
    np.testing.assert_array_equal(first, last)


def test_what_did_not_complete_is_written_and_crossed():
    figure = drawn(cell(0.001, 0.05, is_centre=True), cell(0.01, 0.06, n=1, diverged=2),
                   cell(0.1, 0, n=0, diverged=2, missing=1))  # fmt: skip
    assert texts(figure) == ["2/3 diverged", "2/3 diverged\n1/3 missing"]
    assert {"nothing completed", "one seed: no interval", "centre of the study"} <= set(labels(figure))


def test_an_axis_where_nothing_completed_is_still_drawn():
    figure = drawn(cell(0.1, 0, n=0, diverged=3), cell(0.2, 0, n=0, failed=3))
    assert texts(figure) == ["3/3 diverged", "3/3 failed"]
    assert labels(figure) == ["nothing completed"]


SCALES = {
    "near each other": ([0.03, 0.06], "linear"),
    "over a decade": ([0.03, 0.9], "log"),
    "slightly negative": ([-0.002, 0.02, 0.9], "symlog"),
    "all negative": ([-0.01, -0.002], "linear"),
    "zero": ([0.0, 0.5], "linear"),
    "one": ([0.05], "linear"),
    "equal": ([0.05, 0.05], "linear"),
}


@pytest.mark.parametrize("case", SCALES)
def test_scale_shows_every_mean(case):
    values, scale = SCALES[case]
    axes = drawn(*(cell(10.0**-i, v) for i, v in enumerate(values))).axes[0]
    low, high = axes.get_ylim()
    assert axes.get_yscale() == scale
    assert all(low < v < high for v in values)


def test_a_mean_off_the_scale_is_named_and_flattens_nothing():
    figure = drawn(cell(0.001, 0.05), cell(0.01, 0.06), cell(0.1, 7e29))
    assert texts(figure) == ["mean 7e+29"] and "mean off the scale" in labels(figure)
    assert figure.axes[0].get_ylim()[1] < 1


def test_the_first_and_the_last_number_are_labelled():
    flows = (1, 2, 3, 4, 5, 6, 8, 10, 12)
    figure = drawn(*(cell(n, 0.05, target=t, is_centre=n == 6) for t in "abcd" for n in flows))
    for axes in figure.axes:
        texts = [t.get_text() for t in axes.get_xticklabels()]
        assert (texts[0], texts[5], texts[-1]) == ("1", "6", "12") and "" in texts[1:-1]


X_AXES = {
    "wide numbers": ([1, 6, 12], "log", ["1", "6", "12"]),
    "narrow numbers": ([1, 2, 4], "linear", ["1", "2", "4"]),
    "words": (["relu", "tanh"], "linear", ["relu", "tanh"]),
    "numbers and a word": ([128, "full"], "linear", ["128", "full"]),
    "null": ([5.0, None], "linear", ["5", "none"]),
    "dollars": (["$x$", "a_b"], "linear", [r"\$x\$", "a_b"]),
}


@pytest.mark.parametrize("case", X_AXES)
def test_x_axis(case):
    values, scale, ticks = X_AXES[case]
    frame = pd.DataFrame([cell(0, 0.05) for _ in values])
    frame["train.lr"] = pd.Series(values, dtype=object)
    axes = drawn(*frame.to_dict("records")).axes[0]
    assert axes.get_xscale() == scale
    assert [t.get_text() for t in axes.get_xticklabels()] == ticks


def test_pair_axis_has_a_line_per_second_value():
    cells = [cell(f, 0.1 * f, column="flow.n_flows", is_centre=f == d == 2) | {"flow.hidden_depth": d}
             for f in (1, 2, 3) for d in (1, 2, 6, 9)]  # fmt: skip
    figure = drawn(*cells, columns=("flow.n_flows", "flow.hidden_depth"))
    assert labels(figure)[:5] == ["flow.hidden_depth:", "1", "2", "6", "9"]


def test_pair_axis_leaves_single_points_to_the_table():
    grid = {1: (1, 2, 3), 2: (1, 2, 3), 6: (2,)}
    cells = [cell(f, 0.1 * f, column="flow.n_flows", target=t) | {"flow.hidden_depth": d}
             for t in ("moons", "circles") for d, flows in grid.items() for f in flows]  # fmt: skip
    columns = ("flow.n_flows", "flow.hidden_depth")
    figure = drawn(*cells, columns=columns)
    assert labels(figure)[1:3] == ["1", "2"] and "6" not in labels(figure)
    assert "in the table only" in figure.legends[0].get_title().get_text()
    few = [c for c in cells if c["flow.hidden_depth"] != 1]  # one line would say less than ablation_flows
    figure = drawn(*few, columns=columns)
    assert labels(figure)[1:3] == ["2", "6"] and not figure.legends[0].get_title().get_text()


def test_learning_curves_average_completed_runs_only(sweep_dir):
    runs, sweep, _ = loaded(sweep_dir)
    curves, means = learning_curves(runs, table.load_histories(runs), sweep.centres, "train.lr")
    assert set(curves["value"]) == {0.005, 0.1} and set(means["value"]) == {0.005}
    last = curves[(curves["data.name"] == "moons") & (curves["value"] == 0.005) & (curves["step"] == 2000)]
    mean = means[(means["data.name"] == "moons") & (means["step"] == 2000)]
    assert mean["n"].item() == 3
    assert mean["excess_mean"].item() == pytest.approx(last["excess"].mean())
    assert np.isfinite(curves["excess"]).all()  # diverged runs borrow the true NLL of their target and noise


def test_exemplar_is_the_centre_with_the_lowest_seed_that_stored_samples(sweep_dir):
    runs, sweep, _ = loaded(sweep_dir)
    row = exemplar(runs, sweep.centres, "moons", "gallery")
    assert (row["seed"], row["differs"]) == (0, ())
    rest = runs[~((runs["seed"] == 0) & (runs["flow.n_flows"] == 6))]
    assert exemplar(rest, sweep.centres, "moons", "density") is None
    assert exemplar(runs[runs["status"] == "diverged"], sweep.centres, "moons", "gallery") is None


def test_arrays_of_the_wrong_shape_are_skipped(tmp_path):
    run = write_run(tmp_path / "run", centre(**{k.replace(".", "__"): v for k, v in STORED.items()}), {}, "completed")
    arrays = table.load_arrays(run) | {"snapshots": np.zeros((13, 60)), "grid_log_q": np.zeros((3, 3))}
    np.savez(run / "samples.npz", **arrays)
    assert set(figures.plan(*loaded(run))) == {"convergence_centre", "walk_moons"}


def test_writing_pdf_files_logs_nothing(caplog, tmp_path):
    caplog.set_level("INFO")
    figures.save(drawn(cell(0.001, 0.05)), tmp_path, "figure")
    assert not caplog.records


def test_plain():
    assert [plain(v) for v in (0.0005, 2000, 5e-5, "relu", None, np.nan, np.int64(3), 1e7)] == [
        "0.0005", "2000", "5e-5", "relu", "none", "none", "3", "1e7"]  # fmt: skip


BAD = {
    "nothing": ([], "got no directory"),
    "absent": (["{tmp}/absent"], "absent: expected a directory; got nothing there"),
    "unknown figure": (["{sweep}", "figures=gallery_mons"], "figures: expected one of ablation_flows"),
    "pattern that fits none": (["{sweep}", "figures=walks_*"], "got 'walks_*'"),
    "unknown option": (["{sweep}", "figure=walk_moons"], "expected figures=NAME,PATTERN_* or out=PATH; got figure="),
    "flag": (["{sweep}", "--fast"], "got the option --fast"),
    "out is a file": (
        ["{sweep}", "figures=walk_moons", "out={tmp}/file"],
        "expected a folder that can be written; got",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case, sweep_dir, tmp_path, capsys):
    (tmp_path / "file").touch()
    words, message = BAD[case]
    assert figures.main([w.format(tmp=tmp_path, sweep=sweep_dir) for w in words]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


def test_importing_leaves_torch_and_the_backend_alone():
    code = (
        "import sys, nfexp.report, nfexp.figures\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules), 'too much imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(figures.__file__).parents[2])
