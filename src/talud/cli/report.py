"""`talud report`: write the report page."""

from __future__ import annotations

from talud.cli.app import app


@app.command("report")
def report() -> None:
    """Write reports/index.html: scores and maps of all evaluated band sets, beside the published study's.

    The page holds its images itself and loads nothing, so that one file can be sent to a colleague.

    **Examples**

        talud report
    """
    from talud.evaluation.report import write
    from talud.project import Project

    project = Project.find()
    print(f"report: {write(project)}")
