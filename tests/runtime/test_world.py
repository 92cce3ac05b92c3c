"""Which device a process gets; the GPUs are simulated."""

import pytest
import torch

from erk.runtime.distributed import check_device, pick_device


@pytest.fixture
def two_gpus(monkeypatch):
    """The GPUs that were made current."""
    current = []
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize(
    ("environment", "index"),
    [({}, 0), ({"LOCAL_RANK": "1"}, 1), ({"SLURM_LOCALID": "3"}, 1),
     ({"LOCAL_RANK": "0", "SLURM_LOCALID": "1"}, 0)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_every_process_gets_its_own_gpu_which_is_current(
    name, environment, index, two_gpus, monkeypatch
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert pick_device(name) == torch.device("cuda", index)
    assert two_gpus == [torch.device("cuda", index)]


def test_more_processes_than_gpus_are_an_error(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 on this machine has no GPU: 2 are"):
        pick_device("cuda")


def test_a_gpu_that_cannot_be_used_is_an_error(two_gpus, monkeypatch):
    def busy(device):
        raise RuntimeError("CUDA error: all devices are busy.\nmore")

    monkeypatch.setattr(torch.cuda, "set_device", busy)
    with pytest.raises(ValueError, match=r"^GPU 0 cannot be used \(CUDA error: .* busy\); free"):
        pick_device("auto")


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'cuda' is not available .* use the device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("device", ["auto", "gpu", "cuda:x"])
def test_what_is_no_device_is_a_sentence(device):
    """J: PyTorch lists all its devices in a RuntimeError."""
    with pytest.raises(ValueError, match=f"'{device}' is no device: give cpu, cuda, cuda:N or mps"):
        check_device(device)
