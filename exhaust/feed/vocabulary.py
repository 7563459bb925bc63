"""Croct's vocabulary: the event types that its client asks for, made from those of every source.

`TYPES` is the one table of it; docs/receiving.md shows it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
from django.db.models import Q

from ingest.adapters.fields import MAX_URL, bounded_text
from ingest.events import EventContext

OTHER = "eventOccurred"  # of every type that the table does not have
TYPES: dict[str, tuple[str, ...]] = {
    "userSignedUp": ("sign_up",),
    "userSignedIn": ("login", "_user_login"),
    "userSignedOut": ("logout",),
    "tabOpened": (),
    "tabUrlChanged": (),
    "tabVisibilityChanged": (),
    "locationDetected": (),
    "clientDetected": (),
    "pageOpened": ("_page_view", "_screen_view", "IMPRESSION"),
    "pageLoaded": ("_page_load",),
    "productAbandoned": (),
    "productViewed": ("view_item", "item_view"),
    "cartAbandoned": (),
    "cartViewed": ("view_cart",),
    "cartModified": ("add_to_cart", "remove_from_cart"),
    "checkoutStarted": ("begin_checkout",),
    "orderPlaced": ("purchase",),
    "nothingChanged": (),
    "goalCompleted": (),
    OTHER: (),
    "slotPersonalized": (),
    "leadGenerated": ("generate_lead",),
    "audienceMatched": (),
    "userClicked": ("_click", "button_click"),
    "userScrolled": ("_scroll",),
}
_NAMES = {type_: name for name, types in TYPES.items() for type_ in (name, *types)}
ORDER_TYPES = ("orderPlaced", *TYPES["orderPlaced"])


def expand_types(names: Collection[str]) -> tuple[list[str], list[str]]:
    """Returns the senders' types of names, which may be the vocabulary's.

    Where all others count too, it also returns the types of the table, which they are not.
    """
    types = set(names).union(*(TYPES.get(name, ()) for name in names))
    return sorted(types), sorted(_NAMES) if OTHER in names else []


def select_types(names: Collection[str]) -> Q:
    """Returns the condition on events of these types."""
    types, table = expand_types(names)
    return Q(type__in=types) | ~Q(type__in=table) if table else Q(type__in=types)


def find_name(type_: str, names: Collection[str]) -> str:
    """Returns the vocabulary's name of a sender's type if `names` have it, else ""."""
    name = _NAMES.get(type_, OTHER)
    return name if name != type_ and name in names else ""


def build_payload(
    name: str, type_: str, payload: bytes, context: EventContext, occurred_ms: int
) -> dict[str, Any]:
    """Returns a sender's payload as the vocabulary has it. What the sender left out is absent."""
    if name == OTHER:
        return {"@type": name, "name": type_, "details": msgspec.Raw(payload)}
    build = _BUILDERS.get(name)
    if build is None:
        return {"@type": name}
    sent: dict[str, Any] = msgspec.json.decode(payload)
    for part in ("edata", "attributes"):
        if isinstance(sent.get(part), dict):
            sent = sent | sent[part]
    return {"@type": name, **build(sent, context, occurred_ms)}


# Fields: ours, and the names that senders give them --------------------------------------------

_Names = Mapping[str, tuple[str, ...]]
_PRODUCT_TEXTS: _Names = {
    "productId": ("id", "item_id", "product_id"),
    "sku": ("sku", "item_sku"),
    "name": ("name", "item_name", "product_name", "productName"),
    "category": ("category", "item_category"),
    "brand": ("brand", "item_brand"),
    "variant": ("variant", "item_variant"),
    "currency": ("currency", "_currency"),
    "url": ("url", "item_url"),
    "imageUrl": ("image_url", "imageUrl"),
}
_PRODUCT_NUMBERS: _Names = {
    "displayPrice": ("price", "Price", "display_price"),
    "originalPrice": ("original_price", "originalPrice"),
}
_TOTAL_TEXTS: _Names = {
    "currency": ("currency", "_currency"),
    "coupon": ("coupon",),
}
_TOTAL_NUMBERS: _Names = {
    "subtotal": ("subtotal",),
    "shippingPrice": ("shipping", "shipping_price"),
    "discount": ("discount",),
    "total": ("value", "_value", "total"),
}
_ORDER_ID: _Names = {"orderId": ("transaction_id", "order_id", "orderId")}
_ORDER_TEXTS: _Names = {"paymentMethod": ("payment_type", "payment_method")}
_PAGE_TEXTS: _Names = {
    "referrer": ("_page_referrer", "referrer"),
    "preferredLanguages": ("locale", "system_language"),
    "userAgent": ("user_agent",),
}


def _pick_texts(sent: Mapping[str, Any], names: _Names) -> dict[str, str]:
    texts = {
        field: next(
            filter(None, (bounded_text(sent.get(each), MAX_URL) for each in each_names)), ""
        )
        for field, each_names in names.items()
    }
    return {field: text for field, text in texts.items() if text}


def _pick_numbers(sent: Mapping[str, Any], names: _Names) -> dict[str, int | float]:
    return {
        field: number
        for field, each_names in names.items()
        for number in [
            next(
                (n for n in (_to_number(sent.get(each)) for each in each_names) if n is not None),
                None,
            )
        ]
        if number is not None
    }


def _to_number(value: Any) -> int | float | None:
    """Returns a number that was sent as one, or as text, which is all that some SDKs send."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value, type=int | float)
        except msgspec.MsgspecError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _build_product(sent: Mapping[str, Any]) -> dict[str, Any]:
    return _pick_texts(sent, _PRODUCT_TEXTS) | _pick_numbers(sent, _PRODUCT_NUMBERS)


def _list_items(sent: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the items of an event; they may be a list, or JSON text in an attribute."""
    items = sent.get("items")
    if isinstance(items, str):
        try:
            items = msgspec.json.decode(items)
        except (msgspec.MsgspecError, RecursionError):
            items = None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _build_lines(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the items and totals that a cart and an order share."""
    lines = []
    for index, item in enumerate(_list_items(sent)):
        line: dict[str, Any] = {"index": index, "product": _build_product(item)}
        line |= _pick_numbers(item, {"quantity": ("quantity",), "discount": ("discount",)})
        line |= _pick_texts(item, {"coupon": ("coupon",)})
        price = line["product"].get("displayPrice")
        if price is not None and "quantity" in line:
            line["total"] = round(price * line["quantity"], 6)
        lines.append(line)
    tax = _to_number(sent.get("tax"))
    return {
        "items": lines,
        **_pick_texts(sent, _TOTAL_TEXTS),
        **_pick_numbers(sent, _TOTAL_NUMBERS),
        **({} if tax is None else {"taxes": {"tax": tax}}),
    }


_Builder = Callable[[Mapping[str, Any], EventContext, int], dict[str, Any]]


def _build_viewed(sent: Mapping[str, Any], context: EventContext, _: int) -> dict[str, Any]:
    items = _list_items(sent)
    own = {name: value for name, value in sent.items() if name not in {"id", "url"}}
    return {"product": _build_product(items[0] if items else own)}


def _build_cart(sent: Mapping[str, Any], context: EventContext, occurred_ms: int) -> dict[str, Any]:
    return {"cart": {**_build_lines(sent), "lastUpdateTime": occurred_ms}}


def _build_checkout(
    sent: Mapping[str, Any], context: EventContext, occurred_ms: int
) -> dict[str, Any]:
    return _build_cart(sent, context, occurred_ms) | _pick_texts(sent, _ORDER_ID)


def _build_order(sent: Mapping[str, Any], context: EventContext, _: int) -> dict[str, Any]:
    texts = _pick_texts(sent, {**_ORDER_ID, **_ORDER_TEXTS})
    return {"order": {**texts, **_build_lines(sent)}}


def _build_page(sent: Mapping[str, Any], context: EventContext, _: int) -> dict[str, Any]:
    return ({"url": context.url} if context.url else {}) | _pick_texts(sent, _PAGE_TEXTS)


def _build_loaded(sent: Mapping[str, Any], context: EventContext, _: int) -> dict[str, Any]:
    title = _pick_texts(sent, {"title": ("_page_title", "title")})
    return ({"url": context.url} if context.url else {}) | title


def _build_user(sent: Mapping[str, Any], context: EventContext, _: int) -> dict[str, Any]:
    return {"externalUserId": context.user_id} if context.user_id else {}


def _build_lead(sent: Mapping[str, Any], context: EventContext, _: int) -> dict[str, Any]:
    texts = _pick_texts(sent, {"leadId": ("lead_id",), "currency": _TOTAL_TEXTS["currency"]})
    return texts | _pick_numbers(sent, {"value": ("value", "_value")})


_BUILDERS: dict[str, _Builder] = {
    "userSignedUp": _build_user,
    "userSignedIn": _build_user,
    "userSignedOut": _build_user,
    "pageOpened": _build_page,
    "pageLoaded": _build_loaded,
    "productViewed": _build_viewed,
    "cartViewed": _build_cart,
    "cartModified": _build_cart,
    "checkoutStarted": _build_checkout,
    "orderPlaced": _build_order,
    "leadGenerated": _build_lead,
}
