"""The exceptions of the package."""

from __future__ import annotations


class Error(Exception):
    """Anything that simfluence fails with; the message says what was wrong, where, and what to do."""


class UsageError(Error, ValueError):
    """An argument that does not fit: another shape, type, name or range than asked for."""


class RunSetError(Error):
    """A run set that cannot be read or written, or what was to be recorded does not fit it."""
