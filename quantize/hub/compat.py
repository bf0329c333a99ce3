"""Every part of huggingface_hub that is touched and not public, each with its reason and what would make it go.

Checked against 2.4, which pyproject.toml holds it to; tests/quantize/hub/test_compat.py fails at another release.
Nothing is imported before it is needed: huggingface_hub costs a quarter of a second at start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from quantize.names import checked_name, checked_path

if TYPE_CHECKING:
    import httpx2


def resume_download(url: str, into: BinaryIO, *, resume_size: int, expected_size: int) -> None:
    """`file_download.http_get`, into a file that is open at its end.

    Why: `hf_hub_download` downloads to a new file in each process and deletes it on failure, so that nothing is left to
    resume from after a kill. It goes when `hf_hub_download` resumes what another process left.
    """
    from huggingface_hub.file_download import http_get

    http_get(url, into, resume_size=resume_size, headers=request_headers(), expected_size=expected_size)


def request_headers() -> dict[str, str]:
    """`utils.build_hf_headers`: user agent and token. It goes when there is a public way to read a range of a file."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: dict[str, str] = build_hf_headers()
    return headers


def largest_download() -> int:
    """`constants.MAX_HTTP_DOWNLOAD_SIZE`: what the Hub gives over HTTP. It goes with `resume_download`."""
    from huggingface_hub import constants

    return constants.MAX_HTTP_DOWNLOAD_SIZE


def use_client(adapt: Callable[[httpx2.Client], None], *, timeout_s: float, chunk_bytes: int) -> None:
    """`utils._http.default_client_factory`, with `adapt` applied to each client, and two of its constants.

    Why: `list_repo_tree` takes no timeout, and downloads hand on 10 MB at a time: on a slow line a minute without
    progress, and lost by a kill. It goes when both are parameters.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def client() -> httpx2.Client:
        made = default_client_factory()
        adapt(made)
        return made

    set_client_factory(client)
    constants.HF_HUB_DOWNLOAD_TIMEOUT = timeout_s  # type: ignore[assignment]
    constants.DOWNLOAD_CHUNK_SIZE = chunk_bytes


def cache_folder() -> Path:
    """`constants.HF_HUB_CACHE`, where HF_HOME and HF_HUB_CACHE point. It goes when there is a function for it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def storage_folder(repo: str, kind: str = "model") -> Path:
    """Where `repo` is in the cache: blobs/SHA256, snapshots/COMMIT/FILE, refs/REVISION. `kind`: or "dataset".

    Why: our transfers put their blobs where every other tool finds them. It goes with `resume_download`.
    """
    return cache_folder() / checked_name(f"{kind}s--{checked_path(repo).replace('/', '--')}")


def blob_lock(blob: Path) -> Path:
    """The file that huggingface_hub locks while it downloads `blob`. It goes with `resume_download`."""
    storage = blob.parent.parent
    return storage.parent / ".locks" / checked_name(storage.name) / checked_name(f"{blob.name.split('.')[0]}.lock")
