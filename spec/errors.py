"""Every error a user can cause, and the exit code its command ends with."""


class SeqduetError(Exception):
    """Base class; the message is one line that says what was found and what to do."""

    exit_code = 1


class ConfigError(SeqduetError, ValueError):
    """An option is unknown, malformed or out of range."""

    exit_code = 2


class DataError(SeqduetError, ValueError):
    """A data file cannot be read as sequences without guessing."""

    exit_code = 2


class CheckpointError(SeqduetError):
    """A checkpoint is missing, damaged or does not fit what it is asked to continue."""

    exit_code = 3


class DivergedError(SeqduetError):
    """The loss or the gradient stopped being finite."""

    exit_code = 4


class OutputError(SeqduetError):
    """A result cannot be written."""

    exit_code = 5


class BusyError(SeqduetError):
    """Another process is writing the same run directory."""

    exit_code = 75
