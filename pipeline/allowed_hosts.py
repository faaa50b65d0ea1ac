"""Which hosts may be asked, as settings list them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
# Addresses that stand for IPv4 ones, and that Python counts as global.
TRANSLATED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",  # NAT64, RFC 6052
        "64:ff9b:1::/48",  # NAT64 of one's own network, RFC 8215
        "2002::/16",  # 6to4, RFC 3056
        "2001::/32",  # Teredo, RFC 4380
        "::/96",  # IPv4-compatible, RFC 4291
        "fec0::/10",  # site-local, RFC 3879
    )
)


@dataclass(frozen=True)
class AllowedHosts:
    """Hosts that may be asked; addresses of `networks` may be private.

    With `public`, every host may be asked that has only public addresses.
    """

    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    public: bool = False

    @classmethod
    def parse(cls, setting: str, *, star: bool = False) -> AllowedHosts:
        """Read `cdn.example,*.images.example,10.1.0.0/16`.

        Args:
            star: whether `*` may stand for every host of the internet.

        Raises:
            ValueError: a part is neither a host nor a network.
        """
        names, suffixes, networks = set[str](), list[str](), list[Network]()
        parts = [part.strip().lower() for part in setting.split(",")]
        public = star and "*" in parts
        for part in parts:
            if not part or (public and part == "*"):
                continue
            try:
                networks.append(ipaddress.ip_network(part))
                continue
            except ValueError:
                pass
            name = part.removeprefix("*.")
            if not HOST_NAME.fullmatch(name):
                raise ValueError(
                    f"'{part}' is neither a host, nor *.HOST, nor a network such as 10.1.0.0/16"
                )
            if part.startswith("*."):
                suffixes.append(f".{name}")
            else:
                names.add(name)
        return cls(frozenset(names), tuple(suffixes), tuple(networks), public)

    def __bool__(self) -> bool:
        return bool(self.names or self.suffixes or self.networks or self.public)

    def allow_name(self, host: str) -> bool:
        address = _literal(host)
        if address is not None:
            return self.public or any(address in network for network in self.networks)
        return self.public or host in self.names or host.endswith(self.suffixes)

    def allow_address(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Tell whether an address belongs to the internet at large, and means what it says."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in TRANSLATED):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
