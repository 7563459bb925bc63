"""All bodies by name: JSON Schema.

Bodies that a serializer reads are not here: drf-spectacular reads the serializer.
"""

from config.openapi.dataset_answers import DATASET_API, ENVELOPED, envelope
from config.openapi.door_bodies import DOORS
from config.openapi.examples import EXAMPLES
from config.openapi.pull_answers import PULL
from config.openapi.words import Schema

SCHEMAS: dict[str, Schema] = {
    **DATASET_API,
    **{f"{name}Answer": envelope(name) for name in ENVELOPED},
    **PULL,
    **DOORS,
}
for _name, _value in EXAMPLES.items():
    if _name in SCHEMAS:
        SCHEMAS[_name]["examples"] = [_value]
