"""Bodies that were made to hurt: each gets a clear answer, at a cost near that of its size."""

import json
import struct

import pytest

from app.artifacts.keys import MasterKey
from app.http import uploads
from app.strict_json import read_object

URL = "/v1/unlearning-requests"
AS_JSON = {"Content-Type": "application/json"}
FORM = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n--b--\r\n'


def tensor_file(**tensors):
    """Return a safetensors file of zeros; each tensor is a dtype, a shape and its length."""
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


LABEL = ("I64", [1], 8)
SAMPLE = ("F64", [1, 4], 32)
IMPOSSIBLE_SHAPES = {
    "more axes than an array has": ({"x": ("F64", [1] * 100, 8), "y": LABEL}, "samples.x"),
    "more axes in y": ({"x": SAMPLE, "y": ("I64", [1] * 65, 8)}, "samples.y"),
    "no row of 2^63 - 1": ({"x": ("F64", [0, 2**63 - 1], 0), "y": LABEL}, "samples.x"),
    "2^60 rows of nothing": ({"x": ("F64", [2**60, 0], 0), "y": LABEL}, "samples.x"),
    "a length beyond ssize_t": ({"x": ("F64", [2**64 - 1, 0], 0), "y": LABEL}, "samples.x"),
    "2^63 - 1 in y": ({"x": SAMPLE, "y": ("I64", [0, 2**63 - 1], 0)}, "samples.y"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE_SHAPES)
def test_a_shape_that_no_array_can_have_is_refused(api, model_id, written, name):
    tensors, field = IMPOSSIBLE_SHAPES[name]
    before = written()
    request = json.dumps({"model_id": model_id}).encode()
    files = {"request": ("r", request), "samples": ("s", tensor_file(**tensors))}
    answer = api.post(URL, files=files)
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == field
    assert written() == before


def test_a_long_list_of_foreign_tensors_is_not_sent_back(api, model_id):
    content = tensor_file(**{f"tensor{number}": ("F64", [0], 0) for number in range(20_000)})
    request = json.dumps({"model_id": model_id}).encode()
    answer = api.post(URL, files={"request": ("r", request), "samples": ("s", content)})
    assert answer.status_code == 422
    assert len(answer.content) < 4096


def test_labels_of_many_classes_do_not_become_gigabytes_of_one_hot_rows(api, trained):
    files = trained.parts(
        weights=tensor_file(weight=("F64", [1, 4096], 8 * 4096)),
        num_features=1,
        num_outputs=4096,
        n_samples=10**9,
    )
    model_id = api.register(files).json()["id"]
    count = 10_000  # a file of 160 kB, and 330 MB of one-hot rows
    content = tensor_file(x=("F64", [count, 1], 8 * count), y=("I64", [count], 8 * count))
    request = json.dumps({"model_id": model_id}).encode()
    answer = api.post(URL, files={"request": ("r", request), "samples": ("s", content)})
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "samples.x"
    assert "fewer samples" in answer.json()["remedy"]


def test_a_key_that_stands_twice_is_found_in_one_look_at_each():
    # Looked for again and again, it would take minutes here, and days in a body of 64 MiB.
    keys = ",".join(f'"{number}":0' for number in range(200_000))
    with pytest.raises(ValueError, match="'z' stands twice"):
        read_object(f'{{{keys},"z":0,"z":0}}'.encode())


def test_a_number_of_thousands_of_digits_is_refused_in_words_for_clients(api, trained, model_id):
    content = json.dumps(trained.request(model_id))[:-1].encode() + b', "seed": %s}' % (b"9" * 5000)
    answer = api.post(URL, content=content, headers=AS_JSON)
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "body: not a valid JSON object: a number has thousands of digits"
    )


def test_a_form_that_was_cut_off_is_refused_even_if_only_an_optional_part_is_missing(
    api, trained, written
):
    """Taken for whole, a model would be registered without the statistics that its owner sent."""
    parts = ("manifest", "weights", "statistics")
    contents = trained.parts(statistics=trained.statistics_file())
    part = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n'
    form = b"".join(part % (name.encode(), contents[name]) for name in parts)
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    before = written()
    cut_in_statistics = form[: form.rindex(contents["statistics"]) + 40]
    for content in (cut_in_statistics, form, form + b"--b", form[: form.rindex(b"--b\r\n")]):
        answer = api.post("/v1/models", content=content, headers=kind)
        assert answer.status_code == 422, content[-80:]
        assert "before its last boundary" in answer.json()["detail"]
    assert written() == before
    assert api.post("/v1/models", content=form + b"--b--\r\n", headers=kind).status_code == 201


def test_of_many_wrong_values_only_the_first_is_told(api, trained, model_id):
    for samples in (
        {"x": [["a"] * 4] * 50_000, "y": [0]},
        {"x": ["a"] * 50_000, "y": [0]},
        {"x": [[0.1] * 4], "y": ["a"] * 50_000},
        {"x": [[0.1] * 4], "y": [["a"]] * 50_000},
    ):
        answer = api.post(URL, json=trained.request(model_id, samples=samples))
        assert answer.status_code == 422
        assert answer.json()["field"].startswith("samples.")
        assert "more)" not in answer.json()["detail"]


def test_of_many_unknown_keys_not_each_becomes_an_error(api, trained, model_id):
    unknown = {f"key{number}": 0 for number in range(50_000)}
    for body in (
        trained.request(model_id) | unknown,
        trained.request(model_id, perturbation=unknown),
    ):
        answer = api.post(URL, json=body)
        assert answer.status_code == 422
        assert "keys" in answer.json()["detail"]
        assert "more)" not in answer.json()["detail"]


def test_json_has_a_limit_of_its_own_since_it_grows_in_memory(api, trained, model_id, written):
    before = written()
    spaces = b" " * uploads.MAX_JSON_BYTES
    answer = api.post(
        URL, content=json.dumps(trained.request(model_id)).encode() + spaces, headers=AS_JSON
    )
    assert answer.status_code == 413
    assert answer.json()["field"] == "body"
    assert "safetensors" in answer.json()["remedy"]
    answer = api.register(trained.parts() | {"manifest": spaces + b"{}"})
    assert answer.status_code == 413
    assert answer.json()["field"] == "manifest"
    assert written() == before


@pytest.mark.parametrize(
    "charset", ["punycode", "raw_unicode_escape", "unicode_escape", "undefined", "utf-16", "nope"]
)
def test_a_form_in_another_charset_is_refused(api, charset):
    content = FORM % (b"\\ud800", b"\\ud800")
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    answer = api.post(URL, content=content, headers={"Content-Type": kind})
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "Content-Type"


def test_a_part_without_a_file_name_is_the_bytes_that_were_sent(api):
    form = {"Content-Type": "multipart/form-data; boundary=b; charset=UTF-8"}
    manifest = b'{"name": "\xff"}'  # Latin-1, which must not become UTF-8 on the quiet
    content = FORM.removesuffix(b"--b--\r\n") % (b"weights", b"") + FORM % (b"manifest", manifest)
    answer = api.post("/v1/models", content=content, headers=form)
    assert answer.status_code == 422
    assert answer.json()["field"] == "manifest"
    assert "utf-8" in answer.json()["detail"]


@pytest.mark.parametrize("length", ["9" * 5000, "0" * 5000 + "99999999999"])
def test_a_length_of_thousands_of_digits_is_too_large(api, length):
    answer = api.post(URL, content=b"{}", headers=AS_JSON | {"Content-Length": length})
    assert answer.status_code == 413
    assert len(answer.content) < 4096


def test_nobody_is_sent_to_the_host_that_a_header_names(api):
    answer = api.get("/v1/models/", headers={"Host": "elsewhere.example"})
    assert answer.status_code == 404
    assert "Location" not in answer.headers


def test_a_problem_quotes_no_more_than_a_screenful(api):
    answer = api.get("/v1/" + "x" * 10_000)
    assert answer.status_code == 404
    assert len(answer.content) < 4096


def test_a_secret_stays_out_of_the_representation_of_what_holds_it(settings, services):
    key = settings.master_key_file.read_text().strip()
    secret = settings.model_copy(update={"database_url": "postgresql://lethe:hunter2@db/lethe"})
    for held in (services.keys, services.signer, MasterKey.load(settings.master_key_file)):
        assert key not in repr(held)
    assert "hunter2" not in repr(secret)
    assert "hunter2" not in str(secret)
