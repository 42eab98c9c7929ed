"""Servers of a team on one machine, for trying out and for the tests.

    python team/run.py [COMMAND ...]

Starts PostgreSQL, MLflow with login and artifact store, a Dask scheduler and two workers, all on the loopback
interface; prints the environment variables for users; runs COMMAND in that environment (default: a small study on the
synthetic sample basin); and stops all servers on Ctrl-C. All files are in a temporary folder, which is removed.
docs/tutorials/team.md describes a deployment on several machines.

PostgreSQL is installed with apt-get install postgresql. It refuses to run as root, so root starts it as `postgres`.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LOOPBACK = "127.0.0.1"
USER = "talud"
START_TIMEOUT_SECONDS = 120  # of each server
# No telemetry, and no MLflow services for language models.
QUIET_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "PYTHONWARNINGS": "ignore",
}
SMALL_SEARCH = {"filters": [8], "learning_rate": [1.0e-3, 5.0e-4], "batch_size": [16, 32], "epochs": 3}


class TeamError(Exception):
    """A server is not installed or does not start."""


@dataclass(frozen=True)
class Team:
    """Running servers of a team.

    Attributes:
        environment: environment variables for users.
        database: URI of PostgreSQL without the database name: `runs`, `logins` or `service`.
        scheduler: address of the Dask scheduler.
        started: processes by name: postgresql, mlflow, scheduler, worker-1, ...
        logs: folder of the log files.
    """

    environment: Mapping[str, str]
    database: str
    scheduler: str
    started: Mapping[str, subprocess.Popen[bytes]]
    logs: Path


def postgresql() -> Path | None:
    """Return the folder of the newest PostgreSQL programs, or None."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def team(workers: int = 2) -> Iterator[Team]:
    """Start the servers of a team; stop them at the end of the block.

    Raises:
        TeamError: PostgreSQL is not installed, or a server does not start.
    """
    with ExitStack() as held:
        folder = Path(tempfile.mkdtemp(prefix="talud-team-"))
        held.callback(shutil.rmtree, folder)
        for name in ("database", "artifacts", "dask", "logs", "keys"):
            (folder / name).mkdir(mode=0o700)
        started: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str, *command: object, **options: Any) -> None:
            log = held.enter_context((folder / "logs" / name).open("wb"))
            options = {"cwd": folder / "dask", **options}
            # Own session: Ctrl-C in a terminal only reaches this process, which stops the others in order.
            started[name] = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                **options,
            )  # fmt: skip

        held.callback(stop, started)
        database = start_postgresql(folder, start)
        tracking = _start_mlflow(folder, start, database)
        keys = _write_dask_keys(folder / "keys")
        file = folder / "dask/scheduler.json"
        start(
            "scheduler", sys.executable, "-m", "distributed.cli.dask_scheduler", "--protocol", "tls", "--host",
            LOOPBACK, "--port", 0, "--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0", "--scheduler-file", file,
            env=os.environ | keys,
        )  # fmt: skip
        _wait_until(lambda: file.is_file() and file.stat().st_size > 0, started, "scheduler", folder)
        scheduler = json.loads(file.read_text())["address"]
        threads = str(max((os.cpu_count() or 1) // workers, 1))
        own = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads, "PYTHONPATH": _python_path()}
        for number in range(1, workers + 1):
            start(
                f"worker-{number}", sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--host", LOOPBACK,
                "--nthreads", 1, "--resources", "trial=1", "--no-dashboard", "--local-directory", folder / "dask",
                "--memory-limit", 0, "--name", number, env=os.environ | QUIET_ENVIRONMENT | keys | tracking | own,
            )  # fmt: skip
        _wait_until(lambda: _mlflow_responds(tracking), started, "mlflow", folder)
        environment = {**tracking, **keys, "DASK_SCHEDULER_ADDRESS": scheduler}
        yield Team(environment, database, scheduler, started, folder / "logs")


def start_postgresql(folder: Path, start: Callable[..., None]) -> str:
    """Start PostgreSQL and create the databases; return their URI without the name."""
    programs = postgresql()
    if programs is None:
        raise TeamError("PostgreSQL is not installed: apt-get install postgresql")
    place, port, password = folder / "database", _free_port(), secrets.token_hex(16)
    options: dict[str, Any] = {"cwd": place}
    if os.geteuid() == 0:
        options |= {"user": "postgres", "group": "postgres", "extra_groups": ()}
        shutil.chown(place, "postgres", "postgres")
        folder.chmod(0o711)
    secret = place / "password"
    secret.write_text(password)
    secret.chmod(0o600)
    if os.geteuid() == 0:
        shutil.chown(secret, "postgres", "postgres")
    make = [programs / "initdb", "--pgdata", place / "data", "--username", USER, "--pwfile", secret, "--no-sync"]
    make += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"]
    _run(make, **options)
    settings = {"listen_addresses": LOOPBACK, "port": port, "unix_socket_directories": ""}
    given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    start("postgresql", programs / "postgres", "-D", place / "data", *given, **options)
    reach = ["--host", LOOPBACK, "--port", port, "--username", USER]
    limit = time.monotonic() + START_TIMEOUT_SECONDS
    while _fails([programs / "pg_isready", *reach]):
        if time.monotonic() > limit:
            raise TeamError(f"PostgreSQL did not start: {(folder / 'logs/postgresql').read_text()}")
        time.sleep(0.1)
    for name in ("runs", "logins", "service"):
        _run([programs / "createdb", *reach, name], env=os.environ | {"PGPASSWORD": password})
    return f"postgresql+psycopg://{USER}:{password}@{LOOPBACK}:{port}"


def _start_mlflow(folder: Path, start: Callable[..., None], database: str) -> dict[str, str]:
    """Start MLflow on the database; return the environment variables for users.

    Secrets are passed in the environment, because arguments are visible to all users.
    """
    port, password = _free_port(), secrets.token_urlsafe(16)
    config = folder / "logins.ini"
    config.touch(mode=0o600)
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}/logins\nadmin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # avoids a slow password hash for each request
    )
    environment = {
        "MLFLOW_BACKEND_STORE_URI": f"{database}/runs",
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    start(
        "mlflow", sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", LOOPBACK,
        "--port", port, "--workers", 1, "--artifacts-destination", folder / "artifacts",
        env=_environment_without_mlflow() | QUIET_ENVIRONMENT | environment,
    )  # fmt: skip
    return {
        "MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{port}",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": password,
    }


def _write_dask_keys(folder: Path) -> dict[str, str]:
    """Write TLS keys for Dask; return the settings that refer to them.

    Without TLS, every user of this machine could run code on the workers.
    """
    from distributed.security import Security

    made = Security.temporary()
    files = {"cert": made.tls_ca_file, "key": made.tls_client_key}
    for name, content in files.items():
        (folder / f"{name}.pem").touch(mode=0o600)
        (folder / f"{name}.pem").write_text(content)
    settings = {"CA_FILE": "cert"} | {
        f"{role}__{name.upper()}": name for role in ("CLIENT", "SCHEDULER", "WORKER") for name in files
    }
    named = {f"DASK_DISTRIBUTED__COMM__TLS__{key}": str(folder / f"{name}.pem") for key, name in settings.items()}
    return {**named, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"}


def _environment_without_mlflow() -> dict[str, str]:
    """Return the environment without variables of another MLflow server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def _python_path() -> str:
    """Return the import path of this process, for the workers."""
    return os.pathsep.join(filter(None, sys.path))


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


def _mlflow_responds(tracking: Mapping[str, str]) -> bool:
    """Return whether MLflow responds to its user."""
    pair = f"{tracking['MLFLOW_TRACKING_USERNAME']}:{tracking['MLFLOW_TRACKING_PASSWORD']}"
    login = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    page = f"{tracking['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get?experiment_id=0"
    try:
        with urllib.request.urlopen(urllib.request.Request(page, headers=login), timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait_until(
    ready: Callable[[], bool], started: Mapping[str, subprocess.Popen[bytes]], name: str, folder: Path
) -> None:
    """Wait until a server is ready.

    Raises:
        TeamError: the server stopped or timed out.
    """
    limit = time.monotonic() + START_TIMEOUT_SECONDS
    while not ready():
        if started[name].poll() is not None or time.monotonic() > limit:
            raise TeamError(f"{name} did not start: {(folder / 'logs' / name).read_text()[-2000:]}")
        time.sleep(0.1)


def _run(command: list[Any], **options: Any) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise TeamError(f"{Path(command[0]).name}: {done.stderr.strip()}")


def _fails(command: list[Any]) -> bool:
    return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode != 0


def stop(started: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Stop all process groups, the database last."""
    first = [process for name, process in started.items() if name != "postgresql"]
    last = [process for name, process in started.items() if name == "postgresql"]
    for group in (first, last):
        for process in group:
            _signal(process, signal.SIGINT)  # fast shutdown of PostgreSQL
        for process in group:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            _signal(process, signal.SIGKILL)  # remaining processes of the group
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def small_project(folder: Path, root: Path) -> Path:
    """Create a project with a small search that uses the stacks of another project."""
    content = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    content |= {"search": "small", "searches": {"small": SMALL_SEARCH}}
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    (folder / "stacks").symlink_to(root / "stacks")
    return folder


def main() -> int:
    """Start the servers, run the command, and wait for Ctrl-C; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command = sys.argv[1:]
    try:
        with team() as found, tempfile.TemporaryDirectory(prefix="talud-team-project-") as scratch:
            for name, value in found.environment.items():
                print(f"export {name}={value}")
            print(f"# talud train BAND_SET --scheduler {found.scheduler}", flush=True)
            here = None
            if not command:
                here = small_project(Path(scratch) / "project", Path.cwd())
                command = [sys.executable, "-m", "talud.cli.main", "train", "3band", "--scheduler", found.scheduler]
            code = subprocess.run(
                command, cwd=here, env=os.environ | QUIET_ENVIRONMENT | found.environment, check=False
            ).returncode
            print(f"# exit code {code}; MLflow UI: {found.environment['MLFLOW_TRACKING_URI']}; Ctrl-C stops all")
            sys.stdout.flush()
            signal.pause()
    except TeamError as error:
        print(f"team: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("# stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
