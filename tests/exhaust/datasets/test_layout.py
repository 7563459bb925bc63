"""The columns of a file as a request asks for them."""

from typing import Any

import pytest

from exhaust.datasets import DATASETS
from exhaust.datasets.layout import arrange_columns, find_column_errors, list_columns
from exhaust.jobs import plan
from ingest.models import Channel
from tests.exhaust.corpus import select_corpus
from tests.exhaust.datasets.test_datasets import store_events, store_participant
from tests.exhaust.factories import PRIVATE, RESPONSE, make_job
from tests.ingest.telemetry_samples import CONVERSATION, DEVICE, answer

# as the followed system published them
UPSTREAM = {
    RESPONSE: (
        "Message ID,Conversation ID,Conversation Name,Device ID,Question Id,Question Type,"
        "Question Title,Question Description,Question Duration,Question Score,Question Max Score,"
        "Question Options,Question Response,X Path,Eof,Timestamp"
    ),
    PRIVATE: (
        "Conversation ID,Conversation Name,Decrypted Device ID,Encrypted Device ID,Device UUID"
    ),
}


def list_headers(dataset: str, **config: Any) -> list[str]:
    return [column.header for column in arrange_columns(DATASETS[dataset], config).columns]


@pytest.mark.parametrize("dataset", UPSTREAM)
def test_layout_of_followed_system(dataset: str):
    assert ",".join(list_headers(dataset, layout="uci-2022")) == UPSTREAM[dataset]


def test_columns_in_requested_order():
    assert list_headers(RESPONSE, columns=["Eof", "Device ID"]) == ["Eof", "Device ID"]
    assert list_headers(PRIVATE, columns=["Device UUID", "Phone Number"]) == [
        "Device UUID",
        "Phone Number",
    ]


def test_dataset_itself_stays():
    before = list(DATASETS[RESPONSE].columns)

    arranged = arrange_columns(DATASETS[RESPONSE], {"columns": ["Eof"], "timestamps": "local"})

    assert list(DATASETS[RESPONSE].columns) == before
    assert arrange_columns(DATASETS[RESPONSE], {}).columns == DATASETS[RESPONSE].columns
    assert (arranged.name, arranged.is_private) == (RESPONSE, False)


@pytest.mark.parametrize(
    ("config", "field", "sentence"),
    [
        ({"columns": ["Eof", "eof"]}, "columns", "Number 2 is no column of uci-response-exhaust"),
        ({"columns": ["Eof", "Eof"]}, "columns", "Number 2 repeats Eof; leave it out."),
        ({"columns": "Eof"}, "columns", "A list of headers."),
        ({"layout": "uci-1999"}, "layout", "One of uci-2022."),
        ({"layout": "uci-2022", "columns": ["Eof"]}, "layout", "It names the columns too"),
    ],
)
def test_errors_name_the_field(config: dict[str, Any], field: str, sentence: str):
    errors = find_column_errors(DATASETS[RESPONSE], config)

    assert list(errors) == [field]
    assert errors[field].startswith(sentence)
    if sentence.endswith("exhaust"):
        assert "it has Message ID, Conversation ID" in errors[field]


def test_layout_of_dataset_without_any():
    errors = find_column_errors(DATASETS["events-exhaust"], {"layout": "uci-2022"})

    assert errors == {"layout": "events-exhaust has none; name columns."}


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_headers_differ(dataset: Any):
    headers = [column.header for column in list_columns(dataset)]

    assert len(set(headers)) == len(headers)
    assert all(set(layout) <= set(headers) for layout in dataset.layouts.values())


def test_lost_column_ends_the_job(db: None):
    job = make_job(config={"columns": ["Lost"], "startDate": "2022-04-01", "endDate": "2022-04-01"})

    with pytest.raises(plan.PermanentFailure, match=r"datasetConfig\.columns: Number 1 is no"):
        plan.make_plan(job)


@pytest.mark.django_db
@pytest.mark.parametrize("is_hashed", [False, True])
@pytest.mark.parametrize("consent", [True, False])
def test_legacy_cells_of_participants(consent: bool, is_hashed: bool):
    store_events(answer())
    store_participant(phone="+919000000001", consent=consent)
    Channel.objects.update(hash_device_ids=is_hashed)
    legacy = arrange_columns(DATASETS[PRIVATE], {"layout": "uci-2022"})
    selection = select_corpus(device_key=b"key" if is_hashed else None)

    (row,) = legacy.iterate_rows(selection)

    device = selection.displayed_device_id(DEVICE)
    assert (device == DEVICE) is not is_hashed
    shown = "phone:+919000000001" if consent else device
    assert row == [CONVERSATION, None, shown, None, device]
