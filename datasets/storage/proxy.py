"""The proxy that the environment names for a URL: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY,
in upper or lower case. This machine itself is never asked through one."""

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def bypass_loopback() -> None:
    """Adds this machine's own addresses to NO_PROXY, for this process and what it starts.

    Clients read it in upper or in lower case, and some both: both get the same hosts.
    """
    named = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for hosts in named for host in hosts.split(",") if host.strip()]
    everything = ",".join(dict.fromkeys([*hosts, *LOOPBACK_HOSTS]))
    # `*` counts for most clients only alone: no proxy at all.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*" if "*" in hosts else everything


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine itself, by its name or address."""
    return host in LOOPBACK_HOSTS or host.startswith("127.")


def proxy_of(url: str) -> str | None:
    """URL of the proxy that a request for `url` goes through; None: it goes directly."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def through_proxy(url: str) -> str:
    """The words of an error message for a request that a proxy passed on or not, without the
    proxy's password; empty without a proxy."""
    proxy = proxy_of(url)
    if proxy is None:
        return ""
    parts = urlsplit(proxy)
    return f" through the proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]}"
