"""From images to a report: trained, scored in bits/dim, drawn, judged; no KL and no empty panel."""

import re
from pathlib import Path

import numpy as np
import pytest

from nfexp import report
from nfexp.analysis.claims import evaluate
from nfexp.analysis.claims.images import IMAGE_CLAIMS
from nfexp.analysis.table import load_arrays, load_runs
from nfexp.report.figures.pictures import in_rows, shaded, sheet
from nfexp.scripting import train_sweep
from tests.conftest import no_pictures

TINY = [
    "data=digits", "flow=image", "train=images_quick", "train.steps=4", "train.n_evals=2", "train.batch_size=8",
    "data.n_samples=40", "data.n_val=20", "data.n_test=20", "flow.n_flows=1", "flow.hidden_width=4", "device=cpu",
    "record=lean",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two cells of two seeds, and the report that the command makes of them."""
    folder = tmp_path_factory.mktemp("images") / "s"
    keys = dict(key.split("=") for key in TINY) | {"flow.scales": [1, 2], "seed": [0, 1], "hydra.launcher.workers": 1}
    train_sweep(keys, verbose=False, folder=folder)
    return folder


def test_a_report_of_images_speaks_of_bits(sweep):
    text = (sweep / "report.md").read_text()
    assert "KL" not in text
    assert "bits/dim [95% interval] | importance-weighted" in text
    for name in ("images", "temperatures", "interpolation", "scales", "imagewalk"):
        assert (sweep / "figures" / f"{name}_digits.png").stat().st_size > 2000
        assert f"figures/{name}_digits.png" in text
    assert "Bits/dim of test images by scales" in text
    assert "2-D" not in (sweep / "report.html").read_text()
    assert "I1" in text


def test_arrays_of_images_are_levels(sweep):
    runs = load_runs(sweep)
    assert runs["test_bpd"].between(1, 8).all()
    arrays = load_arrays(runs.loc[runs["flow.scales"] == 2, "dir"].iloc[0])
    levels = int(arrays["levels"])
    for key in ("real", "drawn", "tempered", "interpolated", "redrawn"):
        assert arrays[key].dtype == np.uint8
        assert arrays[key].max() < levels == 17
        assert arrays[key].shape[-3:] == (1, 8, 8)
    np.testing.assert_array_equal(arrays["tempered"][-1], arrays["drawn"][:10])  # at temperature 1
    assert arrays["redrawn_numbers"].tolist() == [64, 32, 0]
    # with all of its base coordinates an image is itself, at both ends of an interpolation
    np.testing.assert_array_equal(arrays["interpolated"][:, 0], arrays["redrawn"][0][0:10:2])
    np.testing.assert_array_equal(arrays["interpolated"][:, -1], arrays["redrawn"][0][1:10:2])
    # the walk ends in the samples, each pixel in its place
    np.testing.assert_array_equal(np.floor(arrays["image_walk"][-1]).clip(0, 16), arrays["drawn"][:6])
    assert arrays["image_walk_names"][-1] == "data"


def test_claims_about_images_are_judged_by_their_bits(sweep):
    runs = load_runs(sweep)
    known = runs[runs["seed"] == 0].iloc[0]
    centres = {"digits": {key: known[key] for key in runs if "." in key and not key.startswith("record.")}}
    centres["digits"]["flow.scales"] = 2
    gaps = np.array([0.1, 0.11])
    better = runs["flow.scales"] == 2
    judged_on = runs.assign(test_bpd=np.where(better, 2.0, 2.0 + gaps[runs["seed"]]))
    rows = evaluate(judged_on, centres, IMAGE_CLAIMS).set_index("claim")
    scales = rows.loc["I1"].iloc[0]
    assert (scales["verdict"], scales["n"]) == ("supported", 2)
    assert scales["estimate"] == pytest.approx(gaps.mean())
    assert set(rows.loc["I3", "verdict"]) == {"inconclusive"}


def test_a_flow_of_vectors_refuses_images_and_the_other_way_round(nfexp):
    bad = {
        ("data=digits",): r"flow.kind: expected 'image' \(flow=image\), for data.name=digits holds images; the table",
        ("data=moons", "flow=image"): r"flow.kind: expected 'vector' \(flow=realnvp\), for data.name=moons holds vec",
    }
    for command, message in bad.items():
        code, _, err = nfexp(*command, "hydra.run.dir=r")
        assert code == 1
        assert re.search(message, err)
    assert not Path("r").exists()


# --- How images are drawn --------------------------------------------------------------------------------------------


def test_shades_and_sheets():
    grey = np.arange(4).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(shaded(grey, 4)[0, ..., 0], [[0, 1 / 3], [2 / 3, 1]])
    colour = np.stack([np.full((2, 2), level) for level in (0, 127.5, 255)])[None]
    np.testing.assert_allclose(shaded(colour, 256)[0, 0, 0], [0, 0.5, 1])
    whole = sheet(np.zeros((2, 3, 4, 5, 3)))
    assert whole.shape == (9, 17, 3)
    assert whole[4].min() == 1  # a line of paper between two rows
    assert in_rows(np.zeros((7, 1, 2, 2)), 10).shape == (1, 7, 1, 2, 2)


def test_the_report_can_be_made_again(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(report.figures, "draw_all", no_pictures)  # they are drawn once, above
    assert report.build(sweep, out=tmp_path / "again").exists()


def test_the_flow_of_the_paper_for_cifar_plans_from_files(nfexp):
    """Small files of the format: that it composes, and what a run of it would cost."""
    image = bytes([3]) + bytes(range(256)) * 12
    for file in ("test_batch.bin", *(f"data_batch_{i}.bin" for i in range(1, 6))):
        Path(file).write_bytes(4 * image)
    page = (Path(report.__file__).parents[2] / "docs/images.md").read_text()
    shown = page.partition("nfexp -m data=cifar10 ")[2].partition("```")[0]
    command = ["-m", "data=cifar10", *shown.replace("\\\n", " ").replace("FOLDER", ".").split()]
    code, out, err = nfexp(*command, "data.check=format", "data.n_val=4", "data.n_test=4")
    assert code == 0, err
    assert "1 run (1 cifar10) in 1 stack; " in out
    assert re.search(r"1,000,000 member-steps, [\d,.e+]+ TFLOP; about .* of training on this machine", out)
    code, _, err = nfexp(*command)
    assert code == 1
    assert "expected 30,730,000 bytes in data_batch_1.bin of cifar10, from https://www.cs.toronto.edu/" in err
