"""Process that runs many commands for fuzz tests.

A crash ends only this process. It reads lines of JSON, [working folder, arguments], from the first file descriptor of
its arguments, and writes [exit code, stdout, stderr] to the second. Output of C libraries is included. An exception
that leaves `main` is reported with its traceback on stderr and exit code 70.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import traceback
from typing import IO

from talud.cli.main import main

MEMORY = 6 * 10**9  # bytes of address space: what asks for more fails, and is seen


def run(arguments: list[str]) -> int:
    sys.argv = ["talud", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def captured(arguments: list[str], sinks: tuple[IO[bytes], IO[bytes]]) -> tuple[int, str, str]:
    for number, sink in enumerate(sinks, start=1):
        sink.seek(0)
        sink.truncate()
        os.dup2(sink.fileno(), number)
    code = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    said = []
    for sink in sinks:
        sink.seek(0)
        said.append(sink.read().decode(errors="replace"))
    return code, said[0], said[1]


def serve(requests: int, answers: int) -> None:
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        os.fdopen(requests) as lines,
        os.fdopen(answers, "w") as replies,
    ):
        for line in lines:
            folder, arguments = json.loads(line)
            os.chdir(folder)
            print(json.dumps(captured(arguments, (out, err))), file=replies, flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    serve(int(sys.argv[1]), int(sys.argv[2]))
