"""Every error a user can see, and who owns its status, type and code.

    ConfigiError                     500 server_error
    ├── InvalidRequest               400 invalid_request_error
    │   ├── UnsupportedField         400 unsupported_field
    │   ├── ContextLengthExceeded    400 context_length_exceeded
    │   ├── ResponseCancelled        400 response_cancelled
    │   ├── PreviousResponseNotFound 400 previous_response_not_found
    │   ├── RequestTooSlow           408 request_timeout
    │   ├── BodyTooLarge             413 body_too_large
    │   ├── UnsupportedMediaType     415 unsupported_media_type
    │   └── HeaderTooLarge           431 header_too_large
    ├── AuthenticationFailed         401 authentication_error
    ├── Forbidden                    403 permission_error
    ├── NotFound                     404 not_found_error
    │   └── ModelNotFound            404 model_not_found
    ├── MethodNotAllowed             405 invalid_request_error
    ├── Overloaded                   503 overloaded_error, with Retry-After
    │   ├── QueueFull                503 queue_full
    │   ├── QueueTimeout             503 queue_timeout
    │   ├── ModelLoading             503 model_loading
    │   └── ShuttingDown             503 shutting_down
    ├── ModelUnavailable             503 model_unavailable: it will not come up by waiting
    │   └── InsufficientMemory       503 insufficient_memory
    └── EngineFailed                 500 engine_failed: the engine process died or hung with this request in it

`SetupError` is not among them: it never reaches a client, only the terminal (exit code 1, one sentence).

Messages are written for the person who sent the request: no paths, no addresses, no tracebacks.
"""

from __future__ import annotations

from typing import ClassVar

# What a client is told of an error that nobody thought of; the log has the rest.
_UNFORESEEN = "The server failed at this request; its log has the reason."


class SetupError(Exception):
    """The command cannot run as asked: one sentence on stderr, exit code 1."""


class ConfigiError(Exception):
    """An error with an HTTP answer, as data; the dialect of its path words it.

    `message` is one clear sentence; `param` names the field at fault.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    # Seconds for the Retry-After header; None sends none.
    retry_after: int | None = None
    # False tells OpenAI SDKs not to send the same request again (`x-should-retry`).
    retryable: ClassVar[bool] = True

    def __init__(self, message: str = _UNFORESEEN, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if retry_after is not None:
            self.retry_after = retry_after


class InvalidRequest(ConfigiError):
    status = 400
    type = "invalid_request_error"


class UnsupportedField(InvalidRequest):
    code = "unsupported_field"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ResponseCancelled(InvalidRequest):
    """Its client asked for that, by another request."""

    code = "response_cancelled"


class PreviousResponseNotFound(InvalidRequest):
    """OpenAI's own code: a client that sees it sends the whole conversation anew."""

    code = "previous_response_not_found"


class RequestTooSlow(InvalidRequest):
    status = 408
    code = "request_timeout"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "body_too_large"


class UnsupportedMediaType(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class HeaderTooLarge(InvalidRequest):
    status = 431
    code = "header_too_large"


class AuthenticationFailed(ConfigiError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(ConfigiError):
    status = 403
    type = "permission_error"


class NotFound(ConfigiError):
    status = 404
    type = "not_found_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ConfigiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Overloaded(ConfigiError):
    status = 503
    type = "overloaded_error"
    retry_after = 5


class QueueFull(Overloaded):
    code = "queue_full"


class QueueTimeout(Overloaded):
    code = "queue_timeout"


class ModelLoading(Overloaded):
    code = "model_loading"


class ShuttingDown(Overloaded):
    code = "shutting_down"


class ModelUnavailable(ConfigiError):
    status = 503
    code = "model_unavailable"
    retryable = False


class InsufficientMemory(ModelUnavailable):
    code = "insufficient_memory"


class EngineFailed(ConfigiError):
    code = "engine_failed"
