"""Every Celery setting. Celery's default loader reads this file: `celery worker -Q embed`.

Tasks are acknowledged when they start, not when they end, unlike what is usual for long work. The
job table in the database knows each shard's owner and lease, and a reconciler sends again what was
lost, which the Redis transport needs anyway: it can lose a message between BRPOP and its own
bookkeeping. Late acknowledgement would add three troubles and no safety: a task longer than the
visibility timeout runs twice; a worker with a running task dies when Redis does (kombu 5.7.0);
and an acknowledged result waits for a Redis that is away.
"""

import logging
import os

from imgrec import use_own_packages

use_own_packages()  # before any of them is imported

from pipeline.settings import load_settings  # noqa: E402
from pipeline.store.redis_client import PREFIX  # noqa: E402
from pipeline.urls import celery_address  # noqa: E402
from workers.routes import QUEUE_OF  # noqa: E402

_settings = load_settings()

# OpenMP and NumPy's BLAS size their pools when they first load, and the tasks import both.
os.environ.setdefault("OMP_NUM_THREADS", str(_settings.threads))

# Celery lets these variables win over any configuration: those of another project of the user's
# would send the workers to another broker than the commands.
for _name in ("BROKER_URL", "BROKER_READ_URL", "BROKER_WRITE_URL", "RESULT_BACKEND"):
    if os.environ.pop(f"CELERY_{_name}", None):
        logging.getLogger(__name__).warning(
            "CELERY_%s is ignored: the broker of imgrec is REDIS_URL.", _name
        )

imports = ("workers.lifecycle", "workers.tasks")

broker_url = result_backend = celery_address(_settings.redis_url)

# Queue names only: Celery then publishes without a binding table, which a wiped Redis would lose.
task_routes = {task: {"queue": queue} for task, queue in QUEUE_OF.items()}

# Never pickle: who can write to Redis would own the workers.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json", "msgpack"]  # msgpack carries the bytes of query images
result_accept_content = ["json"]

task_acks_late = False
worker_prefetch_multiplier = 1
# A worker takes a message only when a thread is free for it: a second shard would wait behind the
# first while other workers idle.
worker_disable_prefetch = True

# Threads: torch, onnxruntime and CUDA must not be used before a fork, so there is none.
worker_pool = "workers.pool:Pool"
worker_pool_start_method = "spawn"  # for those who choose prefork
worker_concurrency = 1  # a worker of queries alone: QUERY_CONCURRENCY, see workers.lifecycle

worker_hijack_root_logger = True
worker_log_format = "%(asctime)s %(levelname)s %(message)s"
worker_task_log_format = "%(asctime)s %(levelname)s %(message)s"
worker_redirect_stdouts = False
worker_send_task_events = False

broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # outlast any outage
worker_cancel_long_running_tasks_on_connection_loss = False
broker_transport_options = {
    "global_keyprefix": PREFIX,
    # Concerns only messages taken but not started; a started one is acknowledged.
    "visibility_timeout": 60,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 60,
    "health_check_interval": 15,
    # Each silent connection is waited for so long, one after the other, before a new one is made.
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "max_connections": 4 * _settings.query_concurrency,
}
result_backend_transport_options = {
    "global_keyprefix": PREFIX,
    "retry_policy": {"max_retries": 3, "interval_start": 0, "interval_step": 0.2},
}
result_backend_always_retry = True  # or the result of a task that ends in an outage is lost
result_backend_max_retries = 60
result_expires = 3600
redis_socket_timeout = 10
redis_socket_connect_timeout = 3
# redis-py refuses it for a socket's file, and with it each result (celery 5.7.0).
redis_socket_keepalive = not _settings.redis_url.startswith("unix://")
redis_retry_on_timeout = True
redis_backend_health_check_interval = 15

task_publish_retry = True
task_publish_retry_policy = {
    "max_retries": 2,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 0.5,
}
