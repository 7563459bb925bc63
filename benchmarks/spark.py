"""Exports the rows of `benchmarks.baselines` by PySpark on two cores; its request is on stdin."""

import json
import sys
from typing import Any


def main() -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    request = json.load(sys.stdin)
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "4g")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    cells = []
    is_refused = f.col("device_id").isin(request["refused"])
    for header, _, path, has_consent in request["columns"]:
        if path == ["conversation_name"]:
            cell = f.lit(request["name"])
        else:
            cell = f.col(".".join(f"`{name}`" for name in path))
        if has_consent and request["refused"]:
            cell = f.when(~is_refused, cell)
        cells.append(cell.alias(header))
    (
        spark.read.schema(spark_schema(request["columns"]))
        .json(request["lines"])
        .where(
            (f.col("conversation") == request["conversation"])
            & f.col("is_answer")
            & (f.col("occurred_at") >= request["start"])
            & (f.col("occurred_at") < request["end"])
        )
        .select(cells)
        .write.csv(
            request["target"], quote='"', escape='"', emptyValue="",
            ignoreLeadingWhiteSpace=False, ignoreTrailingWhiteSpace=False,
        )
    )  # fmt: skip
    spark.stop()


def spark_schema(columns: list[Any]) -> Any:
    """Returns the schema of a line, without which Spark reads twice. JSON stays text."""
    from pyspark.sql.types import BooleanType, StringType, StructField, StructType

    names: dict[str, Any] = dict.fromkeys(("conversation", "device_id", "session_id"), StringType())
    names |= {"occurred_at": StringType(), "is_answer": BooleanType(), "payload": {}}
    for _, _, path, _ in columns:
        if path[0] == "payload":
            payload_type = names["payload"]
            for name in path[1:-1]:
                payload_type = payload_type.setdefault(name, {})
            payload_type[path[-1]] = StringType()

    def struct_type(fields: dict[str, Any]) -> Any:
        return StructType(
            [
                StructField(name, struct_type(kind) if isinstance(kind, dict) else kind)
                for name, kind in fields.items()
            ]
        )

    return struct_type(names)


if __name__ == "__main__":
    main()
