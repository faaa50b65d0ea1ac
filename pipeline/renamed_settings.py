"""Settings that were renamed: their old names work in this release only."""

from __future__ import annotations

import logging

from pydantic_settings import EnvSettingsSource

log = logging.getLogger(__name__)

# Old name: new name.
RENAMED = {
    "precision": "model_precision",
    "prepared_cache_bytes": "cutout_cache_bytes",
    "shard_window": "max_shards_in_flight",
    "stall_s": "hung_after_s",
    "max_attempts": "shard_max_attempts",
}


def accept_old_names(sources: list[EnvSettingsSource]) -> None:
    """Let the old name of a setting set it, unless the new name does; the sources come by rank."""
    for old, new in RENAMED.items():
        old_source = next((each for each in sources if old in each.env_vars), None)
        if old_source is None:
            continue
        value = old_source.env_vars[old]
        new_value = next((each.env_vars[new] for each in sources if new in each.env_vars), None)
        if new_value is None:
            old_source.env_vars = {**old_source.env_vars, new: value}
        if new_value in (None, value):
            log.warning(
                "%s was renamed to %s; the old name works until the next release.",
                old.upper(),
                new.upper(),
            )
        else:
            log.warning(
                "%s was renamed to %s; both are set and differ: %s is used.",
                old.upper(),
                new.upper(),
                new.upper(),
            )
