"""Celery's side: a task gets its resources, calls the pipeline, records, returns.

`celery worker -Q embed` needs no `-A`: the default app reads celeryconfig.py. `-A workers` names
the same app.
"""

from celery import current_app

app = current_app._get_current_object()
