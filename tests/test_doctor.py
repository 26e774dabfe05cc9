"""`nfexp-doctor` says what there is, and what it lacks."""

from importlib.metadata import version

import pytest

from nfexp import doctor


@pytest.mark.parametrize("lacks", ["", "numba"])
def test_what_the_doctor_says(capsys, monkeypatch, lacks):
    monkeypatch.setattr("nfexp.flows.kernels.missing", lambda: f"{lacks} cannot be imported" if lacks else None)
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {line[2:].split("  ")[0].strip(): line for line in lines}
    for name in ("nfexp", "python", "torch", "cores", "BLAS", "device", "executor slurm", "tracker mlflow", "disk"):
        assert name in said, name
    assert version("torch") in said["torch"] and said["executor local"].endswith(" yes")
    assert said["fused kernel"].startswith("!" if lacks else " ")
