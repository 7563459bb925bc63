"""The file of `benchmarks.peers` by PySpark on two cores; it is told what to do on stdin."""

import json
import sys
from typing import Any


def main() -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    told = json.load(sys.stdin)
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "4g")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    cells = []
    refused = f.col("device_id").isin(told["refused"])
    for header, _, path, consented in told["columns"]:
        if path == ["conversation_name"]:
            cell = f.lit(told["name"])
        else:
            cell = f.col(".".join(f"`{name}`" for name in path))
        if consented and told["refused"]:
            cell = f.when(~refused, cell)
        cells.append(cell.alias(header))
    (
        spark.read.schema(schema(told["columns"]))
        .json(told["lines"])
        .where(
            (f.col("conversation") == told["conversation"])
            & f.col("is_answer")
            & (f.col("occurred_at") >= told["start"])
            & (f.col("occurred_at") < told["end"])
        )
        .select(cells)
        .write.csv(
            told["target"], quote='"', escape='"', emptyValue="",
            ignoreLeadingWhiteSpace=False, ignoreTrailingWhiteSpace=False,
        )
    )  # fmt: skip
    spark.stop()


def schema(columns: list[Any]) -> Any:
    """What of a line is read; without it Spark would read everything twice. JSON stays text."""
    from pyspark.sql.types import BooleanType, StringType, StructField, StructType

    names: dict[str, Any] = dict.fromkeys(("conversation", "device_id", "session_id"), StringType())
    names |= {"occurred_at": StringType(), "is_answer": BooleanType(), "payload": {}}
    for _, _, path, _ in columns:
        if path[0] == "payload":
            held = names["payload"]
            for name in path[1:-1]:
                held = held.setdefault(name, {})
            held[path[-1]] = StringType()

    def struct(fields: dict[str, Any]) -> Any:
        return StructType(
            [
                StructField(name, struct(kind) if isinstance(kind, dict) else kind)
                for name, kind in fields.items()
            ]
        )

    return struct(names)


if __name__ == "__main__":
    main()
