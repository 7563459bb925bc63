from django.apps import AppConfig
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate

from ingest.db import binary_arrays


class IngestConfig(AppConfig):
    name = "ingest"

    def ready(self) -> None:
        from django.contrib.auth.signals import user_login_failed

        from ingest.auth import (
            roles,  # they need the models
            signals,
        )
        from ingest.tenancy import policies, session

        binary_arrays.register_dumper()
        signals.connect()
        connection_created.connect(session.restore_restriction)
        post_migrate.connect(policies.create_policies, sender=self)
        user_login_failed.connect(roles.record_lockout)
