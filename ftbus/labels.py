"""Keys, handlers and failures in words, for logs, metrics and views.

None of it calls code of the application's, as the repr of a key would.
"""

from __future__ import annotations

import enum
from typing import Any, Final

from ftbus._core import Key
from ftbus.failures import name_of

OTHER: Final = "(other)"
"""What has no key of its own, or was summed."""

_LENGTH_MAX: Final = 120


def label(key: object) -> str:
    """Return a key as people write it: a str as it is, a class by its name.

    At most 120 characters, so two keys may have one label.
    """
    value = key.value if isinstance(key, Key) else key
    if value is None:
        text = OTHER
    elif isinstance(value, enum.Enum):
        text = f"{type(value).__qualname__}.{value.name}"
    elif isinstance(value, type):
        text = f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, str):
        text = value
    else:
        text = repr(value)
    return text if len(text) <= _LENGTH_MAX else text[: _LENGTH_MAX - 1] + "…"


def failure_fields(
    error: BaseException, key: object, handler: object
) -> dict[str, Any]:
    """Return the fields of a log record of a failure, for logging's `extra`."""
    kind = type(error)
    return {
        "ftbus_key": label(key),
        "ftbus_handler": name_of(handler),
        "ftbus_error": f"{kind.__module__}.{kind.__qualname__}",
    }
