"""The JSON object of an index version, for the command line and the HTTP API."""

from __future__ import annotations

from typing import Any

from pipeline.index.choose import IndexSpec
from pipeline.index.versions import Version


def version_object(version: Version, current: str | None) -> dict[str, Any]:
    """Return the facts of a version; `current` names the published one."""
    manifest = version.manifest
    kind = IndexSpec.of(manifest["index"])
    return {
        "version": version.name,
        "published": version.name == current,
        "images": manifest["images"],
        "dimension": manifest["dimension"],
        "index": manifest["index"]["factory"],
        "nprobe": manifest["index"]["nprobe"],
        "recall_at_10": manifest["index"]["recall_at_10"],
        "rerank": kind.rerank,
        "memory": kind.memory,
        "reason": kind.reason,
        "bytes": sum(file["bytes"] for file in manifest["files"].values()),
        "fingerprint": manifest["fingerprint"]["id"],
        "made_with": manifest["fingerprint"]["summary"],
        "job_id": manifest["job_id"],
        "root": manifest["root"],
        "created_at": manifest["created_at"],
    }
