"""Croct's vocabulary: the table, the payloads, and the filters of pull and push."""

import json
import re
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.datasets.resolve import resolve_selection
from exhaust.delivery import batches
from exhaust.feed.session_details import describe_session
from exhaust.feed.vocabulary import OTHER, TYPES
from ingest.auth import keys
from ingest.derive import deriver
from ingest.feed.values import START
from ingest.feed.watermark import fetch_watermark
from ingest.models import Channel, Participant
from tests.conftest import make_channel, make_key
from tests.exhaust.destinations import make_destination
from tests.exhaust.factories import make_answer, send_events
from tests.service import ROOT

pytestmark = pytest.mark.django_db(transaction=True)
AT = 1648785600123
TEE = {"id": "t-1", "name": "Tee", "brand": "Loom", "category": "shirts", "price": 9.5}
PRODUCT = {
    "productId": "t-1", "name": "Tee", "brand": "Loom", "category": "shirts", "displayPrice": 9.5,
}  # fmt: skip
LINES = [{"index": 0, "product": PRODUCT, "quantity": 2, "total": 19.0}]


@pytest.fixture
def puller(db: None) -> Client:
    keys.create_application("shop", make_channel(), name="The shop")
    return Client(headers={"X-Api-Key": make_key("pull", "export:private")})


def click(type_: str, rows: Any = None, user: str = "", /, **attributes: Any) -> None:
    event = {
        "event_type": type_, "event_id": f"{type_}-{len(attributes)}", "timestamp": AT,
        "device_id": "d-1", "attributes": attributes,
        **({"items": rows} if rows else {}),
        **({"user": {"_user_id": {"value": user}}} if user else {}),
    }  # fmt: skip
    answer = Client().post("/collect?appId=shop", json.dumps([event]), "application/json")
    assert answer.status_code == 200


def pull(puller: Client, *names: str) -> list[dict[str, Any]]:
    answer = puller.get("/export/events", {"events": names} if names else {})
    assert answer.status_code == 200, answer.content
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def test_table_is_on_the_page():
    page = (ROOT / "docs" / "receiving.md").read_text()
    table = page.partition("| Croct's type |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.M)

    assert {name: tuple(re.findall(r"`(\w+)`", cell)) for name, cell in rows} == TYPES
    assert len(TYPES) == 25


def test_senders_type_is_in_one_row():
    types = [type_ for types in TYPES.values() for type_ in types]
    assert len(types) == len(set(types))
    assert not set(types) & set(TYPES)


@pytest.mark.parametrize(
    ("type_", "items", "attributes", "name", "payload"),
    [
        ("view_item", [TEE], {}, "productViewed", {"product": PRODUCT}),
        ("view_item", None, {"item_id": "t-1", "item_name": "Tee", "price": "9.5"},
         "productViewed", {"product": {"productId": "t-1", "name": "Tee", "displayPrice": 9.5}}),
        ("view_item", None, {}, "productViewed", {"product": {}}),
        ("add_to_cart", [{**TEE, "quantity": 2}], {"_value": 19, "_currency": "EUR"},
         "cartModified",
         {"cart": {"items": LINES, "currency": "EUR", "total": 19, "lastUpdateTime": AT}}),
        ("view_cart", None, {"items": json.dumps([TEE])}, "cartViewed",
         {"cart": {"items": [{"index": 0, "product": PRODUCT}], "lastUpdateTime": AT}}),
        ("begin_checkout", None, {"items": "[", "coupon": "MAY", "order_id": "o-1"},
         "checkoutStarted",
         {"cart": {"items": [], "coupon": "MAY", "lastUpdateTime": AT}, "orderId": "o-1"}),
        ("purchase", [{**TEE, "quantity": 2}],
         {"transaction_id": "o-1", "value": "21.5", "shipping": 2, "tax": 0.5,
          "payment_type": "card"},
         "orderPlaced",
         {"order": {"orderId": "o-1", "paymentMethod": "card", "items": LINES, "total": 21.5,
                    "shippingPrice": 2, "taxes": {"tax": 0.5}}}),
        ("_page_view", None, {"_page_url": "https://s/1", "_page_referrer": "https://r"},
         "pageOpened", {"url": "https://s/1", "referrer": "https://r"}),
        ("_page_load", None, {"_page_url": "https://s/1", "_page_title": "One"}, "pageLoaded",
         {"url": "https://s/1", "title": "One"}),
        ("generate_lead", None, {"value": True, "currency": 7}, "leadGenerated",
         {"currency": "7"}),
        ("_scroll", None, {"x": 1}, "userScrolled", {}),
    ],
    ids=range(11),
)  # fmt: skip
def test_payload_of_a_type(
    puller: Client, type_: str, items: Any, attributes: Any, name: str, payload: dict[str, Any]
):
    click(type_, items, **attributes)
    click("another_type")

    (event,) = pull(puller, name)

    assert event["payload"] == {"@type": name, **payload}
    assert (event["type"], event["timestamp"]) == (type_, AT)


@pytest.mark.parametrize(("user", "expected"), [("asha", {"externalUserId": "asha"}), ("", {})])
def test_sign_up_names_the_user(puller: Client, user: str, expected: dict[str, str]):
    click("sign_up", None, user)

    assert pull(puller, "userSignedUp")[0]["payload"] == {"@type": "userSignedUp", **expected}


def test_sender_names_get_what_was_sent(puller: Client):
    click("view_item", [TEE], price=1)
    click("purchase")

    (own,) = pull(puller, "view_item")
    assert own["payload"]["@type"] == "view_item"
    assert own["payload"]["items"] == [TEE]
    assert [item["payload"]["@type"] for item in pull(puller)] == ["view_item", "purchase"]
    mixed = pull(puller, "productViewed", "purchase")
    assert [item["payload"]["@type"] for item in mixed] == ["productViewed", "purchase"]


def test_other_types_occurred(puller: Client):
    click("view_item")
    click("productViewed", fine=1)  # a sender's own event of that name goes out as it came
    click("poll_answered", answer="yes")
    send_events(make_answer(1))

    items = pull(puller, OTHER)

    assert [item["payload"]["@type"] for item in items] == [OTHER, OTHER]
    assert [item["payload"]["name"] for item in items] == ["poll_answered", "ASSESS"]
    assert items[0]["payload"]["details"]["attributes"] == {"answer": "yes"}
    assert items[1]["payload"]["details"] == make_answer(1)
    (_, own) = pull(puller, "productViewed")
    assert own["payload"]["attributes"] == {"fine": 1}


def test_all_names_have_each_event_once(puller: Client):
    for type_ in ("view_item", "purchase", "poll_answered", "_page_view", "leadGenerated"):
        click(type_)

    items = pull(puller, *TYPES)

    assert [item["payload"]["@type"] for item in items] == [
        "productViewed", "orderPlaced", OTHER, "pageOpened", "leadGenerated",
    ]  # fmt: skip


def test_push_and_file_select_by_the_names(puller: Client):
    click("view_item", [TEE])
    click("poll_answered")
    click("purchase")

    destination = make_destination(resource="events", types=["productViewed", "purchase"])
    batch = batches.read_batch(destination, 10, START)
    pushed = [json.loads(each.wire_bytes)["payload"] for each in batch.documents]
    assert pushed[0] == {"@type": "productViewed", "product": PRODUCT}
    assert [payload["@type"] for payload in pushed] == ["productViewed", "purchase"]

    def list_types(*types: str) -> list[str]:
        config = {"startDate": "2022-04-01", "endDate": "2022-04-01", "types": types}
        dataset, channel_id = DATASETS["events-exhaust"], make_channel().pk
        selection = resolve_selection(dataset, channel_id, config, fetch_watermark())
        return [str(row[2]) for row in dataset.iterate_rows(selection)]

    assert list_types("productViewed") == ["view_item"]
    assert list_types("purchase", OTHER) == ["poll_answered", "purchase"]


def test_refused_answer_did_not_occur(puller: Client):
    send_events(make_answer(1))
    Participant.objects.create(
        channel=make_channel(), device_id="device-1", consent=False, updated_at=timezone.now()
    )

    assert pull(puller, OTHER)[0]["payload"]["details"]["edata"]["resvalues"] == []


@pytest.mark.parametrize(
    ("url", "platform", "expected"),
    [
        ("", "", None),
        ("https://s/1", "", {"type": "web", "metadata": {}, "url": "https://s/1"}),
        ("https://s/1", "Web",
         {"type": "web", "metadata": {"platform": "Web"}, "url": "https://s/1"}),
        ("", "Android", {"type": "app", "metadata": {"platform": "Android"}}),
    ],
    ids=range(4),
)  # fmt: skip
def test_context_has_page_and_platform(puller: Client, url: str, platform: str, expected: Any):
    event = {"event_type": "x", "event_id": "e", "timestamp": AT,
             "attributes": {"_page_url": url}}  # fmt: skip
    Client().post(
        f"/collect?appId=shop&platform={platform}", json.dumps([event]), "application/json"
    )

    assert pull(puller)[0]["context"] == expected


def test_metadata_tells_three_levels(puller: Client):
    # given a channel with a name, in an organization, and its application
    Channel.objects.update(name="Europe", organization="Shops & Co")
    keys.create_application("other", make_channel())
    click("view_item")
    send_events(make_answer(1))

    def read(*names: str) -> dict[str, str]:
        metadata: dict[str, str] = puller.get("/export/events", {"events": names}).json()[
            "metadata"
        ]
        return metadata

    # then a page of one application names it, and one of several has the channel
    levels = {
        "organizationName": "Shops & Co", "organizationSlug": "shops-co",
        "workspaceName": "Europe", "workspaceSlug": "ORG_001",
    }  # fmt: skip
    shop = {**levels, "applicationName": "The shop", "applicationSlug": "shop"}
    channel = {**levels, "applicationName": "Europe", "applicationSlug": "ORG_001"}
    assert (read("view_item"), read("ASSESS"), read("none")) == (shop, channel, channel)
    assert read("view_item", "ASSESS") == channel
    (event,) = pull(puller, "view_item")
    assert puller.get(f"/export/events/{event['id']}").json()["metadata"] == shop


def test_user_has_standard_fields(puller: Client):
    attributes = {"first_name": "Asha", "email": "a@b.c", "birthDate": 1, "city": "Pune",
                  "interests": ["tea"], "companyUrl": "https://c", "company_url": "no"}  # fmt: skip
    event = {"event_type": "x", "event_id": "e", "timestamp": AT, "device_id": "d",
             "user": {name: {"value": value} for name, value in attributes.items()}}  # fmt: skip
    Client().post("/collect?appId=shop", json.dumps([event]), "application/json")
    deriver.derive_all(30)

    (user,) = puller.get("/export/user").json()["items"]
    assert {name: user[name] for name in user if name in {
        "firstName", "lastName", "email", "birthDate", "interests", "companyUrl",
    }} == {"firstName": "Asha", "email": "a@b.c", "birthDate": 1, "interests": ["tea"],
           "companyUrl": "https://c"}  # fmt: skip
    assert user["customAttributes"] == attributes


def test_session_has_client_and_origin(puller: Client):
    device = {"platform": "Android", "os_version": "12", "make": "Acme", "model": "A1"}
    events = [
        {"event_type": type_, "event_id": type_, "timestamp": AT + number, "device_id": "d",
         "country_code": "in", **device, "attributes": attributes}
        for number, (type_, attributes) in enumerate({
            "_session_start": {"_traffic_source_source": "mail", "_traffic_source_campaign": "may"},
            "_page_view": {"_page_referrer": "https://r.example/" + "x" * 400},
            "purchase": {},
        }.items())
    ]  # fmt: skip
    Client().post("/collect?appId=shop", json.dumps(events), "application/json")
    send_events(make_answer(1))
    deriver.derive_all(30)

    by_device = {item["deviceId"]: item for item in puller.get("/export/session").json()["items"]}
    session = by_device["d"]
    assert {name: session[name] for name in ("referrer", "campaign", "location", "client")} == {
        "referrer": "https://r.example/" + "x" * 400,
        "campaign": {"name": "may", "source": "mail"},
        "location": {"country": "IN"},
        "client": {
            "device": {
                "name": "A1", "vendor": "Acme", "category": "MOBILE",
                "operatingSystem": {"name": "Android", "version": "12"},
            }
        },
    }  # fmt: skip
    assert session["statistics"] == {"pageViews": 1, "events": 3, "answers": 0, "orders": 1}
    assert not {"referrer", "campaign", "location", "client"} & by_device["device-1"].keys()


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, {}),
        ({"geolocationContinentName": "Asia", "geolocationCountryName": "India",
          "geolocationRegionName": "MH", "geolocationCityName": "Pune"},
         {"location": {"continent": "AS", "region": {"name": "MH"}, "city": "Pune"}}),
        ({"browserFamily": "Chrome", "browserMajorVersion": "120", "browserType": "Robot"},
         {"client": {"browser": {"name": "Chrome", "version": "120", "type": "CRAWLER"}}}),
        ({"applicationType": "MOBILE_APPLICATION", "hasCrash": True}, {}),
    ],
    ids=range(4),
)  # fmt: skip
def test_details_in_the_clients_shape(details: dict[str, Any], expected: dict[str, Any]):
    assert describe_session(details) == expected
