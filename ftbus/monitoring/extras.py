"""What is said where an optional dependency is missing."""

from __future__ import annotations


def missing(user: str, distribution: str, cause: ImportError) -> ModuleNotFoundError:
    """Return the error of a module of ours that cannot be imported.

    user: its name. distribution: what to install. cause: what its import raised.
    """
    text = f"{user} needs {distribution}: pip install {distribution} ({cause})"
    return ModuleNotFoundError(text, name=cause.name, path=cause.path)
