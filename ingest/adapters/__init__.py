"""One small module per wire format; adding one means copying the nearest neighbour."""

from ingest.adapters import telemetry

ADAPTERS = {
    "telemetry": telemetry,
}
