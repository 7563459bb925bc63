from django.apps import AppConfig
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate
from django.urls import register_converter

from ingest.db import binary_arrays
from ingest.http.any_text import AnyText


class IngestConfig(AppConfig):
    name = "ingest"

    def ready(self) -> None:
        from django.contrib.auth.signals import user_login_failed

        from ingest.auth import (
            roles,  # they need the models
            signals,
        )
        from ingest.tenancy import policies, session

        register_converter(AnyText, "text")
        binary_arrays.register_dumper()
        signals.connect()
        connection_created.connect(session.restore_restriction)
        post_migrate.connect(policies.create_policies, sender=self)
        user_login_failed.connect(roles.record_lockout)
