"""A process that runs the command line for fuzz tests.

It is replaced when it dies.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

TIMEOUT_SECONDS = 120  # for one command; the first one of a process imports everything
LONGEST_ERROR = 1500  # characters


class Worker:
    """Process that runs commands and is replaced if it dies.

    Attributes:
        folder: working folder of commands that name no other.
        environment: additional environment variables of the process.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str, folder: Path | None = None) -> tuple[int, str, str]:
        """Run a command in a folder; return its exit code, stdout and stderr."""
        process = self.process or self._started()
        self.requests.write(json.dumps([str(folder or self.folder), arguments]) + "\n")
        self.requests.flush()
        if not select.select([self.answers], [], [], TIMEOUT_SECONDS)[0]:
            self.stop()
            pytest.fail(f"no end after {TIMEOUT_SECONDS} seconds")
        answer = self.answers.readline()
        if not answer:
            code = process.wait()
            self.process = None
            pytest.fail(f"the process died: {code}")
        code, out, err = json.loads(answer)
        return code, out, err

    def stop(self) -> None:
        """Stop the process if it is running."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.requests.close()
            self.answers.close()

    def _started(self) -> subprocess.Popen[bytes]:
        (requests, to), (of, answers) = os.pipe(), os.pipe()
        program = Path(__file__).with_name("hostile_worker.py")
        command = [sys.executable, program, str(requests), str(answers)]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=os.environ | self.environment, pass_fds=(requests, answers)
        )
        os.close(requests)
        os.close(answers)
        self.requests, self.answers = os.fdopen(to, "w"), os.fdopen(of)
        return self.process


def check_refusal(code: int, out: str, err: str) -> None:
    """Assert that a command ended in one line of error on stderr and exit code 1."""
    assert (code, out) == (1, ""), err or out
    assert err.startswith("talud: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert len(err) < LONGEST_ERROR
    assert "not enough memory" not in err
