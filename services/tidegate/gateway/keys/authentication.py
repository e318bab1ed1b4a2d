"""Finds the caller of a request by its API key, and keeps the keys up to date with their file."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final

from tidegate.gateway.callers import Reservation
from tidegate.gateway.errors import ApiError, ErrorType, shortened
from tidegate.gateway.keys.key_file import ApiKey, KeyFileError, read_keys
from tidegate.gateway.keys.limits import Budget, Limits
from tidegate.gateway.observing.metrics import KEY_RELOADS
from tidegate.gateway.request_headers import ReadHeaders
from tidegate.runtime.logging import get_logger

__all__ = ["ApiKeys", "KeyCaller"]

_log = get_logger(__name__)

_BEARER: Final = b"bearer "
_CHECK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class KeyCaller:
    """Whoever has a key; implements `tidegate.gateway.callers.Caller`.

    Attributes:
        name: The name of the key.
        key: Its entry in the file.
        limits: Its limits.
    """

    name: str
    key: ApiKey
    limits: Limits

    def check_model(self, model: str) -> None:
        """Checks that the key may use a model.

        Raises:
            ApiError: It may not.
        """
        if not self.may_see(model):
            allowed = ", ".join(self.key.models or ()) or "none"
            raise ApiError(
                HTTPStatus.FORBIDDEN,
                f"this API key may not use the model {shortened(model, 80)!r}; it may use:"
                f" {shortened(allowed)}",
                ErrorType.PERMISSION,
                "model_not_allowed",
                "model",
            )

    def may_see(self, model: str) -> bool:
        """Tells whether the key may use a model."""
        return self.key.models is None or model in self.key.models

    def reserve(self, tokens: int) -> Reservation:
        """Takes one request and its tokens from the budget of the key.

        Raises:
            ApiError: A limit is reached.
        """
        return self.limits.reserve(tokens)


class ApiKeys:
    """The keys of a file.

    Args:
        path: The file.
        clock: Gives the time for limits, in seconds.
        now: Gives the date and time for the end of keys.

    Raises:
        KeyFileError: The file is invalid.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._path = path
        self._clock = clock
        self._now = now
        self._callers: Mapping[bytes, KeyCaller] = {}
        self._version = self._version_of_file()
        self._take(read_keys(path))
        for result in ("taken", "refused"):
            KEY_RELOADS.labels(result)

    def caller_of(self, headers: ReadHeaders) -> KeyCaller:
        """Returns who sent a request.

        Raises:
            ApiError: Its key is missing, wrong, disabled or expired.
        """
        digest = hashlib.sha256(_key_in(headers)).digest()
        # How long the lookup takes depends on the hash alone, and nobody can choose the hash of a
        # key that they do not have.
        found = self._callers.get(digest)
        if found is None or not hmac.compare_digest(bytes.fromhex(found.key.sha256), digest):
            raise _unauthorized("the API key is wrong")
        if found.key.disabled:
            raise _unauthorized("the API key is disabled")
        if found.key.expires is not None and found.key.expires <= self._now():
            raise _unauthorized("the API key has expired")
        return found

    async def follow(self, interval_s: float = _CHECK_S) -> None:
        """Looks for edits of the file until cancelled.

        Args:
            interval_s: Seconds between two looks.
        """
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self.reload)

    def reload(self) -> bool:
        """Looks for an edit now; returns whether there was one and it counts.

        An invalid file leaves the keys as they are.
        """
        version = self._version_of_file()
        if version == self._version:
            return False
        self._version = version
        try:
            keys = read_keys(self._path)
        except KeyFileError as error:
            KEY_RELOADS.labels("refused").inc()
            _log.error("edit of the API keys refused", error=str(error), keys=len(self._callers))
            return False
        self._take(keys)
        KEY_RELOADS.labels("taken").inc()
        _log.info("API keys read", file=str(self._path), keys=len(keys))
        return True

    def _take(self, keys: tuple[ApiKey, ...]) -> None:
        known = {each.name: each.limits for each in self._callers.values()}
        self._callers = {
            bytes.fromhex(key.sha256): KeyCaller(
                key.name, key, self._limits(key, known.get(key.name))
            )
            for key in keys
        }

    def _limits(self, key: ApiKey, before: Limits | None) -> Limits:
        return Limits(
            self._budget(key.requests_per_minute, before.requests if before else None),
            self._budget(key.tokens_per_minute, before.tokens if before else None),
        )

    def _budget(self, per_minute: int | None, before: Budget | None) -> Budget | None:
        """Makes a budget; one whose limit has not changed keeps what is left of it."""
        if before is not None and before.per_minute == per_minute:
            return before
        return None if per_minute is None else Budget(per_minute, self._clock)

    def _version_of_file(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _key_in(headers: ReadHeaders) -> bytes:
    authorization = headers.authorization
    if authorization is not None:
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise _unauthorized("the header authorization does not begin with Bearer")
        return authorization[len(_BEARER) :].strip()
    if headers.api_key is not None:
        return headers.api_key
    raise _unauthorized("no API key was sent")


def _unauthorized(problem: str) -> ApiError:
    # Type and code are those of OpenAI, which does not use its authentication_error here.
    return ApiError(
        HTTPStatus.UNAUTHORIZED,
        f"{problem}; send `Authorization: Bearer KEY` with a key of this gateway",
        ErrorType.INVALID_REQUEST,
        "invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )
