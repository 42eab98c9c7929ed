"""Errors that a user can cause, as one tree of exceptions.

    TaludError
    ├── ParamsError      params.yaml or a value given by hand is not usable
    ├── SourceError      a source raster or vector cannot be read or used
    │   └── ForbiddenError   a client of the service may not name it
    ├── ModelError       a model file is not one that talud can run
    ├── MismatchError    a raster does not fit the contract of a model
    ├── StudyError       a study cannot run, or has no usable result
    ├── RegistryError    the model registry has not what was asked for
    ├── PromotionError   a model does not pass the promotion gate
    ├── ClusterError     workers cannot be had, differ from this process, or are lost
    └── OutputError      a result cannot be written
        └── BusyError    another process writes it

Each message is one line for a person: what was found, what was expected, what to do. The command line prints
it on stderr and exits with 1; anything that is not a TaludError is a bug and shows its traceback.

What is doubtful but no error is a TaludWarning, given by `warnings.warn`; the command line prints it on stderr as
`talud: warning: …` and goes on.
"""


class TaludError(Exception):
    """Anything that a user can cause and mend."""


class ParamsError(TaludError):
    """params.yaml, or a value given by hand, is not usable."""


class SourceError(TaludError):
    """A source raster or vector cannot be read or used."""


class ForbiddenError(SourceError):
    """An error for a source that a client of the service may not name."""


class ModelError(TaludError):
    """A model file is not one that talud can run."""


class MismatchError(TaludError):
    """A raster does not fit the contract of a model."""


class StudyError(TaludError):
    """A study cannot run, or has no usable result."""


class RegistryError(TaludError):
    """The model registry has not what was asked for."""


class PromotionError(TaludError):
    """A model does not pass the promotion gate."""


class ClusterError(TaludError):
    """Workers cannot be had, differ from the process that asks for them, or are lost."""


class OutputError(TaludError):
    """A result cannot be written."""


class BusyError(OutputError):
    """Another process writes the same result."""


class TaludWarning(UserWarning):
    """A warning about doubtful input that does not stop the work."""
