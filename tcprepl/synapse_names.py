"""Settings under Synapse's names, understood where they mean the same thing as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

#: Keys of Synapse that say nothing to us; they are passed over with a warning.
IGNORED_OF_SYNAPSE = frozenset(
    {
        "daemonize",
        "database",
        "form_secret",
        "log_config",
        "macaroon_secret_key",
        "media_store_path",
        "pid_file",
        "presence",
        "public_baseurl",
        "pusher_instances",
        "registration_shared_secret",
        "report_stats",
        "send_federation",
        "signing_key_path",
        "soft_file_limit",
        "start_pushers",
        "stream_writers",
        "suppress_key_server_warning",
        "tls_certificate_path",
        "tls_private_key_path",
        "trusted_key_servers",
        "use_presence",
        "web_client_location",
        "worker_app",
        "worker_daemonize",
        "worker_log_config",
        "worker_main_http_uri",
        "worker_pid_file",
        "worker_replication_host",
        "worker_replication_http_port",
        "worker_replication_http_tls",
        "worker_replication_port",
    }
)


def put(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set the setting at a dotted *path*; sections on the way are copied or made."""
    *sections, key = path.split(".")
    for section in sections:
        inner = settings.get(section)
        settings[section] = dict(inner) if isinstance(inner, Mapping) else {}
        settings = settings[section]
    settings[key] = value


def excerpt(value: object) -> str:
    """Return a value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def translate_synapse(
    raw: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return (settings in our spelling, warnings, faults) of settings that may use Synapse's."""
    settings = dict(raw)
    warnings: list[str] = []
    faults: list[str] = []

    def move(old: str, new: str, value: Any) -> None:
        put(settings, new, value)
        warnings.append(f"{old}: understood as {new}; write {new} instead")

    for old, new in (
        ("worker_name", "instance"),
        ("worker_replication_secret", "http.replication_secret"),
        ("worker_replication_secret_path", "http.replication_secret_file"),
        ("federation_sender_instances", "federation.senders"),
    ):
        if old in settings:
            move(old, new, settings.pop(old))
    for old in ("listeners", "worker_listeners"):
        if old in settings:
            _translate_listeners(old, settings.pop(old), move, faults)
    redis = settings.get("redis")
    if isinstance(redis, Mapping) and "url" not in redis:
        del settings["redis"]
        if redis.get("enabled"):
            move("redis.enabled", "redis.url", _redis_url(redis))
    if "instance_map" in settings:
        instances = settings.pop("instance_map") or {}
        if not isinstance(instances, Mapping):
            faults.append(
                f"instance_map: found {excerpt(instances)}; expected a section per worker"
            )
        else:
            urls = {}
            for name, value in instances.items():
                place = value if isinstance(value, Mapping) else {}
                scheme = "https" if place.get("tls") else "http"
                our_name = "master" if name == "main" else str(name)
                if place.get("path"):
                    urls[our_name] = f"http://unix:{place['path']}"
                else:
                    urls[our_name] = f"{scheme}://{place.get('host')}:{place.get('port')}"
            move("instance_map", "instances", urls)
    for old in sorted(IGNORED_OF_SYNAPSE & settings.keys()):
        del settings[old]
        warnings.append(f"{old}: a setting of Synapse that means nothing here; leave it out")
    return settings, warnings, faults


def _translate_listeners(old: str, value: Any, move: Any, faults: list[str]) -> None:
    found: dict[str, list[str]] = {}
    for index, listener in enumerate(value if isinstance(value, list) else [value]):
        path = f"{old}.{index}"
        if not isinstance(listener, Mapping):
            faults.append(
                f"{path}: found {excerpt(listener)}; expected a section with port and type"
            )
            continue
        kind = "replication" if listener.get("type") == "replication" else "http"
        if listener.get("path"):
            mode = str(listener.get("mode", "666")).removeprefix("0o")
            found.setdefault(kind, []).append(f"unix:{listener['path']}:mode={mode}")
            continue
        port = listener.get("port")
        if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port < 65_536:
            faults.append(f"{path}.port: found {excerpt(port)}; expected a number from 0 to 65535")
            continue
        hosts = listener.get("bind_addresses") or [listener.get("bind_address") or "127.0.0.1"]
        for host in hosts:
            bracketed = f"[{host}]" if ":" in str(host) else host
            found.setdefault(kind, []).append(f"{bracketed}:{port}")
    for kind, addresses in found.items():
        move(old, f"{kind}.listen", addresses)


def _redis_url(redis: Mapping[str, Any]) -> str:
    options = {
        "password": redis.get("password") if redis.get("path") else None,
        "password_file": redis.get("password_path"),
        "ca": redis.get("ca_file"),
        "certificate": redis.get("certificate_file"),
        "private_key": redis.get("private_key_file"),
    }
    query = urlencode({name: value for name, value in options.items() if value})
    if redis.get("path"):
        return f"unix:{redis['path']}" + (f"?{query}" if query else "")
    scheme = "rediss" if redis.get("use_tls") else "redis"
    password = f":{quote(str(redis['password']), safe='')}@" if redis.get("password") else ""
    database = f"/{redis['dbid']}" if redis.get("dbid") is not None else ""
    host, port = redis.get("host", "localhost"), redis.get("port", 6379)
    return f"{scheme}://{password}{host}:{port}{database}" + (f"?{query}" if query else "")
