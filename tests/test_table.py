import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from nfexp.analysis.table import (
    CONFIG,
    ReportError,
    collect,
    infer_centres,
    load_arrays,
    load_histories,
    load_runs,
    load_sweep,
    write_csv,
)
from nfexp.spec import ADDED
from tests.helpers.fake_sweep import METRICS, ablation_sweep, centre, write_run, write_sweep

SIX = [({"flow.n_flows": n, "seed": s}, {"kl": 0.1 * n}, "completed") for n in (3, 6, 12) for s in (0, 1)]


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "sweep", SIX)


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_columns_and_order(sweep):
    runs = load_runs(sweep)
    assert [*runs] == ["job", "status", *CONFIG, *METRICS, "dir"]
    assert not {"name", "device", "record.grid"} & set(runs)
    assert runs["job"].tolist() == [f"{i:03d}" for i in range(6)]
    assert runs["dir"].tolist() == [str(sweep / job) for job in runs["job"]]
    assert runs["flow.n_flows"].tolist() == [3, 3, 6, 6, 12, 12] and runs["flow.n_flows"].dtype == np.int64
    assert runs["kl"].tolist() == pytest.approx([0.3, 0.3, 0.6, 0.6, 1.2, 1.2])


def test_statuses(tmp_path):
    statuses = ["completed", "diverged", "failed", "missing", "unfinished"]
    folder = write_sweep(tmp_path, [({"seed": s, "train.lr": 0.1}, {}, status) for s, status in enumerate(statuses)])
    runs = load_runs(folder)
    assert runs["status"].tolist() == ["completed", "diverged", "failed", "missing", "missing"]
    assert runs["seed"].tolist() == [0, 1, 2, 3, 4] and (runs["train.lr"] == 0.1).all()
    assert runs["kl"].notna().tolist() == [True] + [False] * 4
    assert runs["diverged_at"].tolist()[1] == 37
    assert load_sweep([folder], runs).planned == 5


def test_a_half_written_run_outside_a_plan_is_skipped(tmp_path):
    folder = write_sweep(tmp_path, [({"seed": 0}, {}, "completed"), ({"seed": 1}, {}, "unfinished")], sweep_json=False)
    assert load_runs(folder)["job"].tolist() == ["000"]


def test_one_run_several_sweeps_and_their_parent(tmp_path):
    write_sweep(tmp_path / "a", SIX[:2], name="a")
    write_sweep(tmp_path / "b", SIX[2:], name="b")
    single = load_runs(tmp_path / "a" / "001")
    assert single["job"].tolist() == ["001"]
    both = load_runs(tmp_path / "a", tmp_path / "b")
    above = load_runs(tmp_path)
    assert len(both) == len(above) == 6 and above["job"].tolist()[:3] == ["a/000", "a/001", "b/000"]
    assert len(load_runs(tmp_path, tmp_path / "a", tmp_path / "a" / "000")) == 6
    sweep = load_sweep([tmp_path / "a", tmp_path / "b"], both)
    assert sweep.name == "a + b" and sweep.planned == 6
    assert load_sweep(tmp_path, above).name == "a + b"


def test_relative_and_string_paths(sweep, monkeypatch):
    monkeypatch.chdir(sweep.parent)
    pd.testing.assert_frame_equal(load_runs("sweep"), load_runs(sweep))


def test_centres_from_the_plan(sweep):
    found = load_sweep([sweep], load_runs(sweep))
    assert found.name == "ablations" and found.planned == 6
    planned = {k: v for k, v in centre().items() if k in CONFIG and k != "seed"}
    younger = {key: value for key, value in ADDED.items() if key in CONFIG}  # than the plan
    assert found.centres["moons"] == younger | planned


def test_centres_inferred(tmp_path):
    runs = [({"seed": s, "flow.n_flows": n}, {}, "completed") for n in (2, 3, 4, 8) for s in (0, 1)]
    runs += [({"seed": s, "flow.activation": "tanh"}, {}, "completed") for s in (0, 1, 2)]
    folder = write_sweep(tmp_path / "adhoc", runs, sweep_json=False)
    found = load_sweep([folder], load_runs(folder))
    assert found.name == "adhoc" and found.planned == 11
    assert found.centres["moons"]["flow.n_flows"] == 6  # three runs, the others two each
    assert found.centres["moons"]["flow.activation"] == "relu" and found.centres["moons"]["data.text"] is None


TIES = {
    "numbers, odd": ([3, 12, 6], 6),
    "numbers, even": ([3, 12, 6, 9], 6),
    "most common": ([3, 12, 12, 6], 12),
    "tied pairs": ([3, 3, 6, 6, 12, 12, 1], 6),
    "strings": (["tanh", "elu", "relu"], "elu"),
    "words and numbers": ([256, "full"], 256),
    "null": ([None, None, 5.0], None),
    "null tied": ([None, 5.0], 5.0),
}


@pytest.mark.parametrize("case", TIES)
def test_ties_of_inferred_centres(case):
    values, expected = TIES[case]
    assert infer_centres(pd.DataFrame({"data.name": "moons", "x": values}))["moons"]["x"] == expected


def result_with(**changed):
    def spoil(folder):
        edit(folder / "000" / "result.json", lambda r: r.update(changed))

    return spoil


def config_with(key, value):
    return lambda folder: edit(folder / "000" / "result.json", lambda r: r["config"].update({key: value}))


def metric_with(value):
    return lambda folder: edit(folder / "000" / "result.json", lambda r: r["metrics"].update(kl=value))


def without(*keys):
    def spoil(folder):
        def drop(record):
            for key in keys[:-1]:
                record = record[key]
            del record[keys[-1]]

        edit(folder / "000" / "result.json", drop)

    return spoil


def text(content, name="000/result.json"):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def plan_with(**changed):
    return lambda folder: edit(folder / "sweep.json", lambda r: r.update(changed))


def job_with(**changed):
    return lambda folder: edit(folder / "sweep.json", lambda r: r["jobs"][0].update(changed))


ERRORS = {
    "newer schema": (result_with(schema_version=2), "expected schema_version at most 1; got 2"),
    "no schema": (without("schema_version"), "expected schema_version at most 1; got None"),
    "odd schema": (result_with(schema_version=True), "expected schema_version at most 1; got True"),
    "not JSON": (text("{"), "expected readable JSON"),
    "empty": (text(""), "expected readable JSON"),
    "not text": (text(b"\xff\xfe\x00"), "expected readable JSON"),
    "deep": (text("[" * 100_000), "expected readable JSON"),
    "a list": (text("[]"), "expected a JSON object; got list"),
    "NaN literal": (text('{"schema_version": 1, "x": NaN}'), "expected readable JSON; got the literal NaN"),
    "no status": (without("status"), "expected the key 'status'; got an object without it"),
    "no metrics": (without("metrics"), "expected the key 'metrics'"),
    "no config": (without("config"), "expected the key 'config'"),
    "status": (result_with(status="done"), "expected status to be one of completed, diverged, failed; got 'done'"),
    "status list": (result_with(status=[]), "expected status to be one of"),
    "config list": (result_with(config=[]), "expected config to be an object; got list"),
    "metrics list": (result_with(metrics=[]), "expected metrics to be an object; got list"),
    "no seed": (without("config", "seed"), "expected config to have seed"),
    "word for number": (config_with("flow.n_flows", "six"), "expected flow.n_flows to be int; got 'six'"),
    "fraction": (config_with("flow.n_flows", 6.5), "expected flow.n_flows to be int; got 6.5"),
    "number for word": (config_with("flow.mask", 3), "expected flow.mask to be str; got 3"),
    "list for word": (config_with("data.name", ["moons"]), "expected data.name to be str"),
    "truth": (config_with("seed", True), "expected seed to be int; got True"),
    "null": (config_with("train.lr", None), "expected train.lr to be float; got None"),
    "huge seed": (config_with("seed", 10**40), "expected seed to be int"),
    "extra key": (config_with("odd.key", {}), "expected odd.key to be float or int or null or str; got {}"),
    "word metric": (metric_with("0.1"), "expected the metric kl to be a finite number or null; got '0.1'"),
    "huge count": (
        lambda folder: edit(folder / "000" / "result.json", lambda r: r["metrics"].update(best_step=1e60)),
        "expected the metric best_step to be a finite number or null",
    ),
    "huge metric": (metric_with(10**400), "expected the metric kl to be a finite number or null"),
    "infinite metric": (
        text(json.dumps({"schema_version": 1, "status": "completed", "config": centre(), "metrics": {"kl": 0}})
             .replace('"kl": 0', '"kl": 1e999')),
        "expected the metric kl to be a finite number or null; got inf",
    ),
    "half a pair": (config_with("data.text", "\ud800"), "expected readable JSON"),
    "endless number": (text('{"schema_version": ' + "1" * 5000 + "}"), "expected readable JSON"),
    "plan: newer": (plan_with(schema_version=9), "sweep.json: expected schema_version at most 1; got 9"),
    "plan: not JSON": (text("nope", "sweep.json"), "sweep.json: expected readable JSON"),
    "plan: name": (plan_with(name=3), "expected name to be a JSON str; got int"),
    "plan: centres": (plan_with(centres=[]), "expected centres to be a JSON dict; got list"),
    "plan: centre": (plan_with(centres={"moons": 3}), "expected config to be an object; got int"),
    "plan: jobs": (plan_with(jobs={}), "expected jobs to be a JSON list; got dict"),
    "plan: job": (plan_with(jobs=["000"]), "expected each job to have job, data.name, seed and config; got '000'"),
    "plan: upwards": (job_with(job="../other"), "expected job to be a path inside the sweep; got '../other'"),
    "plan: inner upwards": (job_with(job="a/../../b"), "expected job to be a path inside the sweep"),
    "plan: absolute": (job_with(job="/etc"), "expected job to be a path inside the sweep; got '/etc'"),
    "plan: null byte": (job_with(job="a\0b"), "expected job to be a path inside the sweep"),
    "plan: itself": (job_with(job="."), "expected job to be a path inside the sweep"),
    "plan: number": (job_with(job=0), "expected job to be a path inside the sweep; got 0"),
    "plan: target": (job_with(**{"data.name": "circles"}), "expected job 000 to have a target with a centre"),
    "plan: target type": (job_with(**{"data.name": []}), "expected job 000 to have a target with a centre"),
    "plan: job config": (job_with(config=[]), "expected job 000 to have a target with a centre"),
    "plan: seed": (job_with(seed="0"), "expected seed to be int; got '0'"),
    "plan: value": (job_with(config={"flow.n_flows": None}), "expected flow.n_flows to be int; got None"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_a_bad_file_is_skipped_with_one_line(sweep, case, caplog):
    spoil, message = ERRORS[case]
    spoil(sweep)
    found = collect(sweep)
    (line,) = caplog.messages
    assert message in line and "\n" not in line and line.startswith(f"skipped: {sweep}")
    assert line == f"skipped: {found.skipped[0]}" and len(found.skipped) == 1
    plan = case.startswith("plan: ")
    assert found.runs["status"].tolist() == ["completed" if plan else "missing", *["completed"] * 5]
    assert found.reasons == ({} if plan else {str(sweep / "000"): "skipped: not a readable record"})


def test_nothing_but_bad_files_is_an_error(tmp_path):
    folder = write_sweep(tmp_path / "one", SIX[:1])
    result_with(schema_version=2)(folder)
    with pytest.raises(ReportError, match=r"000/result.json: expected schema_version at most 1; got 2$"):
        load_runs(folder)


def test_errors_of_directories(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for where, message in (("nowhere", "nothing there"), ("file", "a file"), ("empty", "none")):
        with pytest.raises(ReportError, match=f"/{where}: expected .*; got {message}$"):
            load_runs(tmp_path / where)
    with pytest.raises(ReportError, match=r"^dirs: expected at least one directory; got none$"):
        load_runs()
    with pytest.raises(ReportError, match="expected a finished run"):
        load_runs(write_sweep(tmp_path / "planned", [({}, {}, "missing"), ({}, {}, "unfinished")]))


def test_a_long_value_is_cut(sweep):
    config_with("flow.n_flows", "x\n" * 10_000)(sweep)
    (error,) = collect(sweep).skipped
    assert len(str(error)) < 400 and "\n" not in str(error)


def test_links_are_not_followed(sweep, tmp_path):
    elsewhere = write_run(tmp_path / "elsewhere", centre(seed=9), {}, "completed")
    (sweep / "900").symlink_to(elsewhere)
    (sweep / "901").mkdir()
    for name in ("result.json", "history.csv", "samples.npz"):
        (sweep / "901" / name).symlink_to(elsewhere / name)
    assert len(load_runs(sweep)) == 6
    assert len(collect(sweep).skipped) == 2
    assert load_arrays(sweep / "901") == {}
    assert load_histories(pd.DataFrame({"job": ["901"], "dir": [str(sweep / "901")]})).empty


def runs_in(folder, count=2):
    for seed in range(count):
        write_run(folder / f"{seed:03d}", centre(seed=50 + seed), {}, "completed", arrays=False)


def linked(sweep):
    runs_in(sweep.parent / "elsewhere")
    (sweep / "linked").symlink_to(sweep.parent / "elsewhere")


def linked_run(sweep):
    runs_in(sweep.parent / "elsewhere", 1)
    (sweep / "900").symlink_to(sweep.parent / "elsewhere" / "000", target_is_directory=True)


def linked_nowhere(sweep):
    (sweep / "900").symlink_to(sweep.parent / "unmounted")


def linked_to_a_removed_run(sweep):
    (sweep / "900").symlink_to(sweep / "removed")


def linked_record(sweep):
    runs_in(sweep.parent / "elsewhere", 1)
    (sweep / "900").mkdir()
    (sweep / "900" / "result.json").symlink_to(sweep.parent / "elsewhere" / "000" / "result.json")


def linked_plan(sweep):
    runs_in(sweep / "more", 0)
    (sweep / "more").mkdir()
    (sweep / "more" / "sweep.json").symlink_to(sweep / "sweep.json")


def run_above(sweep):
    write_run(sweep.parent, centre(seed=99), {}, "completed", arrays=False)
    runs_in(sweep.parent / "deep" / "er")


def run_in_a_run(sweep):
    runs_in(sweep / "000" / "again" / "and" / "again")


def hidden(sweep):
    runs_in(sweep / ".old")


UNREAD = {  # what is put there, and the places that get a line
    "a linked folder": (linked, ["sweep/linked"]),
    "a linked run": (linked_run, ["sweep/900"]),
    "a link that leads nowhere": (linked_nowhere, ["sweep/900"]),
    "a link to a run removed from the sweep": (linked_to_a_removed_run, ["sweep/900"]),
    "a linked record": (linked_record, ["sweep/900/result.json"]),
    "a linked plan": (linked_plan, ["sweep/more/sweep.json"]),
    "runs below a run": (run_in_a_run, ["sweep/000/again"]),
    "a hidden folder": (hidden, ["sweep/.old"]),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_not_read_is_said(sweep, case, caplog):
    put, places = UNREAD[case]
    put(sweep)
    found = collect(sweep)
    assert len(found.runs) == 6
    assert [str(e).partition(": ")[0] for e in found.skipped] == [str(sweep.parent / place) for place in places]
    assert caplog.messages == [f"skipped: {error}" for error in found.skipped]


def test_a_run_in_the_parent_folder(sweep):
    run_above(sweep)
    found = collect(sweep.parent)
    assert len(found.runs) == 1
    lines = [str(error) for error in found.skipped]
    assert len(lines) == 2 and "7 places below another run" in lines[0] and "2 places" in lines[1]


def test_links_into_what_is_read_need_no_line(sweep, tmp_path):
    runs_in(tmp_path / "other")
    (sweep / "latest").symlink_to(sweep / "005")
    (sweep / "loop").symlink_to(sweep)
    (sweep / "beside").symlink_to(tmp_path / "other")
    (sweep / "notes.txt").symlink_to(sweep / "sweep.json")
    (sweep / "000" / "figures").mkdir()
    assert collect(sweep, tmp_path / "other").skipped == []
    assert len(collect(sweep).skipped) == 1


def test_older_records_may_lack_newer_keys(sweep):
    without("config", "train.schedule")(sweep)
    assert load_runs(sweep)["train.schedule"].isna().tolist() == [True] + [False] * 5


def test_whole_numbers_may_be_written_as_decimals(sweep):
    config_with("flow.n_flows", 3.0)(sweep)
    config_with("train.lr", 1)(sweep)
    runs = load_runs(sweep)
    assert runs["flow.n_flows"].dtype == np.int64 and runs["train.lr"][0] == 1.0


def test_unknown_configuration_keys_are_columns(sweep):
    config_with("odd.key", 5)(sweep)
    runs = load_runs(sweep)
    assert runs["odd.key"][0] == 5 and [*runs][2 + len(CONFIG)] == "odd.key"


def test_histories(sweep):
    runs = load_runs(sweep)
    curves = load_histories(runs)
    assert [*curves] == ["job", "dir", "step", "train_nll", "val_nll", "grad_norm", "lr"]
    expected = pd.read_csv(sweep / "003" / "history.csv")
    found = curves[curves["job"] == "003"].drop(columns=["job", "dir"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert list(dict.fromkeys(curves["dir"])) == runs["dir"].tolist()
    for job in runs["job"]:
        (sweep / job / "history.csv").unlink()
    assert load_histories(runs).empty and [*load_histories(runs)] == [*curves]


HEAD = "step,train_nll,val_nll,grad_norm,lr\n"
HISTORIES = ["", "step,train_nll\n1,2\n", HEAD + "1,2,3,4,x\n", HEAD + "1,2,3,4,5\n1,2\n", "\x00\n1,2,3,4,5\n"]


@pytest.mark.parametrize("content", HISTORIES)
def test_a_bad_history_is_skipped(sweep, content, caplog):
    (sweep / "002" / "history.csv").write_text(content)
    skipped = []
    curves = load_histories(load_runs(sweep), skipped=skipped)
    assert curves["job"].nunique() == 5 and len(skipped) == 1
    assert caplog.messages == [f"skipped: {skipped[0]}"] and "002/history.csv: expected " in caplog.text


def test_a_history_without_rows_adds_none(sweep):
    (sweep / "002" / "history.csv").write_text("step,train_nll,val_nll,grad_norm,lr\n")
    assert "002" not in set(load_histories(load_runs(sweep))["job"])


def test_arrays(tmp_path):
    config = centre(record__grid=16, record__walk=50, record__samples=30)
    arrays = load_arrays(write_run(tmp_path / "run", config, {}, "completed"))
    assert arrays["snapshots"].shape == (13, 30, 2) and arrays["grid_log_q"].shape == (16, 16)
    assert arrays["walk"].shape == (8, 50, 2) and arrays["walk_names"].tolist()[:2] == ["base", "coupling 6"]
    assert [*load_arrays(tmp_path / "run", only=("walk",))] == ["walk"]


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def pickled(path):
    np.savez(path, best=np.array([Trap()], dtype=object), allow_pickle=True)


HOSTILE = {
    "pickle": pickled,
    "no archive": lambda path: path.write_bytes(b"hello"),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: (np.savez(path, x=np.zeros(1000)), path.write_bytes(path.read_bytes()[:500])),
    "bare pickle": lambda path: path.write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00."),
    "bare array": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x02\x00{}"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_arrays(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    HOSTILE[case](tmp_path / "samples.npz")
    with pytest.raises(ReportError, match="expected an archive of plain arrays"):
        load_arrays(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_write_csv(sweep, tmp_path):
    runs = load_runs(sweep)
    write_csv(runs.drop(columns="dir"), tmp_path / "runs.csv")
    back = pd.read_csv(tmp_path / "runs.csv", converters={"kl": float})  # pandas 2 reads digits less exactly
    assert back["kl"].tolist() == runs["kl"].tolist() and back["job"].tolist() == [f"./{job}" for job in runs["job"]]
    assert ",2000,500," in (tmp_path / "runs.csv").read_text()  # counts stay whole
    write_csv(runs[:1], tmp_path / "runs.csv")
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 1 and not list(tmp_path.glob(".*"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "runs.csv").write_text("old")

    class Unwritable:
        def __str__(self):
            raise OSError("no")

    with pytest.raises(OSError):
        write_csv(pd.DataFrame({"x": [Unwritable()]}), tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_text() == "old" and not list(tmp_path.glob(".*"))


def test_two_thousand_runs(tmp_path):
    runs = [({"seed": s, "flow.n_flows": n}, {}, "completed") for n in range(1, 11) for s in range(200)]
    folder = write_sweep(tmp_path, runs, arrays=False)
    table = load_runs(folder)
    assert len(table) == 2000 and table.groupby("flow.n_flows")["seed"].nunique().eq(200).all()
    assert len(load_histories(table)) > 2000


def test_ablation_sweep_keeps_the_contract(tmp_path):
    runs = load_runs(ablation_sweep(tmp_path, seeds=1, targets=("spiral4",)))
    assert runs["data.name"].eq("spiral4").all() and runs["kl"].notna().all()
    assert (runs["test_nll"] - runs["true_nll"]).tolist() == pytest.approx(runs["kl"].tolist())
    assert "grid_log_p" in load_arrays(runs["dir"][0])


def test_no_torch():
    modules = "nfexp.analysis.table, nfexp.analysis.statistics, nfexp.analysis.claims"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
