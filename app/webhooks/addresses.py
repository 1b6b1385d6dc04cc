"""Where messages may go: https to public addresses, decided about what is connected to.

Who may register a webhook could otherwise make the service talk to what only the service can reach
(server-side request forgery): databases, cloud metadata, other tenants. A name is no protection:
it may answer a public address when asked first and a private one when asked again (DNS rebinding).
So every address is checked, at each delivery, and the connection goes to a checked one.
"""

import queue
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Self

import httpx

from app.settings import Settings

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

# The texts of a name's addresses, within so many seconds.
Resolver = Callable[[str, int, float], Sequence[str]]

LONGEST_URL: Final = 2000

# IANA's special-purpose registries, and what is forbidden beside them. Written out: the standard
# library's `is_global` differs from one Python to the next, and lets multicast, NAT64 and 6to4 by.
FORBIDDEN: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by carriers"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's platform"),  # Azure's, a public address
        ("169.254.0.0/16", "link-local, cloud metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "for protocols"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT"),
        ("192.88.99.0/24", "6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        # What is not in 2000::/3 is forbidden as a whole, IPv4-mapped, NAT64 and private ones too.
        ("2001::/23", "for protocols, Teredo"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")


class TargetError(Exception):
    """Nothing is sent to a URL: because of its form, its name, or where that leads.

    Attributes:
        finding: What is wrong. It does not quote addresses that a name resolved to: an answer that
            did would let callers read the private network's DNS.
        remedy: What would help.
    """

    def __init__(self, finding: str, remedy: str) -> None:
        super().__init__(finding)
        self.finding = finding
        self.remedy = remedy


class ForbiddenTargetError(TargetError):
    """The URL may not be sent to."""


class UnresolvedTargetError(TargetError):
    """The URL's host has no address, or its name server does not answer."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL whose form was checked, in the parts that a request needs."""

    scheme: str
    host: str
    port: int
    authority: str  # as the `Host` header has it
    path: str  # with the query

    @property
    def origin(self) -> str:
        """Return what of the URL may be logged: paths and queries may be secrets."""
        return f"{self.scheme}://{self.authority}"


def resolve(host: str, port: int, seconds: float) -> list[str]:
    """Ask the system for the addresses of a name.

    Raises:
        UnresolvedTargetError: It has none, or no answer came in time.
    """
    # The system's call cannot be told to hurry: it is left behind in a thread of its own.
    answer: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that DNS cannot hold
            answer.put(error)
        else:
            answer.put([str(address[0]) for *_, address in found])

    threading.Thread(target=ask, name="lethe-resolver", daemon=True).start()
    try:
        addresses = answer.get(timeout=max(seconds, 0))
    except queue.Empty:
        raise UnresolvedTargetError(
            f"the name server did not answer for {host!r} within {seconds:.1f} s",
            "Try again, or check the service's DNS.",
        ) from None
    if isinstance(addresses, Exception):
        raise UnresolvedTargetError(
            f"{host!r} has no address", "Check the name; the service has to be able to resolve it."
        ) from addresses
    return addresses


@dataclass(frozen=True, slots=True)
class Guard:
    """The operator's rules on where messages may go, and the way names are resolved."""

    allow_http: bool
    ports: frozenset[int]
    allowed_networks: tuple[Network, ...]
    resolver: Resolver = resolve

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the rules that the settings make."""
        return cls(
            allow_http=settings.webhook_allow_http,
            ports=frozenset(settings.webhook_ports),
            allowed_networks=settings.webhook_allow_private_networks,
        )

    def parse(self, url: str) -> Target:
        """Check a URL's form and return its parts; nothing is looked up.

        Raises:
            ForbiddenTargetError: It is malformed, or of a kind that nothing is sent to.
        """
        if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
            raise ForbiddenTargetError(
                f"it is not {LONGEST_URL} printable ASCII characters at most",
                "Percent-encode what else it holds; write the host in Punycode.",
            )
        # Browsers read a backslash as a slash, others do not: whoever checks and whoever connects
        # must not differ.
        try:
            parsed = None if "\\" in url else httpx.URL(url)
        except httpx.InvalidURL:
            parsed = None
        schemes = ("https", "http") if self.allow_http else ("https",)
        if parsed is None or parsed.scheme not in schemes or not parsed.host:
            raise ForbiddenTargetError(
                f"it is no {' or '.join(schemes)} address",
                "Send https://<host>/<path>"
                + (
                    "."
                    if self.allow_http
                    else "; for development an operator may set WEBHOOK_ALLOW_HTTP."
                ),
            )
        if parsed.userinfo or parsed.fragment or "#" in url:
            raise ForbiddenTargetError(
                "it holds a user, a password or a fragment",
                "Leave them out: the signature says who sends, and receivers check it.",
            )
        port = {"https": 443, "http": 80}[parsed.scheme] if parsed.port is None else parsed.port
        if port not in self.ports:
            raise ForbiddenTargetError(
                f"port {port} is none of {', '.join(map(str, sorted(self.ports)))}",
                "Take one of these; an operator may allow others in WEBHOOK_PORTS.",
            )
        return Target(
            parsed.scheme,
            # Names in ASCII, an IPv6 address without its brackets.
            parsed.raw_host.decode("ascii"),
            port,
            parsed.netloc.decode("ascii"),
            parsed.raw_path.decode("ascii"),
        )

    def addresses(self, host: str, port: int, seconds: float) -> list[str]:
        """Resolve a name and return its addresses, all of which may be connected to.

        Raises:
            UnresolvedTargetError: It has none.
            ForbiddenTargetError: One of them may not be connected to. The others are not used
                either: whoever mixes them is up to something.
        """
        found = list(dict.fromkeys(self.resolver(host, port, seconds)))
        if not found:
            raise UnresolvedTargetError(f"{host!r} has no address", "Check the name.")
        for address in found:
            if (kind := self.objection(address)) is not None:
                raise ForbiddenTargetError(
                    f"{host!r} leads to an address that is not public ({kind})",
                    "Take a receiver on the public internet; an operator may allow networks in"
                    " WEBHOOK_ALLOW_PRIVATE_NETWORKS.",
                )
        return found

    def objection(self, text: str) -> str | None:
        """Return what kind of address it is that may not be connected to; None if it may."""
        try:
            address = ip_address(text)
        except ValueError:
            return "not an IP address"
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return "link-local"  # of one network interface
        if any(
            address.version == network.version and address in network
            for network in self.allowed_networks
        ):
            return None
        return objection_to(address)


def objection_to(address: Address) -> str | None:
    """Return what kind of address it is if it is not a public one of a single host."""
    for network, kind in FORBIDDEN:
        if address.version == network.version and address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "IPv6 that is not global unicast"
    return None
