"""What quantize/hub/compat.py relies on in huggingface_hub.

A failure here is not to be patched over: read the reasons there, see which parts can go, then move the bound in
pyproject.toml.
"""

from __future__ import annotations

import inspect
import io
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download, get_session, set_client_factory
from huggingface_hub.utils import _http, build_hf_headers

from quantize.hub import compat


def test_the_release_is_the_one_that_was_read() -> None:
    assert huggingface_hub.__version__.startswith("2.4."), "quantize/hub/compat.py was checked against 2.4"


def test_a_download_still_cannot_be_resumed_by_another_process() -> None:
    """The exit condition of `resume_download`: a name that no other process knows, and removed on failure."""
    source = inspect.getsource(file_download._download_to_tmp_and_move)
    assert "uuid.uuid4()" in source
    assert "finally:\n        # No-op on success" in source
    assert "tmp_path.unlink(missing_ok=True)" in source


def test_http_get_takes_what_it_is_given_and_leaves_a_whole_file_alone() -> None:
    parameters = inspect.signature(file_download.http_get).parameters
    assert list(parameters)[:2] == ["url", "temp_file"]
    assert {"resume_size", "headers", "expected_size"} <= parameters.keys()
    # No request is made for it: the address is nowhere.
    compat.resume_download("http://127.0.0.1:9/", io.BytesIO(b"all"), resume_size=3, expected_size=3)


def test_the_constants_are_read_when_a_file_is_downloaded() -> None:
    source = inspect.getsource(file_download.http_get)
    for name in ("DOWNLOAD_CHUNK_SIZE", "HF_HUB_DOWNLOAD_TIMEOUT", "MAX_HTTP_DOWNLOAD_SIZE"):
        assert f"constants.{name}" in source
    assert compat.largest_download() == constants.MAX_HTTP_DOWNLOAD_SIZE == 50 * 1000**3


def test_a_client_has_the_hooks_of_the_library_and_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", constants.HF_HUB_DOWNLOAD_TIMEOUT)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", constants.DOWNLOAD_CHUNK_SIZE)

    def ours(_: object) -> None: ...

    try:
        compat.use_client(lambda client: client.event_hooks["request"].append(ours), timeout_s=1, chunk_bytes=2)
        assert get_session().event_hooks["request"] == [_http.hf_request_event_hook, ours]
        assert "response" in get_session().event_hooks
    finally:
        set_client_factory(_http.default_client_factory)


def test_headers_are_those_of_the_library() -> None:
    assert compat.request_headers() == build_hf_headers()


def test_blobs_and_locks_are_where_the_library_looks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    storage = tmp_path / file_download.repo_folder_name(repo_id="owner/name", repo_type="model")
    assert compat.storage_folder("owner/name") == storage
    source = inspect.getsource(file_download._hf_hub_download_to_cache_dir)
    assert 'locks_dir = os.path.join(cache_dir, ".locks")' in source
    assert 'blob_path = os.path.join(storage_folder, "blobs", etag)' in source
    assert 'os.path.join(locks_dir, repo_folder_name(repo_id=repo_id, repo_type=repo_type), f"{etag}.lock")' in source
    assert compat.blob_lock(storage / "blobs" / "abc") == tmp_path / ".locks" / storage.name / "abc.lock"
