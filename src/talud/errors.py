"""Exceptions for errors that a user can cause and correct.

    TaludError
    ├── ParamsError      params.yaml or a value given by hand is not usable
    ├── SourceError      a source raster or vector cannot be read or used
    │   └── ForbiddenError   a client of the service may not access it
    ├── ModelError       a model file cannot be run by talud
    ├── MismatchError    a raster does not fit the contract of a model
    ├── StudyError       a study cannot run, or has no usable result
    ├── RegistryError    the registry does not hold the requested run, model or version
    ├── PromotionError   a model does not pass the promotion gate
    ├── ClusterError     workers are not available, differ from this process, or were lost
    └── OutputError      a result cannot be written
        └── BusyError    another process is writing it

Each message is one line: what was found, what was expected, what to do. The command line prints it on stderr and exits
with 1; any other exception is a bug and shows its traceback.

Doubtful input that is not an error is reported as a TaludWarning by `warnings.warn`; the command line prints it on
stderr as `talud: warning: …` and continues.
"""


class TaludError(Exception):
    """Error that a user can cause and correct."""


class ParamsError(TaludError):
    """Unusable params.yaml, or an unusable value given by hand."""


class SourceError(TaludError):
    """Source raster or vector that cannot be read or used."""


class ForbiddenError(SourceError):
    """Source that a client of the service may not access."""


class ModelError(TaludError):
    """Model file that talud cannot run."""


class MismatchError(TaludError):
    """Raster that does not fit the contract of a model."""


class StudyError(TaludError):
    """Study that cannot run, or has no usable result."""


class RegistryError(TaludError):
    """Run, model or version that the registry does not hold, or an unusable registry."""


class PromotionError(TaludError):
    """Model that does not pass the promotion gate."""


class ClusterError(TaludError):
    """Workers that are not available, differ from this process, or were lost."""


class OutputError(TaludError):
    """Result that cannot be written."""


class BusyError(OutputError):
    """Result that another process is writing."""


class TaludWarning(UserWarning):
    """Warning about doubtful input that does not stop the command."""
