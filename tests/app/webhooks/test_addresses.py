"""Where messages may go, held against the registries' own tables and the standard library."""

import ipaddress
import socket
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.provisional import urls

from app.webhooks.addresses import (
    ForbiddenTargetError,
    Guard,
    UnresolvedTargetError,
    objection_to,
    resolve,
)

# IANA's registries of special-purpose addresses as of 2025, and of multicast, with what they list
# as not globally reachable; copied from there and not from the code.
SPECIAL_IPV4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
]
SPECIAL_IPV6 = [
    "::1/128",
    "::/128",
    "::ffff:0:0/96",
    "::/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]

# Where clouds answer with credentials: AWS, GCP, Azure and others; AWS over IPv6; GCP; Azure;
# Alibaba; Oracle.
METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "fd00:ec2::254",
    "fd20:ce::254",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
]


def addresses_in(networks):
    """Draw an address of one of some networks."""
    return st.sampled_from(networks).flatmap(
        lambda network: st.ip_addresses(network=ipaddress.ip_network(network))
    )


@given(addresses_in(SPECIAL_IPV4 + SPECIAL_IPV6))
def test_no_address_of_a_special_range_is_connected_to(address):
    assert objection_to(address) is not None


@given(addresses_in(SPECIAL_IPV4), st.sampled_from(["::ffff:0:0", "64:ff9b::", "::", "2002::"]))
def test_no_private_address_gets_by_inside_an_ipv6_one(address, prefix):
    shift = 80 if prefix == "2002::" else 0
    inside = int(ipaddress.IPv6Address(prefix)) | int(address) << shift
    assert objection_to(ipaddress.IPv6Address(inside)) is not None


@given(st.ip_addresses())
def test_whatever_is_connected_to_is_public_by_the_standard_library_too(address):
    if objection_to(address) is None:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@given(st.ip_addresses(v=4))
@example(ipaddress.IPv4Address("8.8.8.8"))
@example(ipaddress.IPv4Address("172.32.0.1"))
@example(ipaddress.IPv4Address("100.128.0.1"))
@example(ipaddress.IPv4Address("223.255.255.255"))
def test_few_public_ipv4_addresses_are_refused(address):
    if objection_to(address) is not None and address.is_global and not address.is_multicast:
        # Anycast services of the registry, and Azure's platform.
        assert str(address).startswith(
            ("192.31.196.", "192.52.193.", "192.88.99.", "192.175.48.", "192.0.0.", "168.63.129.16")
        )


@pytest.mark.parametrize("address", METADATA)
def test_metadata_of_clouds_is_refused(address):
    assert objection_to(ipaddress.ip_address(address)) is not None


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::6810:84e5", "2a00:1450:4001:80b::200e"]
)
def test_public_addresses_are_connected_to(address):
    assert objection_to(ipaddress.ip_address(address)) is None


def guard(*answers, **changes):
    """Return rules under which the name server gives some answers, and the last one for ever."""
    asked = []

    def resolver(host, port, seconds):
        asked.append((host, port, seconds))
        return answers[min(len(asked), len(answers)) - 1]

    values = {"allow_http": False, "ports": frozenset({443, 8443}), "allowed_networks": ()}
    return Guard(**values | changes, resolver=resolver)


def test_one_private_address_among_public_ones_is_enough_to_refuse_them_all():
    with pytest.raises(ForbiddenTargetError, match="not public") as caught:
        guard(["93.184.216.34", "10.1.2.3"]).addresses("example.org", 443, 1)
    # Whoever asks must not read the private network's names.
    assert "10.1.2.3" not in caught.value.finding


def test_a_name_is_asked_for_each_time_so_that_a_second_answer_is_checked_like_the_first():
    rules = guard(["93.184.216.34"], ["127.0.0.1"])
    assert rules.addresses("example.org", 443, 1) == ["93.184.216.34"]
    with pytest.raises(ForbiddenTargetError, match="loopback"):
        rules.addresses("example.org", 443, 1)


def test_a_network_that_the_operator_allows_lets_nothing_else_by():
    rules = guard(["10.1.2.3"], allowed_networks=(ipaddress.ip_network("10.1.0.0/16"),))
    assert rules.addresses("internal", 443, 1) == ["10.1.2.3"]
    for address in ("10.2.0.1", "::ffff:10.1.2.3", "64:ff9b::a01:203", "127.0.0.1"):
        assert rules.objection(address) is not None


def test_an_address_of_one_interface_is_refused_even_where_its_network_is_allowed():
    rules = guard(allowed_networks=(ipaddress.ip_network("fe80::/10"),))
    assert rules.objection("fe80::1") is None
    assert rules.objection("fe80::1%eth0") is not None
    assert rules.objection("localhost") is not None


def test_a_name_without_addresses_is_no_target():
    with pytest.raises(UnresolvedTargetError, match="no address"):
        guard([]).addresses("example.org", 443, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0"])
def test_every_spelling_of_loopback_is_seen_through_by_the_systems_own_resolver(host):
    rules = Guard(allow_http=False, ports=frozenset({443}), allowed_networks=())
    target = rules.parse(f"https://{host}/")
    with pytest.raises(ForbiddenTargetError, match="not public"):
        rules.addresses(target.host, target.port, 5)


def test_a_name_that_dns_cannot_hold_has_no_address():
    with pytest.raises(UnresolvedTargetError, match="no address"):
        resolve("a" * 64 + ".example.org", 443, 5)


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: released.wait(30) and [])
    with pytest.raises(UnresolvedTargetError, match="did not answer"):
        resolve("example.org", 443, 0.05)
    released.set()


@pytest.mark.parametrize(
    ("url", "finding"),
    [
        ("http://example.org/", "no https address"),
        ("ftp://example.org/", "no https address"),
        ("file:///etc/passwd", "no https address"),
        ("gopher://example.org/", "no https address"),
        ("https:///path", "no https address"),
        ("https://", "no https address"),
        ("example.org", "no https address"),
        ("//example.org", "no https address"),
        ("https://example.org\\@127.0.0.1/", "no https address"),
        ("https://[::1/", "no https address"),
        ("https://0177.0.0.1/", "no https address"),
        ("https://example.org:99999/", "port 99999"),
        ("https://example.org:0/", "port 0"),
        ("https://user@example.org/", "user, a password or a fragment"),
        ("https://user:pass@example.org/", "user, a password or a fragment"),
        ("https://example.org/#part", "user, a password or a fragment"),
        ("https://example.org/#", "user, a password or a fragment"),
        ("https://example.org:22/", "port 22"),
        ("https://example.org:6379/", "port 6379"),
        ("https://example.org:80/", "port 80"),
        ("https://example.org/a b", "printable ASCII"),
        ("https://example.org/\r\nHost: evil", "printable ASCII"),
        ("https://exämple.org/", "printable ASCII"),
        ("https://example.org/\0", "printable ASCII"),
        ("https://example.org/" + "a" * 2000, "printable ASCII"),
    ],
)
def test_urls_of_another_form_are_refused(url, finding):
    with pytest.raises(ForbiddenTargetError, match=finding) as caught:
        guard().parse(url)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://example.org", ("https", "example.org", 443, "example.org", "/")),
        ("https://example.org:443/a", ("https", "example.org", 443, "example.org", "/a")),
        (
            "HTTPS://Example.ORG:8443/a?b=c",
            ("https", "example.org", 8443, "example.org:8443", "/a?b=c"),
        ),
        ("https://[2606:4700::1]/", ("https", "2606:4700::1", 443, "[2606:4700::1]", "/")),
        (
            "https://xn--exmple-cua.org/",
            ("https", "xn--exmple-cua.org", 443, "xn--exmple-cua.org", "/"),
        ),
    ],
)
def test_a_url_is_taken_apart_once_for_the_check_and_for_the_request(url, parts):
    target = guard().parse(url)
    assert (target.scheme, target.host, target.port, target.authority, target.path) == parts


def test_plain_http_is_for_operators_who_allow_it():
    target = guard(allow_http=True, ports=frozenset({80})).parse("http://localhost/")
    assert (target.scheme, target.port) == ("http", 80)


@given(urls() | st.text(max_size=60) | st.text(max_size=60).map("https://".__add__))
def test_any_text_is_either_taken_apart_or_refused(url):
    try:
        target = guard().parse(url)
    except ForbiddenTargetError:
        return
    assert target.scheme == "https"
    assert target.port in {443, 8443}
    assert target.host
    assert target.path.startswith("/")
    # Nothing of it can add a line to a request.
    assert all(part.isprintable() and part.isascii() for part in (target.authority, target.path))
