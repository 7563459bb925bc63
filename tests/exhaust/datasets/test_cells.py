import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from exhaust.datasets import DATASETS
from exhaust.datasets.cells import (
    Column,
    cells_sql,
    escape_formula,
    format_json,
    format_time,
    joins_sql,
    make_cell_reader,
    may_hold_formulas,
)


def cell(kind: Any, raw: str, *, refused: bool = False, consented: bool = False) -> str | None:
    """The portable cell of a value written as JSON."""
    column = Column("Header", kind, ("payload", "edata", "v"), "", consented)
    return make_cell_reader([column])({}, f'{{"edata": {{"v": {raw}}}}}', refused)[0]


@pytest.mark.parametrize(
    "text",
    [
        "=1", "=", "+SUM(1)", "-SUM(1)", "@x", "\t=1", "\r=1", "\n=1", "\t", "＝1", "＋1", "－1",
        "＠x", "-", "+", "--5", "+-5", "-5x", "-5\n", "+1\n=2", "-1+2", "+91 98765 43210;", "-1e5",
        "-٥",
    ],
)  # fmt: skip
def test_formulas_are_escaped(text: str):
    assert escape_formula(text) == "'" + text


@pytest.mark.parametrize(
    "text",
    [
        "", "a", " =1", "'=1", "1=1", "\x0b=1", "\ufeff=1", "é", "5", "-5", "+5", "-1,234.50",
        "+91 98765 43210", "+919876543210", "+1 (555) 010-9999", "-0", "-5 ", "(5)", "a\n=1",
    ],
)  # fmt: skip
def test_other_text_is_not_escaped(text: str):
    assert escape_formula(text) == text


@pytest.mark.parametrize(
    ("spelling", "printed"),
    [
        ("0", "0"),
        ("1", "1"),
        ("-1", "-1"),
        ("-0", "0"),
        ("-0.0", "0.0"),
        ("0.0", "0.0"),
        ("1.0", "1.0"),
        ("1.50", "1.50"),
        ("100.00", "100.00"),
        ("1E2", "100"),
        ("1e2", "100"),
        ("1e+2", "100"),
        ("1E-2", "0.01"),
        ("1.5e3", "1500"),
        ("12E-1", "1.2"),
        ("1e-7", "0.0000001"),
        ("1e21", "1" + "0" * 21),
        ("-1E22", "-1" + "0" * 22),
        ("0.1", "0.1"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("5e-324", "0." + "0" * 323 + "5"),
        ("1.7976931348623157e308", "17976931348623157" + "0" * 292),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("0e5", "0"),
        ("0.00e1", "0.0"),
    ],
)
def test_numbers_match_postgresql(spelling: str, printed: str):
    assert cell("number", spelling) == printed
    assert cell("text", spelling) == printed
    assert cell("json", spelling) == printed
    assert cell("json", f"[{spelling}]") == f"[{printed}]"


@pytest.mark.parametrize(
    ("spelling", "printed"),
    [
        ("12", "12"),
        ("21.0", "21"),
        ("0.4", "0"),
        ("0.5", "1"),
        ("1.5", "2"),
        ("2.5", "3"),
        ("-0.4", "0"),
        ("-0.5", "-1"),
        ("-2.5", "-3"),
        ("0.49999999999999999999", "0"),
        ("1E2", "100"),
        ("1e21", "1" + "0" * 21),
        ("5e-324", "0"),
        ("1.7976931348623157e308", "17976931348623157" + "0" * 292),
        ('"12.7"', "12.7"),
        ('"=1"', "=1"),
        ('""', None),
        ("true", "true"),
        ("null", None),
        ("[1.5]", "[1.5]"),
    ],
)
def test_whole_numbers_round_half_up(spelling: str, printed: str | None):
    assert cell("whole", spelling) == printed


@pytest.mark.parametrize(
    ("raw", "printed"),
    [
        ('"text"', "text"),
        ('""', None),
        ("null", None),
        ("true", "true"),
        ("false", "false"),
        ('"=1"', "=1"),
        ("[1,2]", "[1, 2]"),
        ('{"b":1,"a":"="}', '{"a": "=", "b": 1}'),
        ('"-5"', "-5"),
    ],
)
def test_text_cells(raw: str, printed: str | None):
    assert cell("text", raw) == printed


@pytest.mark.parametrize(
    ("raw", "printed"),
    [
        ("null", None),
        ('"null"', '"null"'),
        ('""', '""'),
        ("[]", "[]"),
        ("{}", "{}"),
        ('"=1"', '"=1"'),
        ("[null,true,false]", "[null, true, false]"),
        ('{"bb":1,"a":2,"é":3,"B":4,"":5}', '{"": 5, "B": 4, "a": 2, "bb": 1, "é": 3}'),
        ('{"a":1,"a":2}', '{"a": 2}'),
        ('"\\u00e9\\u0001\\u007f\\/\\n\\u2028"', '"é\\u0001\x7f/\\n\u2028"'),
        ('{"a\\"b":"\\\\"}', '{"a\\"b": "\\\\"}'),
    ],
)
def test_json_matches_postgresql(raw: str, printed: str | None):
    assert cell("json", raw) == printed


def test_json_cell_parses():
    value = {"é": [1, Decimal("1.50"), {"x": '\x00\x1f"\\'}], "": None, "b": True}

    assert json.loads(format_json(value), parse_float=Decimal) == value


@pytest.mark.parametrize(
    ("moment", "printed"),
    [
        ("2022-04-01 04:00:00", "2022-04-01T04:00:00.000Z"),
        ("2022-04-01 04:00:00.123000", "2022-04-01T04:00:00.123Z"),
        ("2022-04-01 23:59:59.999999", "2022-04-01T23:59:59.999Z"),
        (datetime(2022, 4, 1, 4, tzinfo=UTC), "2022-04-01T04:00:00.000Z"),
        (datetime(2022, 4, 1, 4, 0, 0, 999_999, tzinfo=UTC), "2022-04-01T04:00:00.999Z"),
        (datetime(2022, 4, 1, 4, 0, 0, 1_000, tzinfo=UTC), "2022-04-01T04:00:00.001Z"),
    ],
)
def test_times_are_cut_to_milliseconds(moment: datetime | str, printed: str):
    assert format_time(moment) == printed


@pytest.mark.parametrize("payload", ["{}", '{"edata": null}', '{"edata": [1]}', '{"edata": "v"}'])
@pytest.mark.parametrize("kind", ["text", "number", "whole", "json"])
def test_missing_value_is_none(kind: Any, payload: str):
    column = Column("Header", kind, ("payload", "edata", "v"), "")

    assert make_cell_reader([column])({}, payload, False) == [None]


def test_refused_consent_blanks_columns():
    assert cell("json", "1", refused=True, consented=True) is None
    assert cell("json", "1", refused=False, consented=True) == "1"
    assert cell("json", "1", refused=True, consented=False) == "1"


def test_envelope_cell():
    read = make_cell_reader(
        [Column("A", "text", ("device_id",), ""), Column("B", "text", ("other",), "")]
    )

    assert read({"device_id": "=d"}, "{}", False) == ["=d", None]


def test_json_objects_are_joined_once():
    sql = joins_sql(DATASETS["uci-response-exhaust"].columns)

    assert sql.count("LEFT JOIN LATERAL") == 5  # payload, edata, context, item, rollup
    assert sql.count("jsonb_to_record(") == 5


def test_one_cell_per_column():
    columns = DATASETS["uci-response-exhaust"].columns
    sql = cells_sql(columns, "(SELECT refused)")

    assert len(sql) == len(columns) == 17
    assert not any("regexp_replace" in cell for cell in sql)
    guarded_sql = cells_sql(columns, "(SELECT refused)", escape_formulas=True)
    assert ["regexp_replace" in cell for cell in guarded_sql] == may_hold_formulas(columns)
    assert [i for i, cell in enumerate(sql) if "NOT (SELECT refused)" in cell] == [13]
