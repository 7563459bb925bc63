from django.apps import AppConfig


class ExhaustConfig(AppConfig):
    name = "exhaust"

    def ready(self) -> None:
        from exhaust.jobs import withdrawal
        from ingest.privacy import consent, erasure

        consent.withdrawn.connect(withdrawal.on_withdrawn, dispatch_uid="withdrawn")
        erasure.erasing.connect(withdrawal.on_erasing, dispatch_uid="erasing")
