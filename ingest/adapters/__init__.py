"""One small module per wire format; adding one means copying the nearest neighbour."""

from ingest.adapters import clickstream, desk, skalin, telemetry

ADAPTERS = {
    "clickstream": clickstream,
    "desk": desk,
    "skalin": skalin,
    "telemetry": telemetry,
}
