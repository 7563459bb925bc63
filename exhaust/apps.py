from django.apps import AppConfig


class ExhaustConfig(AppConfig):
    name = "exhaust"

    def ready(self) -> None:
        from exhaust import tracing
        from exhaust.jobs import withdrawal
        from ingest.privacy import consent, erasure

        tracing.start_tracing()
        consent.consent_withdrawn.connect(withdrawal.revoke_files_for, dispatch_uid="withdrawn")
        erasure.rows_erasing.connect(withdrawal.redact_dead_letters, dispatch_uid="erasing")
