"""Real Synapse processes on loopback: a main, its workers, its users.

`SynapseMain` writes the configuration of one homeserver into a directory of its own,
starts it with the interpreter of the wanted release and waits until it answers; workers
are made from it. Servers are named by literal address and port, so that nothing here asks
DNS for anything.
"""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import trustme
import yaml
from signedjson.key import generate_signing_key, write_signing_keys

from tests.interop.environments import python_of
from tests.interop.processes import Child, Restartable, accepts
from tests.interop.servers import Postgres, Redis
from tests.ports import free_port

_UNLIMITED = {"per_second": 100_000, "burst_count": 100_000}
#: Synapse's rate limits, all lifted: tests are in a hurry.
_RATE_LIMITS: dict[str, object] = {
    "rc_message": _UNLIMITED,
    "rc_registration": _UNLIMITED,
    "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
    "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
    "rc_joins_per_room": _UNLIMITED,
    "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
    "rc_room_creation": _UNLIMITED,
    "rc_presence": {"per_user": _UNLIMITED},
    "rc_federation": {"window_size": 1000, "sleep_limit": 10_000, "sleep_delay": 0,
                      "reject_limit": 10_000, "concurrent": 1000},
}  # fmt: skip


class ApiError(Exception):
    """Synapse answered a request with an error."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(f"{status}: {answer}")
        self.status = status
        self.answer = answer


def request(
    port: int,
    method: str,
    path: str,
    body: object | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
) -> Any:
    """Make one JSON request to loopback and return the decoded answer.

    Raises:
        ApiError: The status was not 2xx.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        content = None if body is None else json.dumps(body)
        kind = {} if content is None else {"Content-Type": "application/json"}
        connection.request(method, path, content, {**kind, **(headers or {})})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    answer = json.loads(text) if text else None
    if not 200 <= response.status < 300:
        raise ApiError(response.status, answer)
    return answer


class User:
    """A registered user with an access token."""

    def __init__(self, port: int, user_id: str, device_id: str, access_token: str) -> None:
        self._port = port
        self.user_id = user_id
        self.device_id = device_id
        self.access_token = access_token
        self._transactions = 0
        self._run = secrets.token_hex(4)  # the same user may be made anew: see `at`

    def at(self, port: int) -> User:
        """Return the same user, calling the worker that listens on *port*."""
        return User(port, self.user_id, self.device_id, self.access_token)

    def call(self, method: str, path: str, body: object | None = None, **query: str) -> Any:
        """Call the client-server API; *path* comes after ``/_matrix/client/r0``."""
        full = f"/_matrix/client/r0{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Authorization": f"Bearer {self.access_token}"}
        return request(self._port, method, full, body, headers=headers)

    def create_room(self, **options: object) -> str:
        """Create a room and return its id."""
        return str(self.call("POST", "/createRoom", options)["room_id"])

    def join(self, room_id: str) -> None:
        """Join a room."""
        self.call("POST", f"/join/{quote(room_id)}", {})

    def send(self, room_id: str, text: str) -> str:
        """Send a text message and return its event id."""
        self._transactions += 1
        path = f"/rooms/{quote(room_id)}/send/m.room.message/{self._run}{self._transactions}"
        body = {"msgtype": "m.text", "body": text}
        return str(self.call("PUT", path, body)["event_id"])

    def set_typing(self, room_id: str, *, typing: bool = True, timeout_ms: int = 30_000) -> None:
        """Start or stop typing in a room."""
        path = f"/rooms/{quote(room_id)}/typing/{quote(self.user_id)}"
        self.call("PUT", path, {"typing": typing, "timeout": timeout_ms})

    def read(self, room_id: str, event_id: str) -> None:
        """Send a read receipt."""
        path = f"/rooms/{quote(room_id)}/receipt/m.read/{quote(event_id)}"
        self.call("POST", path, {})

    def set_presence(self, state: str, status: str | None = None) -> None:
        """Set the presence state."""
        body = {"presence": state} if status is None else {"presence": state, "status_msg": status}
        self.call("PUT", f"/presence/{quote(self.user_id)}/status", body)

    def send_to_device(self, kind: str, to: User, content: object) -> None:
        """Send a to-device message to every device of *to*."""
        self._transactions += 1
        path = f"/sendToDevice/{quote(kind)}/{self._run}{self._transactions}"
        self.call("PUT", path, {"messages": {to.user_id: {"*": content}}})

    def set_account_data(self, kind: str, content: object) -> None:
        """Set global account data."""
        self.call("PUT", f"/user/{quote(self.user_id)}/account_data/{quote(kind)}", content)

    def tag(self, room_id: str, name: str) -> None:
        """Put a tag on a room."""
        path = f"/user/{quote(self.user_id)}/rooms/{quote(room_id)}/tags/{quote(name)}"
        self.call("PUT", path, {"order": 0.5})

    def add_push_rule(self, rule_id: str, pattern: str) -> None:
        """Add a content push rule."""
        body = {"pattern": pattern, "actions": ["notify"]}
        self.call("PUT", f"/pushrules/global/content/{quote(rule_id)}", body)

    def rename_device(self, name: str) -> None:
        """Rename one's own device, which changes one's device list."""
        self.call("PUT", f"/devices/{quote(self.device_id)}", {"display_name": name})


class _Process(Restartable):
    """Common to main and workers."""

    def __init__(self, python: Path, directory: Path, log_path: Path) -> None:
        super().__init__(log_path)
        self.python = python
        self.directory = directory


class SynapseWorker(_Process):
    """A worker process of a `SynapseMain`."""

    def __init__(self, main: SynapseMain, name: str, app: str, config: dict[str, object]) -> None:
        super().__init__(main.python, main.directory, main.directory / f"{name}.log")
        self.name = name
        self._app = app
        log_config = main.write_log_config(name)
        self._config_path = main.directory / f"{name}.yaml"
        pid_path = str(main.directory / f"{name}.pid")
        config = {
            "worker_app": app,
            "worker_name": name,
            "worker_log_config": str(log_config),
            "worker_pid_file": pid_path,
            **config,
        }
        self._config_path.write_text(yaml.safe_dump(config))
        self._main_config = main.config_path

    def start(self) -> None:
        """Start the process; what it connects to says when it is there."""
        command: list[str | Path] = [self.python, "-m", self._app, "-c", self._main_config]
        self._child = Child([*command, "-c", self._config_path], self.log_path, starts_warm=True)


class SynapseMain(_Process):
    """A Synapse main process with client, federation and replication listeners.

    Attributes:
        release: Name of the release, a key of `environments.RELEASES`.
        server_name: Its homeserver name: ``127.0.0.1:`` and the federation port.
        client_port: HTTP, client-server API and admin API.
        federation_port: HTTPS, federation and keys.
        replication_port: The TCP replication listener (not for ``newest``).
        http_replication_port: HTTP catch-up; None for the 2017 dialect.
        config_path: The configuration file.
    """

    def __init__(
        self,
        release: str,
        *,
        postgres: Postgres | None = None,
        redis: Redis | None = None,
        send_federation: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        directory = Path(tempfile.mkdtemp(prefix=f"tcprepl-synapse-{release}-"))
        super().__init__(python_of(release), directory, directory / "main.log")
        self.release = release
        self.postgres = postgres
        self.redis = redis
        self.database = f"synapse_{secrets.token_hex(4)}"
        self.client_port = free_port()
        self.federation_port = free_port()
        self.replication_port = free_port()
        self.http_replication_port = free_port()
        self.server_name = f"127.0.0.1:{self.federation_port}"
        self.config_path = directory / "homeserver.yaml"
        self._write_keys()
        if postgres is not None:
            postgres.make_database(self.database)
        config = self._config(send_federation=send_federation)
        config.update(settings or {})
        self.config_path.write_text(yaml.safe_dump(config))

    def start(self) -> None:
        """Start the main process and wait until it answers over HTTP and replication."""
        app = "synapse.app.homeserver"
        command: list[str | Path] = [self.python, "-m", app, "-c", self.config_path]
        self._child = Child(command, self.log_path, cwd=self.directory, starts_warm=True)
        self._child.wait_ready("the main answers", self._answers)

    def close(self) -> None:
        """Stop for good and remove the directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def register(self, localpart: str) -> User:
        """Register a user, by way of the open registration that the tests configure."""
        path = "/_matrix/client/r0/register"
        body: dict[str, object] = {"username": localpart, "password": secrets.token_hex(8)}
        body["auth"] = {"type": "m.login.dummy"}
        answer = request(self.client_port, "POST", path, body)
        return User(
            self.client_port, answer["user_id"], answer["device_id"], answer["access_token"]
        )

    def worker(
        self, name: str, *, replication_port: int, http_port: int, **config: object
    ) -> SynapseWorker:
        """Return a generic worker that replicates from the given ports."""
        app = "synapse.app.generic_worker"
        return self._worker(name, app, replication_port, http_port, config)

    def federation_sender(
        self, name: str, *, replication_port: int, http_port: int
    ) -> SynapseWorker:
        """Return a federation sender that replicates from the given ports."""
        if self.release in {"1.0.0", "1.12.4"}:
            app = "synapse.app.federation_sender"
            return self._worker(name, app, replication_port, http_port, {})
        return self.worker(
            name,
            replication_port=replication_port,
            http_port=http_port,
            federation_sender_instances=[name],
        )

    def updates(self, stream: str, after: int, upto: int) -> list[tuple[int, object]]:
        """Return the rows of *stream* in ``(after, upto]`` as the HTTP catch-up tells them."""
        rows: list[tuple[int, object]] = []
        while after < upto:
            path = f"/_synapse/replication/get_repl_stream_updates/{stream}/{secrets.token_hex(5)}"
            query = urlencode({"from_token": after, "upto_token": upto})
            answer = request(self.http_replication_port, "GET", f"{path}?{query}")
            rows += [(token, row) for token, row in answer["updates"]]
            if not answer["limited"]:
                break
            after = answer["upto_token"]
        return rows

    def sql(self, statement: str) -> list[list[str]]:
        """Ask the database of this server and return the rows as text."""
        if self.postgres is not None:
            return self.postgres.sql(self.database, statement)
        connection = sqlite3.connect(f"file:{self._sqlite_path}?mode=ro", uri=True)
        try:
            rows = connection.execute(statement).fetchall()
        finally:
            connection.close()
        return [["" if cell is None else str(cell) for cell in row] for row in rows]

    def write_log_config(self, name: str) -> Path:
        """Write a logging configuration that goes to the output, and return its path."""
        path = self.directory / f"{name}.log.yaml"
        line = "%(asctime)s %(name)s %(lineno)d %(levelname)s %(message)s"
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": line}},
            "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": {"synapse.storage.SQL": {"level": "WARNING"}},
            "root": {"level": "INFO", "handlers": ["out"]},
        }
        path.write_text(yaml.safe_dump(config))
        return path

    @property
    def _sqlite_path(self) -> Path:
        return self.directory / "homeserver.db"

    def _worker(
        self, name: str, app: str, replication_port: int, http_port: int, config: dict[str, object]
    ) -> SynapseWorker:
        upstream: dict[str, object] = {
            "worker_replication_host": "127.0.0.1",
            "worker_replication_port": replication_port,
            "worker_replication_http_port": http_port,
        }
        return SynapseWorker(self, name, app, {**upstream, **config})

    def _answers(self) -> bool:
        try:
            request(self.client_port, "GET", "/_matrix/client/versions", timeout_s=5.0)
        except (OSError, ApiError, http.client.HTTPException, ValueError):
            return False
        return self.release == "newest" or accepts(self.replication_port)

    def _write_keys(self) -> None:
        certificate = trustme.CA().issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(str(self.directory / "tls.key"))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(self.directory / "tls.crt"), append=True)
        with (self.directory / "signing.key").open("w") as keys:
            write_signing_keys(keys, [generate_signing_key("a1")])

    def _config(self, *, send_federation: bool) -> dict[str, object]:
        own = self.directory
        listeners = [
            self._listener(self.client_port, "client", "federation"),
            {**self._listener(self.federation_port, "federation"), "tls": True},
        ]
        config: dict[str, object] = {
            "server_name": self.server_name,
            "public_baseurl": f"http://127.0.0.1:{self.client_port}/",
            "pid_file": str(own / "main.pid"),
            "log_config": str(self.write_log_config("main")),
            "media_store_path": str(own / "media"),
            "uploads_path": str(own / "uploads"),
            "signing_key_path": str(own / "signing.key"),
            "tls_certificate_path": str(own / "tls.crt"),
            "tls_private_key_path": str(own / "tls.key"),
            "macaroon_secret_key": secrets.token_hex(16),
            "form_secret": secrets.token_hex(16),
            "registration_shared_secret": secrets.token_hex(16),
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "enable_group_creation": True,
            "enable_room_list_search": True,
            "room_list_publication_rules": [{"action": "allow"}],
            "bcrypt_rounds": 4,
            "report_stats": False,
            "federation_verify_certificates": False,
            "federation_ip_range_blacklist": [],
            "ip_range_blacklist": [],
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "use_presence": True,
            "presence": {"enabled": True},
            "database": self._database(),
            **_RATE_LIMITS,
        }
        if self.release in {"1.0.0", "1.12.4"}:
            del config["presence"]
            listeners.append(self._replication_listener())
            config["send_federation"] = send_federation
        elif self.release == "newest":
            listeners.append(self._listener(self.http_replication_port, "replication"))
            main_address = {"host": "127.0.0.1", "port": self.http_replication_port}
            config["instance_map"] = {"main": main_address}
            if not send_federation and self.redis is not None:
                config["federation_sender_instances"] = ["fed1"]
        else:
            listeners.append(self._listener(self.http_replication_port, "replication"))
            listeners.append(self._replication_listener())
            config["send_federation"] = send_federation
        if self.redis is not None:
            config["redis"] = {"enabled": True, "host": "127.0.0.1", "port": self.redis.port}
        config["listeners"] = listeners
        return config

    def _listener(self, port: int, *resources: str) -> dict[str, object]:
        return {
            "type": "http",
            "port": port,
            "tls": False,
            "bind_addresses": ["127.0.0.1"],
            "resources": [{"names": list(resources), "compress": False}],
        }

    def _replication_listener(self) -> dict[str, object]:
        own: list[str] = ["127.0.0.1"]
        return {"type": "replication", "port": self.replication_port, "bind_addresses": own}

    def _database(self) -> dict[str, object]:
        if self.postgres is None:
            return {"name": "sqlite3", "args": {"database": str(self._sqlite_path)}}
        address = {"host": "127.0.0.1", "port": self.postgres.port, "user": self.postgres.user}
        args = {**address, "database": self.database, "cp_min": 1, "cp_max": 5}
        return {"name": "psycopg2", "args": args}
