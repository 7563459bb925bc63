from django.apps import AppConfig


class ExhaustConfig(AppConfig):
    name = "exhaust"

    def ready(self) -> None:
        from exhaust import tracing
        from exhaust.archive import feed, receiver
        from exhaust.feed import events
        from exhaust.jobs import withdrawal
        from ingest.privacy import erasure

        tracing.start_tracing()
        events.register_archive(feed.open_archive)
        erasure.files_searching.connect(withdrawal.revoke_files_of_erased, dispatch_uid="files")
        erasure.archive_erasing.connect(receiver.erase_device, dispatch_uid="archive")
        erasure.rows_erasing.connect(withdrawal.redact_dead_letters, dispatch_uid="erasing")
