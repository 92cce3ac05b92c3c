"""Files of the Hugging Face hub: hf:// addresses."""

from unittest.mock import Mock

import pytest
from download_site import BODY, HASH

from erk.io.download import fetch


def test_hub_files(tmp_path, monkeypatch):
    calls = []

    def download(repo, file, **options):
        calls.append((repo, file, options["revision"], options["local_files_only"]))
        (tmp_path / "blob").write_bytes(BODY)
        link = tmp_path / str(len(calls))
        link.symlink_to("blob")
        return str(link)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fetch("hf://me/nets/a/b.pkl@refs/pr/1", HASH).read_bytes() == BODY
    assert calls == [("me/nets", "a/b.pkl", "refs/pr/1", False)]
    with pytest.raises(ValueError, match="expected"):
        fetch("hf://me/nets/b.pkl", "0" * 64)
    assert not any(path.is_file() for path in tmp_path.iterdir())  # neither the link nor its blob


def test_hub_failures_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="hf://me/nets/b.pkl is not in the cache"):
        fetch("hf://me/nets/b.pkl", offline=True, cache=tmp_path)
    failure = RuntimeError("many\nlines\nof another library")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=failure))
    with pytest.raises(OSError, match=r"be downloaded \(RuntimeError\): check its name") as caught:
        fetch("hf://me/nets/b.pkl", cache=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_hub_that_falls_silent_is_given_up(site, tmp_path, monkeypatch):
    """J: the hub's library has no watchdog like ours, but its read timeout ends the wait.

    It tries six times, a second apart; its 10 s without a byte are 0.2 s here.
    """
    from huggingface_hub import constants

    site.faults = ["stall"] * 9
    address = site.url.removesuffix("/models/net.pkl")
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(OSError, match=r"be downloaded \(ReadTimeout\): check its name") as caught:
        fetch("hf://me/nets/b.pkl", HASH, cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert len(site.asked) == 6
    assert not list(tmp_path.rglob("*.pkl"))
    site.faults = []
    assert fetch("hf://me/nets/b.pkl", HASH, cache=tmp_path).read_bytes() == BODY
