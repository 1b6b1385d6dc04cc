"""What a service that others rely on does not start with, and what to do about each.

Everything is production unless ENVIRONMENT says `development`; `lethe up` says so by itself.
"""

from urllib.parse import parse_qs, unquote, urlsplit

from app.settings import KeySettings, Settings

# Of manuals, images and tutorials: tried first by whoever scans for open servers.
DEFAULT_PASSWORDS = frozenset(
    (
        "admin",
        "changeme",
        "change-me",
        "default",
        "example",
        "foobared",
        "guest",
        "hunter2",
        "lethe",
        "letmein",
        "master",
        "pass",
        "password",
        "passwd",
        "postgres",
        "postgresql",
        "redis",
        "root",
        "secret",
        "test",
        "valkey",
        "123456",
        "12345678",
    )
)
SHORTEST_PASSWORD = 12
FEWEST_CHARACTERS = 6  # different ones, in a passphrase
# RFC 2606 and RFC 6762: names that can belong to nobody.
NOBODYS = ("example", "example.com", "example.net", "example.org", "invalid", "test", "local")


class UnsafeSettingsError(ValueError):
    """The service was told to start with what is meant for trying it out."""


def require_safe(settings: Settings) -> None:
    """Check the settings of a service, unless it runs for development.

    Raises:
        UnsafeSettingsError: Each finding names the setting and the remedy, and quotes no secret.
    """
    if settings.environment == "development":
        return
    if found := findings(settings):
        raise UnsafeSettingsError(
            "this configuration is not safe to run:\n"
            + "\n".join(f"  * {finding}" for finding in found)
            + "\nTo try the service out on this machine alone, set ENVIRONMENT=development."
        )


def findings(settings: Settings) -> list[str]:
    """Return what stands against running with these settings."""
    found = [
        *_of_server("DATABASE_URL", settings.database_url, ("sslcert", "passfile", "service")),
        *_of_server("REDIS_URL", settings.redis_url, ("ssl_certfile",)),
        *_of_passphrase(settings),
        *_of_origin(settings.log_origin),
        *_of_anchor("ANCHOR_URL", settings.anchor_url),
        *_of_anchor("ANCHOR_WEBHOOK_URL", settings.anchor_webhook_url),
    ]
    # An authority signs what it answers, so http will do where its roots are known.
    if (
        urlsplit(settings.timestamp_url or "").scheme == "http"
        and settings.timestamp_roots_file is None
    ):
        found.append(
            "TIMESTAMP_URL: over http anybody can answer; use https, or set TIMESTAMP_ROOTS_FILE"
        )
    return found


def _of_server(setting: str, url: str, other_ways: tuple[str, ...]) -> list[str]:
    """Return what is wrong with how a server is logged in to; sockets ask the kernel who calls."""
    try:
        address = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        # libpq: what stands in the query wins over what stands before it.
        hosts = query.get("host") or address.hostname or ""
    except ValueError:
        return [f"{setting}: it cannot be read as a URL; write scheme://user:password@host/name"]
    is_socket = "unix" in address.scheme or "socket" in address.scheme
    if is_socket or all(host.startswith(("/", "@")) for host in hosts.split(",") if host):
        return []
    user = unquote(query.get("user") or address.username or "")
    password = unquote(query.get("password") or address.password or "")
    if not password and any(name in query for name in other_ways):
        return []
    objection = _objection_to(password, {user, address.path.lstrip("/")})
    remedy = f"put one of {SHORTEST_PASSWORD} characters or more into it (`openssl rand -hex 24`)"
    return [] if objection is None else [f"{setting}: {objection}; {remedy}"]


def _objection_to(password: str, names: set[str]) -> str | None:
    if not password:
        return "no password for a server on the network"
    if password.lower() in DEFAULT_PASSWORDS or password in names:
        return "its password is one that is tried first"
    if len(password) < SHORTEST_PASSWORD:
        return f"its password has fewer than {SHORTEST_PASSWORD} characters"
    return None


def _of_passphrase(settings: KeySettings) -> list[str]:
    if settings.key_passphrase is None:
        return []
    text = settings.key_passphrase.get_secret_value()
    words = text.lower()
    for password in sorted(DEFAULT_PASSWORDS, key=len, reverse=True):
        words = words.replace(password, "*")
    if len(set(text)) < FEWEST_CHARACTERS or 3 * len(words) <= len(text):
        return ["KEY_PASSPHRASE: it is an example; draw one with `openssl rand -hex 24`"]
    return []


def _of_anchor(setting: str, url: str | None) -> list[str]:
    if urlsplit(url or "").scheme != "http":
        return []
    what = "http can be changed on its way, and an anchor is what the log is held against"
    return [f"{setting}: {what}; use https"]


def _of_origin(origin: str) -> list[str]:
    host = origin.partition("/")[0].partition(":")[0].lower().rstrip(".")
    if host == "localhost" or any(host == one or host.endswith(f".{one}") for one in NOBODYS):
        return [
            (
                f"LOG_ORIGIN: {origin!r} is an example, and checkpoints of different services would"
                " bear one name; choose a name under a domain of yours before the first start"
            )
        ]
    return []
