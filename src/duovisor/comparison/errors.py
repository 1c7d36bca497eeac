"""What can go wrong in a comparison.

::

    ComparisonError
    ├── ComparisonFolderError   the output folder holds something else
    ├── MeasureError            a measurement gave no figures
    ├── SidelinedServiceError   the service that is killed did not come up
    ├── SkippedError            this host cannot make a measurement
    └── SourceError             the source of what is installed cannot be fetched
"""

from __future__ import annotations

from duovisor.errors import DuovisorError


class ComparisonError(DuovisorError):
    """Root of what this package raises."""

    code = "comparison"


class ComparisonFolderError(ComparisonError):
    """The output folder cannot be used: of another comparison, another machine, or no comparison at all."""

    code = "comparison-folder"


class MeasureError(ComparisonError):
    """A measurement ended without figures; the guest may be well or not."""

    code = "measure-failed"


class SidelinedServiceError(ComparisonError):
    """The service that is started to be killed did not start, or did not come back."""

    code = "measured-service"


class SkippedError(ComparisonError):
    """This host cannot make a measurement; ``message`` says what is missing, ``remedy`` what to do."""

    code = "measure-skipped"


class SourceError(ComparisonError):
    """The source that was to be counted cannot be fetched or read."""

    code = "comparison-source"
