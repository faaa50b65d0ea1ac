"""Where the credentials of AWS come from that the store's library does not look for: a profile.

The environment, a container's or an instance's role, and everything of Google Cloud and Azure are
the library's own business. Nothing here is ever shown.
"""

from __future__ import annotations

import configparser
import os
from pathlib import Path

from pipeline.errors import StoreRefused

# The settings of a profile, and what the library calls them.
KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
PLACES = {"region": "region", "endpoint_url": "endpoint"}
INDIRECT = ("role_arn", "sso_session", "sso_start_url", "credential_process")


def aws_profile() -> dict[str, str]:
    """Return what the profile of AWS_PROFILE, or the default one, sets; the environment wins.

    https://docs.aws.amazon.com/cli/latest/topic/config-vars.html

    Raises:
        StoreRefused: AWS_PROFILE names a profile that does not exist or has no access key.
    """
    name = os.environ.get("AWS_PROFILE", "")
    section = name or "default"
    facts: dict[str, str] = {}
    for variable, default, prefix in (
        ("AWS_CONFIG_FILE", "~/.aws/config", "profile "),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", ""),
    ):
        file = Path(os.environ.get(variable) or default).expanduser()
        title = f"{prefix}{section}" if section != "default" else section
        facts |= _section(file, title)
    if name and not facts:
        raise StoreRefused(f"AWS_PROFILE names the profile {name!r}, which does not exist.")
    if name and "aws_access_key_id" not in facts and any(key in facts for key in INDIRECT):
        raise StoreRefused(
            f"The profile {name!r} of AWS_PROFILE has no access key of its own: set "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, e.g. with 'aws "
            "configure export-credentials --format env'."
        )
    options = {PLACES[key]: facts[key] for key in PLACES if key in facts}
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        options |= {KEYS[key]: facts[key] for key in KEYS if key in facts}
    return options


def _section(file: Path, title: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(file)
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        # Without its cause, which quotes the line.
        raise StoreRefused(
            f"The file {file} cannot be read as AWS configuration: {type(error).__name__}."
        ) from None
    return dict(parser.items(title)) if parser.has_section(title) else {}
