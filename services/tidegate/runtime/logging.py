"""Logs: one event a line on stderr, with its facts as keys.

Tidegate logs with structlog. Libraries (vLLM, OpenVINO, gRPC) log with the standard `logging`, and
their lines take the same form. A line that is logged during a call carries the `call_fields` of the
call, such as its method, and the ids of its trace when the caller is traced.

    log = get_logger(__name__)
    log.info("model loaded", model="efficientnet", seconds=1.2)
"""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Final

import structlog
from opentelemetry import trace

from tidegate.runtime.settings import LogFormat, LogLevel

__all__ = ["adopt_library_loggers", "call_fields", "configure", "get_logger"]

_NO_FIELDS: Final[Mapping[str, object]] = {}

call_fields: Final[ContextVar[Mapping[str, object]]] = ContextVar(
    "tidegate_log_call_fields", default=_NO_FIELDS
)
"""Fields of the current call, such as its method; each line that is logged in it carries them."""


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Gives the logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure(level: LogLevel = LogLevel.INFO, form: LogFormat = LogFormat.JSON) -> None:
    """Sends all log lines to stderr in one form.

    Args:
        level: Least severe events that are logged.
        form: JSON for programs or console for people.
    """
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form is LogFormat.JSON
        else structlog.dev.ConsoleRenderer()
    )
    closing: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form is LogFormat.JSON:
        closing.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED, processors=[*closing, renderer]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    adopt_library_loggers()


def adopt_library_loggers() -> None:
    """Removes the handlers of libraries' loggers, so that their lines take the same form as ours.

    Call it again after importing a library that configures logging on import, as vLLM does.
    """
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


def _add_call_and_trace(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    del logger, method
    for name, value in call_fields.get().items():
        event.setdefault(name, value)
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


_SHARED: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _add_call_and_trace,
]
