import uuid

import pytest
from sqlakeyset import serialize_bookmark

WRONG = [
    "x",
    ">",
    ">x",
    "<i:1",
    ">s:abc",
    ">i:1~i:2",
    ">i:one",
    ">uuid:1",
    ">q:1",
    "\x00",
    ">i:" + "9" * 150,
    serialize_bookmark(((uuid.UUID(int=1),), True)),
]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/unlearning-requests"])
@pytest.mark.parametrize("cursor", WRONG)
def test_a_cursor_of_somebody_elses_making_is_refused(api, path, cursor):
    answer = api.get(path, params={"cursor": cursor})
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "cursor"


def test_a_cursor_of_another_list_is_refused(api, trained):
    for i in range(2):
        assert api.register(trained.parts(name=f"model {i}")).status_code == 201
    cursor = api.get("/v1/models?limit=1").json()["next_cursor"]
    assert api.get("/v1/unlearning-requests", params={"cursor": cursor}).status_code == 422


def test_paging_through_meets_every_item_once_though_new_ones_come(api, trained):
    made = [api.register(trained.parts(name=f"model {i}")).json()["id"] for i in range(5)]
    seen, cursor = [], None
    while True:
        params = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = api.get("/v1/models", params=params).json()
        seen += [model["id"] for model in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        api.register(trained.parts(name="late"))
    assert seen == made[::-1]


def test_an_empty_list_has_no_next_page(api):
    assert api.get("/v1/models").json() == {"items": [], "next_cursor": None}
