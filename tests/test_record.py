"""The formats of result.json and sweep.json: what is written is what the list says, and is read back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nfexp.record import outcome, write_run
from nfexp.record.metrics import COUNTS, HISTORY, METRICS
from nfexp.record.plan import Plan, read_plan, require_commands
from nfexp.record.result import parse_result
from nfexp.run import run_stack
from nfexp.spec import SpecError
from tests.helpers import fake_sweep
from tests.helpers.specs import small_spec


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (result,) = run_stack([small_spec(train__steps=2, train__warmup=0)])
    write_run(folder, result)
    return folder


def test_every_metric_is_listed_and_measured(written):
    path = written / "result.json"
    record = parse_result(path, path.read_bytes())
    assert record["metrics"].keys() == METRICS.keys()
    whole = {name for name, value in record["metrics"].items() if isinstance(value, int)}
    assert whole <= set(COUNTS)
    assert (written / "history.csv").read_text().partition("\n")[0] == ",".join(HISTORY)


def test_the_order_of_columns_is_a_contract():
    assert list(METRICS) == list(fake_sweep.METRICS)


def test_the_page_of_columns_says_the_same():
    page = Path(__file__).parents[1] / "docs" / "columns.md"
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(name, metric.meaning) for name, metric in METRICS.items()]


BROKEN = {
    "no JSON": ("{", "expected readable JSON; got .*"),
    "a list": ("[]", "expected a JSON object; got list"),
    "newer": ('{"schema_version": 2}', "expected schema_version at most 1; got 2"),
    "no identity": (
        '{"schema_version": 1, "status": "failed", "config": {}, "metrics": {}}',
        "expected the record of a run; got 'run_id'",
    ),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_record_has_no_outcome(tmp_path, text, message):
    assert outcome(tmp_path) is None
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(SpecError, match=f"result.json: {message}$"):
        outcome(tmp_path)


def test_a_record_that_is_a_link_is_refused(written, tmp_path):
    (tmp_path / "result.json").symlink_to(written / "result.json")
    with pytest.raises(SpecError, match=r"expected a readable file; got a symbolic link$"):
        outcome(tmp_path)


def test_a_plan_of_an_early_version_can_be_read_but_not_gone_on_with(tmp_path):
    job = {"job": "0", "data.name": "moons", "seed": 0, "config": {}}
    document = {"schema_version": 1, "name": "x", "centres": {"moons": {}}, "jobs": [job]}
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    plan = read_plan(tmp_path)
    assert plan == Plan(name="x", centres={"moons": {}}, jobs=[job])
    with pytest.raises(SpecError, match="expected job 0 to have a run_id and overrides that are text"):
        require_commands(tmp_path, plan)


def test_records_are_read_without_torch():
    code = "import sys, nfexp.record; assert not {'torch', 'pandas', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
