"""Which service is meant: URLs, environment, tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from duovisor.client.endpoint import Endpoint, find_endpoint, parse_url
from duovisor.client.errors import EndpointError


def test_without_a_word_it_is_this_hosts_own() -> None:
    found = find_endpoint(environ={"DUOVISOR_RUNTIME_DIR": "/tmp/r"})
    assert found == Endpoint(Path("/tmp/r/duovisord.sock"), is_default=True)
    assert str(found) == "unix:///tmp/r/duovisord.sock"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("unix:///run/a.sock", Endpoint(Path("/run/a.sock"), token="t")),
        ("https://host", Endpoint(None, "host", 8443, "t")),
        ("https://host:99/", Endpoint(None, "host", 99, "t")),
        ("https://[::1]:99", Endpoint(None, "::1", 99, "t")),
    ],
)
def test_urls(url: str, endpoint: Endpoint) -> None:
    assert parse_url(url, "t") == endpoint
    assert find_endpoint(url, environ={"DUOVISOR_TOKEN": "t"}) == endpoint
    assert find_endpoint(environ={"DUOVISOR_HOST": url, "DUOVISOR_TOKEN": "t"}) == endpoint


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://host", "in clear text"),
        ("https://", "not the address"),
        ("https://host/path", "not the address"),
        ("https://host:port", "not an address"),
        ("unix://relative", "not the address"),
        ("host:8443", "not the address"),
        ("ftp://host", "not the address"),
    ],
)
def test_what_is_no_address(url: str, said: str) -> None:
    with pytest.raises(EndpointError, match=said):
        parse_url(url, "t")


def test_https_needs_a_token() -> None:
    with pytest.raises(EndpointError, match="a token is needed for https://host"):
        find_endpoint("https://host", environ={})


def test_token_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("duovisor_abc\n")
    assert find_endpoint("https://host", file, environ={}).token == "duovisor_abc"
    file.write_text("two\nlines\n")
    with pytest.raises(EndpointError, match="holds no token"):
        find_endpoint("https://host", file, environ={})
    file.write_text("")
    with pytest.raises(EndpointError, match="holds no token"):
        find_endpoint("https://host", file, environ={})
    with pytest.raises(EndpointError, match="cannot read the token file"):
        find_endpoint("https://host", tmp_path, environ={})
