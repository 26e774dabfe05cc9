"""A process that trains notices that its sweep is led by nobody any more."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfexp.sweep import stopping
from nfexp.sweep.stopping import HOLDER, following, is_asked_to_stop, leader, this_process


def test_a_sweep_is_led_by_a_process_that_lives(tmp_path):
    def says(name):
        (tmp_path / HOLDER).write_text(name)
        return leader(tmp_path)

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    assert says(f"process {os.getpid()} on {here}") == f"process {os.getpid()} on {here}"
    assert says(f"process {gone.pid} on {here}") == ""
    assert says("process 1 on elsewhere") == "process 1 on elsewhere"  # cannot be looked for from here
    assert says("nobody") == "" and leader(tmp_path / "absent") == ""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_zombie_leads_nothing(tmp_path):
    leading = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"process {leading.pid} on {socket.gethostname()}"
    (tmp_path / HOLDER).write_text(name)
    assert leader(tmp_path) == name
    leading.kill()
    os.waitid(os.P_PID, leading.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    os.kill(leading.pid, 0)
    assert leader(tmp_path) == ""
    leading.communicate()


def test_what_follows_a_sweep_stops_with_its_leader(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "LOOK_SECONDS", 0.01)
    me = this_process()
    (tmp_path / HOLDER).write_text(me)
    with following(str(tmp_path), me):
        time.sleep(0.1)
        assert not is_asked_to_stop()
        (tmp_path / HOLDER).unlink()
        deadline = time.monotonic() + 10
        while not is_asked_to_stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_asked_to_stop()
    assert not is_asked_to_stop()
