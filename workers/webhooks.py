"""Tell who wants to know that a job has ended; signed, and again until they have heard.

The form is that of Standard Webhooks (https://www.standardwebhooks.com), so that receivers verify
it with a library.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time

from pipeline.allowed_hosts import AllowedHosts
from pipeline.outbound import AddressRefused, Client, FetchFailed
from pipeline.settings import SECRET_PREFIX, Settings
from pipeline.store.job_object import job_object
from workers.dispatch import require_names
from workers.resources import Resources

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
FIRST_PAUSE_S = 10.0
PAUSE_GROWTH = 4
MAX_ATTEMPTS = 7  # the last one after almost four hours
MAX_ANSWER_BYTES = 65_536


def webhook_client(settings: Settings) -> Client:
    """Return what sends webhooks to the hosts that are allowed."""
    hosts = AllowedHosts.parse(settings.webhook_hosts)
    return Client(hosts, "WEBHOOK_HOSTS", MAX_ANSWER_BYTES, TIMEOUT_S)


def send_webhook(resources: Resources, job_id: str) -> None:
    """Tell a job's webhook that the job has ended; harmless to run any number of times."""
    require_names(job_id)
    webhook = resources.webhooks.get(job_id)
    if webhook is None or webhook.state != "pending":
        return
    job = job_object(resources.jobs, job_id)
    now = int(time.time())
    body = json.dumps({"type": f"job.{job['state']}", "timestamp": now, "data": job}).encode()
    headers = {
        "Content-Type": "application/json",
        "webhook-id": f"job_{job_id}",
        "webhook-timestamp": str(now),
        "webhook-signature": signature(
            resources.settings.webhook_secret, f"job_{job_id}", now, body
        ),
    }
    try:
        status = webhook_client(resources.settings).post(webhook.url, body, headers).status
        problem = "" if 200 <= status < 300 else f"it answers with status {status}"
    except AddressRefused as error:
        _give_up(resources, job_id, str(error))
        return
    except FetchFailed as error:
        problem = str(error)
    if not problem:
        resources.webhooks.record(job_id, "delivered")
        log.info("Job %s: the webhook was delivered.", job_id)
    elif webhook.attempts + 1 >= MAX_ATTEMPTS:
        _give_up(resources, job_id, problem)
    else:
        pause_s = FIRST_PAUSE_S * PAUSE_GROWTH**webhook.attempts
        resources.webhooks.record(job_id, "pending", problem, pause_s)
        log.warning("Job %s: webhook, again in %.0f s: %s", job_id, pause_s, problem)


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Sign a message as Standard Webhooks does: HMAC-SHA256 of id, time and body.

    The key is what a secret encodes in base64 behind `whsec_`, or else the secret itself.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    encoded = secret.removeprefix(SECRET_PREFIX)
    key = secret.encode() if encoded == secret else base64.b64decode(encoded)
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def _give_up(resources: Resources, job_id: str, problem: str) -> None:
    resources.webhooks.record(job_id, "failed", problem)
    log.error("Job %s: the webhook is given up: %s", job_id, problem)
