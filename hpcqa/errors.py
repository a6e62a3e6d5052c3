"""Errors, split by who must act; the command line turns each kind into one sentence and an exit code.

A message says the path, the key or row, what was found, what was expected and what to do.
"""

from __future__ import annotations


class HpcqaError(Exception):
    """Base of every error that hpcqa raises on purpose."""

    exit_code = 70
    # True for an error that `hpcqa run` reports at the end: what comes after it can still be done.
    goes_on = False


class ConfigError(HpcqaError):
    """The configuration is wrong: the person who typed it must act. Raised before any work starts."""

    exit_code = 2


class DataError(HpcqaError):
    """A file or table is wrong: whoever made or moved the data must act."""

    exit_code = 3


class EnvironmentProblem(HpcqaError):
    """The machine is wrong: no space, no permission, no MPI, a contradicting launcher."""

    exit_code = 4


class InternalError(HpcqaError):
    """Our own mistake: please report it."""

    exit_code = 70
