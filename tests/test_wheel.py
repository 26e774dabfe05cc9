"""The wheel carries its configuration and plugins: a sweep runs from it in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_sweep_runs_from_the_wheel_in_an_empty_folder(tmp_path, small_args):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path / "dist"), str(ROOT)], check=True, timeout=300)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    empty.mkdir()
    assert not [n for n in names if n.startswith(("tests/", "outputs/", "docs/"))]
    command = [sys.executable, "-m", "nfexp", "-m", *small_args, "record=lean", "seed=0,1"]
    wheel_only = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=empty, env=wheel_only, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (sweep,) = (empty / "outputs/sweeps/adhoc").iterdir()
    assert (sweep / "0001/result.json").is_file() and (sweep / "report.html").is_file()
    where = [sys.executable, "-c", "import nfexp; print(nfexp.__file__)"]
    found = subprocess.run(where, cwd=empty, env=wheel_only, capture_output=True, text=True)
    assert found.stdout.startswith(str(site))
