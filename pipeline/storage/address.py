"""The address of an object store: checked, and without any credential."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import WrongUse

SCHEMES = ("s3", "gs", "az", "http", "https")
ADDRESS = re.compile(r"(?i)([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
HOST = re.compile(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9A-Fa-f:]+\](:\d{1,5})?")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def is_address(text: str) -> bool:
    """Tell whether a text names a place by scheme, e.g. s3://bucket, and not a folder."""
    return ADDRESS.match(text) is not None


@dataclass(frozen=True)
class Address:
    """A bucket, a container or a web server, and the prefix of the keys below it."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            WrongUse: it names no store, or holds what belongs into the environment.
        """
        match = ADDRESS.match(text)
        scheme = match[1].lower() if match else ""
        if match is None or scheme not in SCHEMES:
            names = ", ".join(f"{each}://" for each in SCHEMES)
            raise WrongUse(f"A store's address starts with one of {names} or file://.")
        bucket, _, prefix = match[2].partition("/")
        if "@" in bucket or (scheme.startswith("http") and ("?" in prefix or "#" in prefix)):
            raise WrongUse(
                f"The address of a {scheme}:// store holds a user, a password or a signature: "
                "credentials come from the environment, e.g. AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY."
            )
        if not (HOST if scheme.startswith("http") else BUCKET).fullmatch(bucket):
            what = "host" if scheme.startswith("http") else "bucket"
            raise WrongUse(f"The address {text[:200]!r} names no {what}: write {scheme}://{what}/.")
        prefix = prefix.strip("/")
        if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
            raise WrongUse(
                f"The address {text[:200]!r} cannot be used: no part of its path may be empty, "
                "'.' or '..'."
            )
        return cls(scheme, bucket, prefix)
