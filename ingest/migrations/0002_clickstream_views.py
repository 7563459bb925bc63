"""What arrived, in the tables that users of the AWS Clickstream warehouse know, as views.

Schema `clickstream` on PostgreSQL, names that begin with `clickstream_` on SQLite. A later
migration that rebuilds `ingest_storedevent` or `ingest_appuser` calls `drop` before and `create`
after: SQLite refuses to rename a table that a view names, PostgreSQL to change its columns.
"""

from django.db import migrations

VIEWS = ("event", "event_parameter", "item", "app_user")
ITEM_TEXTS = (
    "id", "name", "location_id", "brand", "currency", "creative_name", "creative_slot",
    "category", "category2", "category3", "category4", "category5",
)  # fmt: skip


class PostgreSQL:
    def name(self, view):
        return f"clickstream.{view}"

    def text(self, *path, of="e.payload"):
        return f"{of} #>> '{{{','.join(path)}}}'"

    def plain(self, *path):
        """Of a text or a number only: the place may hold an object."""
        there = f"e.payload #> '{{{','.join(path)}}}'"
        return (
            f"CASE WHEN jsonb_typeof({there}) IN ('string', 'number') THEN {self.text(*path)} END"
        )

    def _number(self, type_, low, *path, of):
        there, text = f"{of} #> '{{{','.join(path)}}}'", self.text(*path, of=of)
        # one inside the other: AND promises no order, and a cast that fails fails the query
        return (
            f"CASE WHEN jsonb_typeof({there}) = 'number' THEN CASE"
            f" WHEN ({text})::numeric = 0 THEN 0::{type_}"
            f" WHEN abs(({text})::numeric) BETWEEN {low} THEN ({text})::numeric::{type_} END END"
        )

    def integer(self, *path, of="e.payload"):
        return self._number("bigint", "0 AND 9e18", *path, of=of)

    def double(self, *path, of="e.payload"):
        return self._number("double precision", "1e-300 AND 1e300", *path, of=of)

    def msec(self, column):
        return f"floor(extract(epoch FROM {column}) * 1000)::bigint"

    def date(self, column):
        return f"({column} AT TIME ZONE 'UTC')::date"

    identity = "e.identity::text"

    def parameters(self):
        value = "x.value #>> '{}'"
        whole = "x.value::text ~ '^-?[0-9]{1,18}$'"
        double = self.double(of="x.value")
        return {
            "from": "CROSS JOIN LATERAL jsonb_each(CASE WHEN jsonb_typeof(e.parameters) = 'object'"
            " THEN e.parameters ELSE '{}' END) AS x(key, value)",
            "string": f"CASE jsonb_typeof(x.value) WHEN 'string' THEN {value}"
            " WHEN 'number' THEN NULL WHEN 'null' THEN NULL ELSE x.value::text END",
            "int": f"CASE WHEN jsonb_typeof(x.value) = 'number' THEN CASE WHEN {whole}"
            f" THEN ({value})::bigint END END",
            "double": f"CASE WHEN NOT {whole} THEN {double} END",
        }

    def items(self):
        names = ", ".join(f"'{name}'" for name in (*ITEM_TEXTS, "price", "quantity"))
        return {
            "from": "CROSS JOIN LATERAL jsonb_array_elements(CASE WHEN"
            " jsonb_typeof(e.payload -> 'items') = 'array' THEN e.payload -> 'items' ELSE '[]' END)"
            " AS x(value) WHERE jsonb_typeof(x.value) = 'object'",
            "of": "x.value",
            "rest": f"x.value - ARRAY[{names}]",
        }

    json = "e.payload -> '{}'"
    properties = """(
        SELECT jsonb_object_agg(x.key, jsonb_build_object(
            'value', x.value -> 'value', 'set_timestamp', (x.value ->> 'set_at')::bigint / 1000))
        FROM jsonb_each(u.attributes) AS x)"""


class SQLite:
    def name(self, view):
        return f"clickstream_{view}"

    def _path(self, path):
        return "'$" + "".join(f'."{name}"' for name in path) + "'"

    def text(self, *path, of="e.payload"):
        return f"{of} ->> {self._path(path)}"

    def plain(self, *path):
        return (
            f"CASE WHEN json_type(e.payload, {self._path(path)}) IN ('text', 'integer', 'real')"
            f" THEN {self.text(*path)} END"
        )

    def _number(self, type_, *path, of):
        return (
            f"CASE WHEN json_type({of}, {self._path(path)}) IN ('integer', 'real')"
            f" THEN CAST({self.text(*path, of=of)} AS {type_}) END"
        )

    def integer(self, *path, of="e.payload"):
        return self._number("INTEGER", *path, of=of)

    def double(self, *path, of="e.payload"):
        return self._number("REAL", *path, of=of)

    def msec(self, column):
        return f"CAST(round((julianday({column}) - 2440587.5) * 86400000) AS INTEGER)"

    def date(self, column):
        return f"date({column})"

    identity = (
        "substr(e.identity, 1, 8) || '-' || substr(e.identity, 9, 4) || '-' ||"
        " substr(e.identity, 13, 4) || '-' || substr(e.identity, 17, 4) || '-' ||"
        " substr(e.identity, 21)"
    )

    def parameters(self):
        return {
            "from": "JOIN json_each(CASE WHEN json_type(e.parameters) = 'object'"
            " THEN e.parameters ELSE '{}' END) AS x",
            "string": "CASE x.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'"
            " WHEN 'integer' THEN NULL WHEN 'real' THEN NULL ELSE x.value END",
            "int": "CASE WHEN x.type = 'integer' AND typeof(x.value) = 'integer' THEN x.value END",
            "double": "CASE WHEN x.type IN ('integer', 'real') AND typeof(x.value) = 'real'"
            " THEN x.value END",
        }

    def items(self):
        value = "CASE WHEN x.type = 'object' THEN x.value ELSE '{}' END"
        names = ", ".join(f"'$.{name}'" for name in (*ITEM_TEXTS, "price", "quantity"))
        return {
            "from": "JOIN json_each(CASE WHEN json_type(e.payload, '$.items') = 'array'"
            " THEN e.payload -> '$.items' ELSE '[]' END) AS x WHERE x.type = 'object'",
            "of": f"({value})",
            "rest": f"json_remove({value}, {names})",
        }

    json = "e.payload -> '$.{}'"
    properties = """(
        SELECT json_group_object(x.key, json_object(
            'value', json(x.value -> '$.value'), 'set_timestamp', (x.value ->> '$.set_at') / 1000))
        FROM json_each(u.attributes) AS x)"""


def statements(db):
    user_id = f"""CASE e.source
            WHEN 'clickstream' THEN coalesce({db.text("user", "_user_id", "value")},
                {db.plain("user", "_user_id")}, {db.plain("user_id")})
            WHEN 'telemetry' THEN nullif({db.plain("actor", "id")}, e.device_id)
            WHEN 'skalin' THEN coalesce({db.plain("identity", "id")},
                {db.plain("identity", "email")})
            WHEN 'desk' THEN {db.plain("userId")} END"""
    event_id = (
        f"coalesce({db.plain('event_id')}, {db.plain('eventId')}, {db.plain('mid')}, {db.identity})"
    )
    parameters = (
        f"CASE e.source WHEN 'clickstream' THEN {db.json.format('attributes')}"
        f" WHEN 'telemetry' THEN {db.json.format('edata')} ELSE e.payload END"
    )
    # what the four have in common, of living versions only
    known = f"""(
        SELECT e.*, c.identifier AS channel, a.identifier AS app_id, {event_id} AS event_id,
            coalesce({db.plain("unique_id")}, e.device_id) AS user_pseudo_id,
            nullif({user_id}, '') AS user_id, {parameters} AS parameters
        FROM ingest_storedevent e JOIN ingest_channel c ON c.id = e.channel_id
        LEFT JOIN ingest_application a ON a.id = e.application_id
        WHERE e.superseded_xid IS NULL
    ) AS e"""
    common = "e.channel, e.occurred_at AS event_timestamp, e.event_id, e.type AS event_name"
    event = f"""
        SELECT e.id AS arrival, {common}, {db.msec("e.occurred_at")} AS event_time_msec,
            {db.date("e.occurred_at")} AS event_date,
            {db.double("attributes", "_value")} AS event_value,
            {db.text("attributes", "_currency")} AS event_value_currency,
            e.received_at AS ingest_timestamp, {db.msec("e.received_at")} AS ingest_time_msec,
            e.source AS dialect, e.app_id, {db.text("platform")} AS platform,
            e.user_pseudo_id, e.user_id, e.device_id AS device_vendor_id,
            {db.text("make")} AS device_manufacturer,
            {db.text("brand")} AS device_mobile_brand_name,
            {db.text("model")} AS device_mobile_model_name,
            {db.text("carrier")} AS device_carrier,
            {db.text("network_type")} AS device_network_type,
            {db.text("os_version")} AS device_operating_system_version,
            {db.text("system_language")} AS device_system_language,
            {db.integer("zone_offset")} AS device_time_zone_offset,
            {db.integer("screen_width")} AS device_screen_width,
            {db.integer("screen_height")} AS device_screen_height,
            {db.integer("viewport_width")} AS device_viewport_width,
            {db.integer("viewport_height")} AS device_viewport_height,
            {db.text("locale")} AS geo_locale, {db.text("country_code")} AS geo_country,
            {db.text("host_name")} AS host_name,
            {db.text("app_version")} AS app_version,
            {db.text("app_package_name")} AS app_package_name,
            {db.text("app_title")} AS app_title,
            {db.text("sdk_name")} AS sdk_name, {db.text("sdk_version")} AS sdk_version,
            e.session_id, {db.integer("attributes", "_session_number")} AS session_number,
            {db.integer("attributes", "_session_start_timestamp")} AS session_start_time_msec,
            {db.integer("attributes", "_session_duration")} AS session_duration,
            {db.text("attributes", "_page_url")} AS page_view_page_url,
            {db.text("attributes", "_page_title")} AS page_view_page_title,
            {db.text("attributes", "_page_referrer")} AS page_view_page_referrer,
            {db.text("attributes", "_traffic_source_source")} AS traffic_source_source,
            {db.text("attributes", "_traffic_source_medium")} AS traffic_source_medium,
            {db.text("attributes", "_traffic_source_campaign")} AS traffic_source_campaign,
            e.parameters AS custom_parameters, e.note AS process_info
        FROM {known}"""
    p = db.parameters()
    event_parameter = f"""
        SELECT {common}, x.key AS event_param_key,
            {p["string"]} AS event_param_string_value, {p["int"]} AS event_param_int_value,
            {p["double"]} AS event_param_double_value, {p["double"]} AS event_param_float_value,
            e.user_pseudo_id, e.user_id
        FROM {known} {p["from"]}"""
    i = db.items()
    texts = ", ".join(
        f"{db.text(name, of=i['of'])} AS {'item_id' if name == 'id' else name}"
        for name in ITEM_TEXTS
    )
    item = f"""
        SELECT {common}, {texts}, {db.double("price", of=i["of"])} AS price,
            {db.double("quantity", of=i["of"])} AS quantity, {i["rest"]} AS custom_parameters,
            e.user_pseudo_id, e.user_id
        FROM {known} {i["from"]}"""
    app_user = f"""
        SELECT c.identifier AS channel, nullif(u.device_id, '') AS user_pseudo_id,
            nullif(u.user_id, '') AS user_id,
            {db.msec("u.first_seen_at")} AS first_touch_time_msec,
            {db.date("u.first_seen_at")} AS first_visit_date,
            u.first_seen_at AS first_visit_timestamp, u.last_seen_at AS event_timestamp,
            {db.properties} AS user_properties
        FROM ingest_appuser u JOIN ingest_channel c ON c.id = u.channel_id"""
    return dict(zip(VIEWS, (event, event_parameter, item, app_user), strict=True))


def _database(schema_editor):
    return PostgreSQL() if schema_editor.connection.vendor == "postgresql" else SQLite()


def create(apps, schema_editor):
    db = _database(schema_editor)
    if isinstance(db, PostgreSQL):
        schema_editor.execute("CREATE SCHEMA IF NOT EXISTS clickstream")
    for view, sql in statements(db).items():
        # no parameters, or the driver would look for its marks
        schema_editor.execute(f"CREATE VIEW {db.name(view)} AS {sql}", params=None)


def drop(apps, schema_editor):
    db = _database(schema_editor)
    for view in VIEWS:
        schema_editor.execute(f"DROP VIEW {db.name(view)}")
    if isinstance(db, PostgreSQL):
        schema_editor.execute("DROP SCHEMA clickstream")


class Migration(migrations.Migration):
    dependencies = [("ingest", "0001_initial")]
    operations = [migrations.RunPython(create, drop)]
