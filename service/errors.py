"""The error tree. Every message says what was found, what was expected, and what to do."""

from __future__ import annotations

MOST_CHARACTERS = 500


def shorten(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, cut where it is long: what a stranger sends must not come back, or be kept, at any length."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


class SurgsegError(Exception):
    """An error a user can act on. `slug` names the problem type, `status` is its HTTP status."""

    slug = "internal-error"
    title = "Internal error"
    status = 500

    def __init__(self, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{found} Expected {expected}. {remedy}")
        self.found = found
        self.expected = expected
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[SurgsegError], tuple[str, str, str]]:
        return type(self), (
            self.found,
            self.expected,
            self.remedy,
        )  # pickling would pass on the message alone


class BundleError(SurgsegError):
    """The bundle cannot be trusted or opened; ends start-up."""

    slug = "invalid-bundle"
    title = "The model bundle cannot be used"


class BackendError(SurgsegError):
    """The runtime is missing or failed; a failure after start-up ends the process."""

    slug = "backend-failed"
    title = "The inference backend failed"


class InvalidPictureError(SurgsegError):
    """Bytes that are not a picture we can decode."""

    slug = "invalid-picture"
    title = "The picture cannot be decoded"
    status = 422


class PayloadTooLargeError(SurgsegError):
    """More bytes or more pixels than the limits allow."""

    slug = "payload-too-large"
    title = "The picture is too large"
    status = 413


class InvalidRequestError(SurgsegError):
    """A parameter, header or message of the wrong form."""

    slug = "invalid-request"
    title = "The request is not valid"
    status = 400


class UnauthorizedError(SurgsegError):
    """No token came, or none that is valid here."""

    slug = "unauthorized"
    title = "A valid token is needed"
    status = 401


class ForbiddenError(SurgsegError):
    """Something that this service's operator does not allow."""

    slug = "forbidden"
    title = "This is not allowed here"
    status = 403


class NotFoundError(SurgsegError):
    """There is nothing by that name."""

    slug = "not-found"
    title = "There is no such thing"
    status = 404


class ConflictError(SurgsegError):
    """What is asked for does not go with what the service is doing now, or has done."""

    slug = "conflict"
    title = "This cannot be done now"
    status = 409


class SwapRefusedError(SurgsegError):
    """Another bundle was not put in the place of the one that serves, which goes on."""

    slug = "swap-refused"
    title = "The model was not changed"
    status = 422


class UnavailableError(SurgsegError):
    """The service cannot take this now: the stream limit is reached, or it is draining."""

    slug = "unavailable"
    title = "The service cannot take this request now"
    status = 503


class OverloadedError(SurgsegError):
    """One more stream would break the promise to those already served; `retry_after_s` is when to try again."""

    slug = "overloaded"
    title = "The service has no room for this stream now"
    status = 503

    def __init__(self, found: str, expected: str, remedy: str, retry_after_s: float = 5.0) -> None:
        super().__init__(found, expected, remedy)
        self.retry_after_s = retry_after_s


class TooManyRequestsError(SurgsegError):
    """A token's own limit is met; `retry_after_s` is when to try again."""

    slug = "too-many-requests"
    title = "This token's limit is met"
    status = 429

    def __init__(self, found: str, expected: str, remedy: str, retry_after_s: float = 1.0) -> None:
        super().__init__(found, expected, remedy)
        self.retry_after_s = retry_after_s


class StreamError(SurgsegError):
    """A stream ended because of its own content or source; other streams do not notice."""

    slug = "stream-failed"
    title = "The stream failed"
    status = 422


class DataError(SurgsegError):
    """A data set, split or recipe is not what it claims to be (offline commands only)."""

    slug = "invalid-data"
    title = "The data cannot be used"
    status = 422
