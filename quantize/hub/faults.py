"""What went wrong with the Hub, as one sentence for the user.

huggingface_hub raises its own errors, those of its HTTP library and plain ones, and often wraps the cause; here all
of them become a `HubError`. The sentences contain no paths: those are in the log.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from json import JSONDecodeError

from quantize.errors import HubError, SourceError


def explain(error: BaseException, repo: str) -> HubError:
    """`error` as a sentence: the first of it and its causes that is known."""
    if isinstance(error, HubError):
        return error
    if isinstance(error, SourceError):
        return HubError(error.message, retryable=error.retryable)
    for cause in _causes(error):
        if failed := _from_hub(cause, repo, direct=cause is error) or _from_network(cause) or _from_disk(cause):
            return failed
    return HubError(f"Fetching {repo} failed ({type(error).__name__}).", retryable=True)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then its causes."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _from_hub(error: BaseException, repo: str, *, direct: bool) -> HubError | None:
    from huggingface_hub import errors

    match error:
        # Gated is a subclass of not found: first.
        case errors.GatedRepoError():
            page = f"huggingface.co/{repo}"
            message = f"{repo} is gated: accept its licence at {page}, then set HF_TOKEN to a token of that account."
            return HubError(message, retryable=False)
        case errors.RevisionNotFoundError():
            return HubError(f"The Hub has {repo}, but not the revision asked for.", retryable=False)
        case errors.RepositoryNotFoundError():
            message = f"The Hub has no repository {repo}, or it is private and needs HF_TOKEN."
            return HubError(message, retryable=False)
        case errors.RemoteEntryNotFoundError():
            return HubError(f"A file that {repo} lists is not on the Hub.", retryable=False)
        case errors.HFValidationError():
            return HubError(f"'{repo}' is not the name of a Hub repository.", retryable=False)
        case errors.OfflineModeIsEnabled():
            return HubError(f"{repo} is not on this machine, and the Hub is switched off here.", retryable=False)
        case errors.FileMetadataError() | JSONDecodeError():
            message = "The answer is not the Hub's: a login page or proxy of this network seems to be in between."
            return HubError(message, retryable=True)
        case errors.HfHubHTTPError():
            return _from_status(error.response.status_code, error.response.url.path, direct=direct)
    return None


def _from_status(status: int, path: str, *, direct: bool) -> HubError:
    if status == 401:
        where = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "the token is the one saved by `hf auth login`"
        return HubError(f"The Hub rejected the token; {where}.", retryable=False)
    if status == 403 and path.startswith("/api/"):
        return HubError("The Hub refused access (403); the token may lack the permission.", retryable=False)
    if status == 429:
        # For a file huggingface_hub has waited and retried itself; for the repository's description it has not.
        return HubError("The Hub is limiting requests (429); try again later.", retryable=True, again=direct)
    # 403 on a file is an expired download link. huggingface_hub has retried a wrapped error already.
    return HubError(f"The Hub answered {status}.", retryable=status >= 500 or status == 403, again=direct)


def _from_network(error: BaseException) -> HubError | None:
    import httpx2

    match error:
        case httpx2.TimeoutException():
            return HubError("The Hub stopped answering.", retryable=True)
        case httpx2.ConnectError():
            return HubError("The Hub cannot be reached.", retryable=True, again=True)
        case httpx2.ProxyError():
            return HubError("The proxy to the Hub refused the connection.", retryable=True)
        case httpx2.ReadError():
            # A reset connection: huggingface_hub 2.4 resumes only after a clean cut.
            return HubError("The connection to the Hub was cut repeatedly.", retryable=True, again=True)
        case httpx2.TransportError():
            return HubError("The connection to the Hub was cut repeatedly.", retryable=True)
    return None


def _from_disk(error: BaseException) -> HubError | None:
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError("The disk became full while fetching.", retryable=True)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return HubError("The Hub's cache folder cannot be written; HF_HOME sets another.", retryable=False)
    if "Consistency check failed" in str(error):
        return HubError("A file arrived with the wrong size.", retryable=True, again=True)
    return None
