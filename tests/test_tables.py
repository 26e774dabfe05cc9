"""The user's own tables: what is read, which rows train, what is refused, and that a flow learns a known density."""

import gzip
import math
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nfexp import published, tables
from nfexp.configuration import spec_of
from nfexp.data import load
from nfexp.flows.stack import from_state
from nfexp.run import run_stack
from nfexp.spec import SpecError, flatten, run_id, stack_key, unflatten
from nfexp.tables import settled
from tests.helpers.specs import table_spec

FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["height", "weight", "age"])


def write(name, frame=FRAME, **options):
    """The frame in a file, in the format of its suffix."""
    suffix = name.removesuffix(".gz").rpartition(".")[2]
    if suffix in ("csv", "tsv"):
        frame.to_csv(name, index=False, sep={"csv": ",", "tsv": "\t"}[suffix], **options)
    elif suffix == "npy":
        np.save(name, frame.to_numpy())
    elif suffix == "npz":
        np.savez(name, **{column: frame[column].to_numpy() for column in frame})
    else:
        frame.to_parquet(name)
    return name


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- Reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.npy", "a.npz", "a.parquet"])
def test_every_format_holds_the_same_run(name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    reference = settled(table_spec(data__path=write("reference.csv"), data__name="same"))
    spec = settled(table_spec(data__path=write(name), data__name="same"))
    assert spec.data.dim == 3
    assert run_id(spec) == run_id(reference)
    np.testing.assert_array_equal(tables.source(spec.data).main.values, FRAME.to_numpy())


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    Path("a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SpecError, match=r"data.path: expected pyarrow to read Parquet .*; got 'a.parquet'"):
        settled(table_spec(data__path="a.parquet"))


def test_a_number_that_changes_makes_another_run():
    before = settled(table_spec(data__path=write("a.csv")))
    changed = FRAME.copy()
    changed.iloc[7, 1] += 1e-9
    after = settled(table_spec(data__path=write("a.csv", changed)))
    assert run_id(before) != run_id(after)
    with pytest.raises(SpecError, match=r"data.path: expected a.csv as it was when the run was planned; got .*"):
        load(before)


def test_columns_by_name_and_position():
    write("a.csv")
    by_name = settled(table_spec(data__path="a.csv", data__columns=["age", "height"]))
    by_position = settled(table_spec(data__path="a.csv", data__columns="2,0"))
    by_rest = settled(table_spec(data__path="a.csv", data__drop=[1]))
    assert tables.source(by_name.data).main.names == ("age", "height")
    assert run_id(by_name) == run_id(by_position)
    assert tables.source(by_rest.data).main.names == ("height", "age")
    assert unflatten(flatten(by_name)) == by_name


def test_a_csv_without_names_is_numbered():
    write("a.csv", header=False)
    found = tables.source(table_spec(data__path="a.csv").data).main
    assert found.names == ("0", "1", "2")
    assert len(found.values) == 40
    named = tables.source(table_spec(data__path="a.csv", data__header="first_row").data).main
    assert len(named.values) == 39


def test_what_is_said_before_training():
    frame = pd.concat([FRAME.round(1), FRAME.round(1).iloc[:3]], ignore_index=True)
    frame["kind"] = np.arange(len(frame)) % 4 * 0.5
    frame.iloc[:2, 0] = np.nan
    spec = settled(table_spec(data__path=write("my points.csv", frame), data__n_samples=20))
    facts = tables.facts(spec.data)
    assert facts.startswith("my_points: 41 rows, 4 columns (height, weight, age, kind); 2 rows with missing values")
    assert facts.endswith("20 train, 4 validate, 8 test")
    (warning,) = tables.warnings_of(spec.data)
    assert "few distinct values in kind:" in warning
    assert not tables.warnings_of(settled(table_spec(data__path="my points.csv", data__jitter="gap")).data)
    write("one.csv", FRAME[["age"]])
    (warning,) = tables.warnings_of(settled(table_spec(data__path="one.csv")).data)
    assert "the flow is one affine map of its base" in warning


@pytest.mark.parametrize(("name", "dim", "n"), [("wine", 13, 178), ("digits_table", 61, 1797), ("iris", 4, 150)])
def test_bundled_tables(name, dim, n):
    spec = settled(table_spec(name))
    assert (spec.data.dim, sum(spec.data.points)) == (dim, n)


# --- Which rows train ------------------------------------------------------------------------------------------------


def rows_of(spec):
    dataset = load(spec)
    return [{tuple(row) for row in part.tolist()} for part in (dataset.train, dataset.val, dataset.test)]


def test_a_split_is_a_partition():
    write("a.csv")
    spec = settled(table_spec(data__path="a.csv"))
    train, val, test = rows_of(spec)
    assert (len(train), len(val), len(test)) == spec.data.points == (28, 4, 8)
    assert train | val | test == {tuple(row) for row in FRAME.to_numpy().tolist()}
    assert rows_of(spec) == [train, val, test]
    other_seed = rows_of(settled(table_spec(data__path="a.csv", seed=1)))
    assert other_seed[2] != test


def test_one_split_for_all_seeds():
    write("a.csv")
    parts = [rows_of(settled(table_spec(data__path="a.csv", data__split=5, seed=seed))) for seed in (0, 1)]
    assert parts[0] == parts[1]


def test_fewer_rows_to_train_on_leave_the_test_alone():
    write("a.csv")
    train, val, test = rows_of(settled(table_spec(data__path="a.csv")))
    few = rows_of(settled(table_spec(data__path="a.csv", data__n_samples=9)))
    assert few[1:] == [val, test]
    assert few[0] < train and len(few[0]) == 9


def test_files_of_their_own_for_validation_and_test():
    write("a.csv")
    write("v.csv", FRAME + 1)
    write("t.csv", FRAME + 2)
    spec = settled(table_spec(data__path="a.csv", data__val_path="v.csv", data__test_path="t.csv", data__n_val=5))
    assert spec.data.points == (40, 5, 40)
    dataset = load(spec)
    np.testing.assert_array_equal(dataset.val.numpy(), FRAME.to_numpy()[:5] + 1)
    np.testing.assert_array_equal(dataset.test.numpy(), FRAME.to_numpy() + 2)


def test_jitter_is_as_wide_as_the_gap_and_spares_other_columns():
    frame = FRAME.assign(kind=np.arange(40) % 4 * 0.5)
    write("a.csv", frame)
    plain = load(settled(table_spec(data__path="a.csv")))
    jittered = load(settled(table_spec(data__path="a.csv", data__jitter="gap")))
    moved = (jittered.train - plain.train).abs().amax(0)
    assert moved[:3].tolist() == [0, 0, 0]
    assert 0.2 < moved[3] <= 0.25
    wide = load(settled(table_spec(data__path="a.csv", data__jitter=0.1)))
    assert 0.04 < (wide.train - plain.train).abs().amax() <= 0.05


def test_standardisation_knows_the_training_rows_alone():
    write("a.csv")
    spec = settled(table_spec(data__path="a.csv", train__steps=2))
    (result,) = run_stack([spec])
    train = load(spec).train
    torch.testing.assert_close(result.state["standardise.mean"][0], train.mean(0).float())
    torch.testing.assert_close(result.state["standardise.var"][0], train.var(0, correction=0).float())


def test_tables_of_one_shape_are_one_stack_and_each_as_alone():
    write("a.csv")
    write("b.csv", 2 * FRAME + 1)
    specs = [settled(table_spec(data__path=path, train__steps=10)) for path in ("a.csv", "b.csv")]
    assert stack_key(specs[0]) == stack_key(specs[1])
    assert [spec.data.name for spec in specs] == ["a", "b"]
    together = run_stack(specs)
    alone = run_stack(specs[1:])
    assert together[1].metrics["test_nll"] == alone[0].metrics["test_nll"]
    for name, value in alone[0].state.items():
        assert torch.equal(together[1].state[name], value)


def test_a_table_never_stacks_with_a_density(make_spec):
    write("a.csv", FRAME[["age", "height"]])
    table = settled(table_spec(data__path="a.csv"))
    density = make_spec(data__n_val=table.data.n_val, data__n_test=table.data.n_test)
    assert stack_key(table) != stack_key(density)  # a density has a grid to record, a table has none


# --- A known density -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3, 8])
def test_a_gaussian_is_learned_up_to_its_entropy(dim):
    rng = np.random.default_rng(dim)
    factor = np.tril(rng.normal(size=(dim, dim)), -1) / 2 + np.diag(rng.uniform(0.5, 2.0, dim))
    points = rng.normal(size=(3000, dim)) @ factor.T + 5
    np.save("gauss.npy", points)
    spec = settled(table_spec(data__path="gauss.npy", train__steps=200, train__batch_size=256, flow__n_flows=4))
    (result,) = run_stack([spec])
    white = np.linalg.solve(factor, (load(spec).test.numpy() - 5).T)
    log_p = -0.5 * (white**2).sum(0) - np.log(np.diag(factor)).sum() - dim / 2 * math.log(2 * math.pi)
    assert result.metrics["kl"] is None and result.metrics["true_nll"] is None
    assert -0.02 < result.metrics["test_nll"] + log_p.mean() < 0.03 + 0.02 * dim


@pytest.mark.parametrize("dim", [1, 2])
def test_a_density_over_a_table_integrates_to_one(dim):
    points = 3 + np.random.default_rng(0).uniform(-1, 1, size=(200, dim)) ** 3
    np.save("x.npy", points)
    spec = settled(table_spec(data__path="x.npy", train__steps=40))
    (result,) = run_stack([spec], dtype=torch.float64)
    flow = from_state(spec.flow, dim, result.state)
    line = torch.linspace(-7, 13, 401 if dim == 2 else 2001, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    mass = flow.log_prob(grid[None]).exp().sum() * (line[1] - line[0]) ** dim
    assert abs(mass - 1) < 0.01


# --- The field's standard tables -------------------------------------------------------------------------------------


def write_published(folder):
    """Small files in the formats of those that were published."""
    rng = np.random.default_rng(0)
    for name in ("power", "gas", "hepmass", "miniboone", "BSDS300"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "power/data.npy", rng.normal(size=(100, 8)))
    np.save(folder / "miniboone/data.npy", rng.normal(size=(100, 43)).astype(np.float32))
    gas = pd.DataFrame(rng.normal(size=(100, 12)), columns=["Time", "Meth", "Eth", *"abcdefghi"])
    gas["c"] = gas["a"] * 2 + 0.01 * gas["b"]
    gas.to_pickle(folder / "gas/ethylene_CO.pickle")
    particles = rng.normal(size=(200, 24))
    particles[:, 0] = np.arange(200) % 2
    particles[:, 5] = np.maximum(particles[:, 5], 0)  # its smallest value comes often
    columns = [f"f{i}" for i in range(24)]
    pd.DataFrame(particles[:, :23], columns=columns[:23]).to_csv(folder / "hepmass/1000_train.csv", index=False)
    pd.DataFrame(particles, columns=columns).to_csv(folder / "hepmass/1000_test.csv", index=False)


SMALL = {
    "power": (81, 9, 10, 6),
    "gas": (81, 9, 10, 8),
    "hepmass": (90, 10, 100, 21),
    "miniboone": (81, 9, 10, 43),
}


@pytest.mark.parametrize("name", SMALL)
def test_published_tables(tmp_path, monkeypatch, name):
    write_published(tmp_path / "data")
    asked = table_spec(name, data__path="data")
    with pytest.raises(SpecError, match=rf"data.path: expected {name} with 1?,?[0-9]+,.*; got \d+, .*"):
        settled(asked)
    monkeypatch.setitem(published.SIZES, name, SMALL[name])
    spec = settled(asked)
    assert (*spec.data.points, spec.data.dim) == SMALL[name]
    dataset = load(spec)
    parts = {"gas": (dataset.train, dataset.val, dataset.test)}
    seen = torch.cat(parts.get(name, (dataset.train, dataset.val)))  # what its moments are taken over
    torch.testing.assert_close(seen.mean(0), torch.zeros(spec.data.dim, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (seen.var(0) - 1).abs().max() < 0.02


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    write_published(tmp_path / "data")
    (tmp_path / "data/gas/ethylene_CO.pickle").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SpecError, match=r"data.path: expected .*; got a table of numbers expected"):
        settled(table_spec("gas", data__path="data"))
    assert not (tmp_path / "ran").exists()


def test_power_divides_as_published(tmp_path, monkeypatch):
    """The rows are shuffled by the published seed; their last column gets no noise."""
    write_published(tmp_path / "data")
    raw = np.load("data/power/data.npy")
    order = np.arange(100)
    np.random.RandomState(42).shuffle(order)
    parts = published._power([Path("data/power/data.npy")])
    last = np.concatenate([parts.train, parts.val, parts.test])[:, 5]  # time of day, which gets no noise
    expected = raw[order][:, 7]
    np.testing.assert_allclose(np.corrcoef(last, expected)[0, 1], 1, rtol=1e-12)


def test_published_tables_that_are_absent():
    Path("data").mkdir()
    for name in published.TABLES:
        with pytest.raises(SpecError, match=r"data.path: expected a folder with .*, from https://.*; got 'data'"):
            settled(table_spec(name, data__path="data"))


def test_bsds300(tmp_path, monkeypatch):
    write_published(tmp_path / "data")
    path = tmp_path / "data/BSDS300/BSDS300.hdf5"
    path.write_bytes(b"")
    try:
        import h5py
    except ImportError:
        with pytest.raises(SpecError, match=r"data.path: expected h5py to read BSDS300"):
            settled(table_spec("bsds300", data__path="data"))
        return
    with h5py.File(path, "w") as file:
        for part, n in (("train", 70), ("validation", 10), ("test", 10)):
            file[part] = np.random.default_rng(n).normal(size=(n, 63))
    monkeypatch.setitem(published.SIZES, "bsds300", (70, 10, 10, 63))
    assert settled(table_spec("bsds300", data__path="data")).data.points == (70, 10, 10)


# --- Bad input -------------------------------------------------------------------------------------------------------

HEAD = "a,b\n"
GOOD = HEAD + "".join(f"{i / 7},{i * i / 3}\n" for i in range(30))
BAD = {
    "a word in a column": (
        GOOD + "red,1\n",
        {},
        "data.path: expected columns of numbers .*=a .*; got 'red' in column 'a', row 31 .*",
    ),
    "dates": (
        HEAD + "2020-01-01,1\n" * 20,
        {},
        "data.path: expected columns of numbers .*; got '2020-01-01' in .*",
    ),
    "infinity": (
        GOOD + "1,inf\n",
        {},
        "data.path: expected finite numbers; got inf in column 'b', row 31 of x.csv",
    ),
    "missing values": (
        GOOD + ",1\n",
        {"missing": "error"},
        "data.missing: expected a value in .*; got none in column 'a', row 31 .*",
    ),
    "only missing values": (
        HEAD + ",1\n" * 20,
        {},
        "data.path: expected at least 10 rows; got 0 in x.csv .and 20 .*",
    ),
    "too few rows": (
        HEAD + "1,2\n3,4\n",
        {},
        "data.path: expected at least 10 rows; got 2 in x.csv",
    ),
    "empty": ("", {}, "data.path: expected a CSV file, as its name says; got x.csv: .*"),
    "more columns than rows": (
        "\n".join(",".join(str(i * j % 17) for j in range(30)) for i in range(12)),
        {},
        "data.path: expected no more columns than rows .*; got 30 columns, 12 rows in x.csv",
    ),
    "a constant column": (
        HEAD + "".join(f"{i},7\n" for i in range(30)),
        {},
        "data.columns: expected .* .data.drop=b .*: b",
    ),
    "a wrong name": (
        GOOD,
        {"columns": "a,c"},
        r"data.columns: expected columns of x.csv: a, b; got 'c'",
    ),
    "a near miss": (
        GOOD.replace("a,b", "height,b"),
        {"drop": "hieght"},
        "data.drop: expected .*'hieght' .near: 'height'.",
    ),
    "a position too far": (
        GOOD,
        {"columns": [5]},
        "data.columns: expected columns of x.csv: a, b; got '5'",
    ),
    "no column left": (
        GOOD,
        {"drop": "a,b"},
        "data.columns: expected at least one column of x.csv; got none",
    ),
    "a name twice": (
        GOOD.replace("a,b", "a,a"),
        {},
        "data.path: expected columns of x.csv with .*; got 'a' twice",
    ),
    "a header where none was expected": (
        GOOD,
        {"header": "none"},
        "data.header: expected numbers .*; got the names a, b",
    ),
    "other separators": (
        GOOD.replace(",", ";"),
        {},
        "data.path: expected values separated by ','; got 'a;b' in .*",
    ),
    "a ragged row": (
        GOOD + "1,2,3\n",
        {},
        "data.path: expected a CSV file, as its name says; got x.csv: .*",
    ),
    "a name too few": (
        GOOD.replace("a,b", "a"),
        {},
        "data.path: expected a name for each column .*; got 1 name, 2 .*",
    ),
    "more to train on than there is": (
        GOOD,
        {"n_samples": 25},
        "data.n_samples: expected at most 21, .*; got 25",
    ),
    "nothing left to train on": (
        GOOD,
        {"n_val": 15, "n_test": 15},
        "data.n_val: expected at least 2 of the 30 .*",
    ),
    "noise": (GOOD, {"noise": 0.1}, "data.noise: expected null for a table .*; got 0.1"),
    "no path": (GOOD, {"path": None}, "data.path: expected the path of the table, .*; got None"),
    "nothing there": (
        GOOD,
        {"path": "y.csv"},
        "data.path: expected the path of a table; got y.csv, nothing there",
    ),
    "a folder": (GOOD, {"path": "."}, "data.path: expected the path of a table; got ., a folder"),
    "another suffix": (
        GOOD,
        {"path": "x.xlsx"},
        "data.path: expected a file named .csv, .tsv, .*; got 'x.xlsx'",
    ),
    "not what its suffix says": (
        GOOD,
        {"path": "x.npy"},
        "data.path: expected a NPY file, as its .*; got x.npy: .*",
    ),
    "no archive": (
        GOOD,
        {"path": "x.npz"},
        "data.path: expected a NPZ file, as its name says; got x.npz: .*",
    ),
    "other test columns": (
        GOOD,
        {"test_path": "other.csv"},
        "data.test_path: expected the columns of .*: a, b; got a, c in .*",
    ),
    "no test file": (
        GOOD,
        {"test_path": "y.csv"},
        "data.test_path: expected the path .*; got y.csv, nothing there",
    ),
    "a share of all": (
        GOOD,
        {"val_share": 0.95},
        "data.val_share: expected a number > 0 and <= 0.9 or null; got 0.95",
    ),
    "jitter of no sort": (
        GOOD,
        {"jitter": "some"},
        "data.jitter: expected .* or 'gap'; got 'some'",
    ),
    "columns of no sort": (
        GOOD,
        {"columns": 2.5},
        "data.columns: expected a list of names or positions .*; got 2.5",
    ),
}


@pytest.mark.parametrize(("text", "keys", "message"), BAD.values(), ids=BAD)
def test_bad_tables(text, keys, message):
    for name in ("x.csv", "x.xlsx", "x.npy", "x.npz"):
        Path(name).write_text(text)
    Path("other.csv").write_text(GOOD.replace("a,b", "a,c"))
    with pytest.raises(SpecError) as caught:
        settled(table_spec(**{f"data__{key}": value for key, value in ({"path": "x.csv"} | keys).items()}))
    assert re.fullmatch(message, str(caught.value)), caught.value


def test_binary_text_is_refused():
    Path("x.csv").write_bytes(gzip.compress(GOOD.encode()))
    with pytest.raises(SpecError, match=r"data.path: expected a CSV file, as its name says; got x.csv: .*"):
        settled(table_spec(data__path="x.csv"))


def test_a_configuration_is_settled_once_composed():
    flat = flatten(table_spec(data__path=write("a.csv")))
    nested = {"dry_run": False, "fail_fast": False, "redo": "none", "mixed": False, "max_seeds": 20, "explorer": True}
    for key, value in flat.items():
        group, _, leaf = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = value
    assert spec_of(nested).data.points == (28, 4, 8)
