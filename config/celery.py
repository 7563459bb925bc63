"""Celery's application and the schedule; the tasks stand in `exhaust/tasks.py`."""

import os

from celery import Celery
from celery.schedules import crontab

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("exhaust")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["exhaust"])
app.conf.beat_schedule = {
    "sweep": {"task": "exhaust.sweep", "schedule": 15.0},
    # one that waited behind a long job has nothing to add to the next
    "derive": {"task": "exhaust.derive", "schedule": 10.0, "options": {"expires": 10}},
    "nightly": {"task": "exhaust.nightly", "schedule": crontab(hour="2", minute="0")},
}
