"""Which GPU a process takes, on a machine that is said to have some."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch

from rmu_exp.support import devices

OTHER = """
import sys, torch
from types import SimpleNamespace
torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
torch.cuda.get_device_properties = lambda index: SimpleNamespace(uuid=f"GPU-{index}")
from rmu_exp.support import devices
print(devices.automatic(), devices.automatic(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Says how many there are."""

    def there_are(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "TAKEN", [])
    devices.automatic.cache_clear()
    yield there_are
    devices.automatic.cache_clear()


@pytest.mark.parametrize(("count", "device"), [(0, "cpu"), (1, "cuda"), (4, "cuda:0")])
def test_the_first_gpu_where_there_is_one(gpus, count, device):
    gpus(count)
    assert devices.automatic() == device


def test_processes_take_one_gpu_each_until_they_end(gpus):
    gpus(2)
    asked = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first, second, third = (subprocess.Popen([sys.executable, "-c", OTHER], **asked) for _ in range(3))
    said = [process.stdout.readline().split() for process in (first, second, third)]
    assert all(a == b for a, b in said)
    assert {device for device, _ in said} == {"cuda:0", "cuda:1"}
    for process in (first, second, third):
        process.communicate("")
    assert devices.automatic() == "cuda:0"
