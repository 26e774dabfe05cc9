import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.image import imread
from PIL import Image

from nfexp.analysis import statistics as stats
from nfexp.analysis import table
from nfexp.report import figures
from nfexp.report.contents import CAPTIONS, HEADINGS
from nfexp.report.exemplar import SHAPES, exemplar
from nfexp.report.figures import catalogue
from nfexp.report.figures.ablation import draw_ablation
from nfexp.report.figures.animations import animate_training, animate_walk
from nfexp.report.figures.clouds import draw_gallery, draw_walk
from nfexp.report.figures.density import draw_density
from nfexp.report.figures.summary import draw_summary
from nfexp.report.figures.writing import STYLE, save
from nfexp.report.planar import QUADRANTS
from nfexp.report.selection import centre_scores, learning_curves
from nfexp.report.words import plain
from tests.helpers.fake_sweep import centre, write_run, write_sweep

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


def test_a_walk_of_an_ensemble_says_whose_it_is():
    row = {"data.name": "moons", "flow.n_flows": 6, "job": "0000", "seed": 0, "differs": [], "kl": 0.06}
    of_ensemble = "moons · 6 flows · run 0000, seed 0 (centre) · 4 members"
    assert catalogue._title(row | {"flow.members": 4}, "walk") == f"{of_ensemble}, the first alone"
    assert catalogue._title(row | {"flow.members": 4}, "density") == f"{of_ensemble} · KL 0.060 nats"
    for members in ({}, {"flow.members": 1}, {"flow.members": None}, {"flow.members": float("nan")}):
        assert catalogue._title(row | members, "walk").endswith("seed 0 (centre) · KL 0.060 nats")


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
    with mpl.rc_context(fname=STYLE):
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
    expected |= {"ablation_flows_x_depth", "convergence_centre", "summary_centre"}
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


def test_every_figure_of_one_run_has_what_the_page_needs():
    for kind, pictures in catalogue.OF_ONE_RUN.items():
        assert kind in SHAPES, f"what {kind} needs is not in nfexp/report/exemplar.py"
        for name in pictures:
            on_page = name in HEADINGS and name in CAPTIONS
            assert on_page or name.startswith("gif_"), f"{name} has no heading or caption in nfexp/report/contents.py"


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


def walk_arrays(n_layers=3, n_points=50):
    """A walk that turns base points and a grid of 41 x 41 nodes by 20 degrees a layer."""
    turns = np.deg2rad(20 * np.arange(n_layers + 1))
    turn = np.array([[np.cos(turns), np.sin(turns)], [-np.sin(turns), np.cos(turns)]]).transpose(2, 0, 1)
    ticks = np.linspace(-2.5, 2.5, 41)
    names = ["base", *(f"coupling {i}" for i in range(n_layers - 1, 0, -1)), "data"]
    return {"walk": np.random.default_rng(0).standard_normal((n_points, 2)) @ turn, "walk_names": np.array(names),
            "walk_grid": np.stack(np.meshgrid(ticks, ticks), -1) @ turn[:, None]}  # fmt: skip


def test_walk_carries_a_grid_along_in_the_colours_of_its_quadrants():
    arrays = walk_arrays()
    figure = draw_walk(arrays, "")
    for axes, nodes in zip(figure.axes, arrays["walk_grid"], strict=True):
        points, lines = axes.collections
        assert lines.zorder < points.zorder
        pieces = lines.get_segments()
        assert len(pieces) == 2 * 21 * 2  # each of the 21 lines a way is cut once, where it crosses an axis
        drawn, known = (set(map(tuple, np.round(p, 9).reshape(-1, 2))) for p in (np.concatenate(pieces), nodes))
        assert drawn <= known and len(drawn) == 41 * 41 - 20 * 20
    first = figure.axes[0].collections[1]
    for piece, colour in zip(first.get_segments(), first.get_colors(), strict=True):
        x, y = piece.mean(0)
        quadrant = (0 if y > 0 else 3) if x > 0 else (1 if y > 0 else 2)
        assert tuple(colour[:3]) == to_rgba(QUADRANTS[quadrant])[:3]
    last = figure.axes[-1].collections[1]
    np.testing.assert_array_equal(first.get_colors(), last.get_colors())


ODD_GRIDS = {"absent": None, "flat": np.zeros((4, 1681, 2)), "of other layers": np.zeros((3, 41, 41, 2)),
             "words": np.full((4, 41, 41, 2), "x"), "empty": np.zeros((4, 0, 41, 2))}  # fmt: skip


@pytest.mark.parametrize("case", ODD_GRIDS)
def test_walk_without_a_usable_grid_draws_points_alone(case, tmp_path):
    run = write_run(tmp_path / "run", centre(), {}, "completed", arrays=False)
    arrays = walk_arrays() | {"walk_grid": ODD_GRIDS[case]}
    np.savez(run / "samples.npz", **{k: v for k, v in arrays.items() if v is not None})
    runs, sweep, _ = loaded(run)
    row = exemplar(runs, sweep.centres, "moons", "walk")
    assert set(row["arrays"]) == {"walk", "walk_names"}
    assert not any(axes.collections[1].get_segments() for axes in draw_walk(row["arrays"], "").axes)


def test_density_map_is_the_log_ratio_where_p_is_not_negligible():
    rng = np.random.default_rng(0)
    log_p, log_q = (rng.uniform(-20, 1, (7, 5)) for _ in "pq")
    arrays = {"grid_log_q": log_q, "grid_log_p": log_p, "grid_extent": np.array([-1.0, 1, -1, 1])}
    shown = draw_density(arrays, "").axes[2].images[0].get_array()
    inside = np.exp(log_p) >= np.exp(log_p).max() / 1000
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~inside)
    np.testing.assert_allclose(shown[inside], (log_q - log_p)[inside])


def test_animation_of_a_walk_stops_at_every_layer_and_goes_straight_between():
    arrays = walk_arrays()
    stops, way = [], []
    for figure, time in animate_walk(arrays, "title"):
        axes = figure.axes[0]
        points, lines = axes.collections
        if time < 100:
            way.append(np.array(points.get_offsets()))
            continue
        layer = len(stops)
        stops.append(axes.get_title())
        np.testing.assert_allclose(points.get_offsets(), arrays["walk"][layer], atol=1e-12)
        np.testing.assert_allclose(lines.get_segments()[0], arrays["walk_grid"][layer, 0, :21], atol=1e-12)
        if layer and way:
            before, after = arrays["walk"][layer - 1 : layer + 1]
            shares = [(p - before) / (after - before) for p in way]
            assert all(np.ptp(s) < 1e-6 and 0 < s.mean() < 1 for s in shares)
            assert [s.mean() for s in shares] == sorted(s.mean() for s in shares)
            way.clear()
    assert stops == arrays["walk_names"].tolist()


def test_animation_of_training_shows_every_recorded_step_then_the_best_model():
    points = np.random.default_rng(0).standard_normal((8, 20, 2))
    arrays = {"base": points[0], "target": points[1], "best": points[2], "snapshots": points[3:],
              "snapshot_steps": np.array([1, 5, 20, 80, 200])}  # fmt: skip
    panels = (figure.axes[1] for figure, _ in animate_training(arrays, ""))
    seen = [(axes.get_title(), np.array(axes.collections[0].get_offsets())) for axes in panels]
    assert [title for title, _ in seen] == ["step 1", "step 5", "step 20", "step 80", "step 200", "best model"]
    np.testing.assert_array_equal([p for _, p in seen], [*points[3:], points[2]])


def test_animations_are_drawn_when_asked_for(tmp_path, capsys):
    run = write_run(tmp_path / "run", centre(**{k.replace(".", "__"): v for k, v in STORED.items()}), {}, "completed")
    np.savez(run / "samples.npz", **(table.load_arrays(run) | walk_arrays()))
    assert figures.main([str(run), "figures=[gif_*, walk_moons]"]) == 0
    folder = run / "figures"
    names = {"gif_training_moons.gif", "gif_walk_moons.gif", "walk_moons.png", "walk_moons.pdf"}
    assert {p.name for p in folder.iterdir()} == names
    assert {Path(line).name for line in capsys.readouterr().out.split()} == names - {"walk_moons.pdf"}
    for name in ("gif_training_moons.gif", "gif_walk_moons.gif"):
        with Image.open(folder / name) as animation:
            assert animation.n_frames > 10 and animation.info["loop"] == 0
            assert 480 <= animation.width <= 600
            first = np.asarray(animation.convert("RGB"), dtype=float)
            animation.seek(animation.n_frames - 1)
            last = np.asarray(animation.convert("RGB"), dtype=float)
        assert (first[:2] == 255).all() and first.std() > 10 and np.abs(last - first).mean() > 0.3
        assert (folder / name).stat().st_size < 1_500_000


def test_summary_has_a_column_per_target_in_the_order_of_the_study(sweep_dir):
    runs, sweep, tables = loaded(sweep_dir)
    seeds, means = centre_scores(runs, sweep.centres)
    assert len(seeds) == 6 and means["n"].tolist() == [3, 3]
    with mpl.rc_context(fname=STYLE):
        figure = figures.plan(runs, sweep, tables)["summary_centre"]()
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["moons", "spiral2"]
    labels = [t.get_text() for t in figure.axes[-1].get_xticklabels()]
    kl = runs.loc[(runs["data.name"] == "moons") & (runs["status"] == "completed") & (runs["flow.n_flows"] == 6)
                  & (runs["flow.activation"] == "relu"), "kl"]  # fmt: skip
    mean, low, high = stats.mean_interval(kl)
    assert labels[0] == f"{mean:.3f} [{low:.3f}, {high:.3f}]\n3 seeds"
    one = runs[runs["data.name"] == "moons"]
    assert "summary_centre" not in figures.plan(one, sweep, tables)


def test_centre_scores_count_what_did_not_complete_and_repetitions_once():
    runs = pd.DataFrame({"data.name": "moons", "seed": [0, 1, 2, 3, 0], "flow.n_flows": 6,
                         "kl": [0.1, 0.3, None, None, 0.1],
                         "status": ["completed", "completed", "diverged", "missing", "completed"]})  # fmt: skip
    seeds, means = centre_scores(runs, {"moons": {"flow.n_flows": 6}})
    row = means.iloc[0]
    assert seeds["kl"].tolist() == [0.1, 0.3]
    assert (row["n"], row["n_diverged"], row["n_failed"], row["n_missing"]) == (2, 1, 0, 1)
    assert row["kl_mean"] == pytest.approx(0.2)


@pytest.mark.parametrize("kl", [[0.1, 7e29], [-0.01, 0.5], [np.nan, 0.1], [0.0, 0.0]])
def test_summary_draws_any_kl(kl):
    grid = -np.arange(12.0).reshape(3, 4)
    arrays = {t: {"target": np.zeros((5, 2)), "best": np.ones((4, 2)), "grid_log_q": grid,
                  "grid_extent": np.array([-1.0, 1, -1, 1])} for t in ("a", "b")}  # fmt: skip
    runs = pd.DataFrame({"data.name": ["a", "b"], "seed": 0, "flow.n_flows": 6, "status": "completed", "kl": kl})
    figure = draw_summary(arrays, *centre_scores(runs, {t: {"flow.n_flows": 6} for t in "ab"}), "title")
    figure.draw_without_rendering()
    assert all("1 seed" in t.get_text() for t, v in zip(figure.axes[-1].get_xticklabels(), kl, strict=True) if v == v)


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
    assert set(figures.plan(*loaded(run))) == {"convergence_centre", "walk_moons", "gif_walk_moons"}


def test_writing_pdf_files_logs_nothing(caplog, tmp_path):
    caplog.set_level("INFO")
    save(drawn(cell(0.001, 0.05)), tmp_path, "figure")
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
def test_bad_input_is_one_line_and_code_1(case, sweep_dir, tmp_path, capsys):
    (tmp_path / "file").touch()
    words, message = BAD[case]
    assert figures.main([w.format(tmp=tmp_path, sweep=sweep_dir) for w in words]) == 1
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


def test_importing_leaves_torch_and_the_backend_alone():
    code = (
        "import sys, nfexp.report, nfexp.report.figures\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules), 'too much imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(figures.__file__).parents[2])


def test_every_figure_of_one_run_says_what_it_needs():
    assert set(catalogue.OF_ONE_RUN) <= set(SHAPES)
