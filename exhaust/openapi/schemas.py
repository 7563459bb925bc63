"""All bodies by name: JSON Schema.

Bodies that a serializer reads are not here: drf-spectacular reads the serializer.
"""

from exhaust.openapi.dataset_responses import DATASET_API, ENVELOPED, envelope
from exhaust.openapi.examples import EXAMPLES
from exhaust.openapi.ingest_bodies import DOORS
from exhaust.openapi.json_schema import Schema
from exhaust.openapi.pull_responses import PULL

SCHEMAS: dict[str, Schema] = {
    **DATASET_API,
    **{f"{name}Answer": envelope(name) for name in ENVELOPED},
    **PULL,
    **DOORS,
}
for _name, _value in EXAMPLES.items():
    if _name in SCHEMAS:
        SCHEMAS[_name]["examples"] = [_value]
