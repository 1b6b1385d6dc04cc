import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pypdf
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.evidence.canonical import canonical_json
from app.evidence.records.schemas import KEPT_LIMIT, UNDECLARED_VERDICT
from app.evidence.records.statements import STATEMENT_TYPE, read_record, record_entry, write_record
from app.evidence.rendering import UnreadableBundleError, render_html, render_pdf
from app.evidence.transparency.merkle import Frontier, leaf_hash
from app.evidence.transparency.notes import Checkpoint, LogProof, sign_note

LETHE = Path(sys.executable).parent / "lethe"
OLD = sorted((Path(__file__).parents[1] / "old_bundles").glob("*.json"))
SORTS = [
    "certificate",
    "certified",
    "objective",
    "output",
    "sketch",
    "conditional",
    "estimate",
    "refusal",
    "failure",
]
CERTIFICATES = {"certificate", "certified", "objective", "output", "sketch"}
ORIGIN = "tests.lethe/audit"

# Codes of a record that a document puts into words; everything else is copied.
WORDS = {
    "key_destroyed": "the key that opens them was destroyed",
    "kept_for_replay": "kept, so that the computation can be repeated",
    "kept_by_policy": "kept by the operator's policy",
    "none_stored": "there were none",
    "none": "there are none",
    "moved": "replaced by the new weights",
    "never_recorded": "never recorded",
    "weights_with_noise": "the weights with noise added",
    "art-17-1-b": "Article 17(1)(b) GDPR: consent was withdrawn (the controller's word, not judged",
    "attested": "attested by the model's owner",
    "computed": "computed here",
}


class Page(HTMLParser):
    """The text of a page, and every tag and attribute in it."""

    def __init__(self, content):
        super().__init__()
        self.parts, self.tags, self.attributes, self.style = [], [], [], ""
        self._in_style = False
        self.feed(content.decode())
        self.text = "".join(self.parts)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._in_style = tag == "style"

    def handle_endtag(self, _tag):
        self._in_style = False

    def handle_data(self, data):
        if self._in_style:
            self.style += data
        else:
            self.parts.append(data)


def text_of_page(bundle):
    return Page(render_html(bundle)).text


def text_of_pdf(bundle):
    """Return the text of every page; a foot may stand inside what a page break divides."""
    pages = pypdf.PdfReader(io.BytesIO(render_pdf(bundle))).pages
    texts = [page.extract_text() for page in pages]
    foot = re.compile(r"[^\n]*for reading, not the evidence\s*\d*")
    assert all(foot.search(text) for text in texts)
    return "".join(foot.sub("", text) for text in texts)


RENDERINGS = {"html": text_of_page, "pdf": text_of_pdf}


def squeezed(text):
    return re.sub(r"\s", "", text)


def leaves(value, path=()):
    """Yield the place and value of everything in a JSON document, keys of free maps included."""
    if isinstance(value, dict):
        for key, item in value.items():
            if path[-1:] in {("seeds",), ("libraries",), ("figures",), ("missing",)}:
                yield path, key
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, path)
    else:
        yield path, value


def facts_of(statement):
    for path, value in leaves(statement):
        if isinstance(value, str) and path != ("kind",):
            yield path, WORDS.get(value, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, canonical_json([value]).decode()[1:-1]


@pytest.fixture
def bundle_of(statement_of, signer):
    """Bundles of records that are in a log of three entries."""

    def make(sort, change=lambda statement: statement):
        payload = write_record(change(statement_of(sort)))
        record = read_record(payload)
        body = record_entry(record, payload, index=1, time=record.times.finished)
        tree, _ = Frontier().append(leaf_hash(b"before"))
        tree, _ = tree.append(leaf_hash(body))
        tree, _ = tree.append(leaf_hash(b"after"))
        note = sign_note(
            Checkpoint(ORIGIN, tree.size, tree.root()).text(),
            [(ORIGIN, Ed25519PrivateKey.generate())],
        )
        siblings = (leaf_hash(b"before"), leaf_hash(b"after"))
        return {
            "format": "lethe.bundle/v2",
            "envelope": signer.sign_envelope(STATEMENT_TYPE, payload).model_dump(mode="json"),
            "entry": body.decode(),
            "proof": LogProof(1, siblings, note).text(),
            "consistency": None,
            "timestamp": None,
        }

    return make


def statement_in(bundle):
    document = json.loads(base64.b64decode(bundle["envelope"]["payload"]))
    return document.get("predicate", document)


@pytest.mark.parametrize("form", RENDERINGS)
@pytest.mark.parametrize("sort", SORTS)
def test_a_document_says_everything_that_the_record_says(bundle_of, sort, form):
    bundle = bundle_of(sort)
    text = squeezed(RENDERINGS[form](bundle))
    for path, fact in facts_of(statement_in(bundle)):
        assert squeezed(fact) in text, path


@pytest.mark.parametrize("form", RENDERINGS)
@pytest.mark.parametrize("file", OLD, ids=lambda file: file.stem)
def test_records_of_every_earlier_version_become_documents_too(file, form):
    bundle = json.loads(file.read_bytes())
    text = squeezed(RENDERINGS[form](bundle))
    for path, fact in facts_of(statement_in(bundle)):
        assert squeezed(fact) in text, path


@pytest.mark.parametrize("form", RENDERINGS)
@pytest.mark.parametrize("sort", SORTS)
def test_the_verdict_comes_first_and_no_other_kind_looks_like_a_certificate(bundle_of, sort, form):
    bundle = bundle_of(sort)
    text = squeezed(RENDERINGS[form](bundle)).lower()
    verdict = squeezed(statement_in(bundle)["verdict"]).lower()
    assert text.index(verdict) < text.index(squeezed("what was asked"))
    beginning = text[: text.index(verdict)]
    assert ("nocertificate" in beginning) is (sort not in CERTIFICATES)
    assert ("certificateofunlearning" in beginning) is (sort in CERTIFICATES)
    assert squeezed("it is not the evidence") in beginning


@pytest.mark.parametrize("sort", ["conditional", "estimate", "refusal", "failure"])
def test_every_page_of_what_is_no_certificate_says_so(bundle_of, sort):
    for page in pypdf.PdfReader(io.BytesIO(render_pdf(bundle_of(sort)))).pages:
        assert "no certificate" in page.extract_text().lower()


@pytest.mark.parametrize("form", RENDERINGS)
def test_the_place_in_the_log_and_the_digests_are_there_and_signatures_called_unchecked(
    bundle_of, signer, form
):
    bundle = bundle_of("certificate")
    text = squeezed(RENDERINGS[form](bundle))
    payload = base64.b64decode(bundle["envelope"]["payload"])
    root = Checkpoint.parse(bundle["proof"].split("\n\n")[1] + "\n").root.hex()
    for fact in (
        hashlib.sha256(payload).hexdigest(),
        signer.key_id,
        ORIGIN,
        "1, at 2026-11-23T06:54:02.000000Z",
        "of 3 entries; the signature was not looked at",
        root,
        "Timestamp by a third party none",
    ):
        assert squeezed(fact) in text
    stamped = bundle | {"timestamp": base64.b64encode(b"answer").decode()}
    assert squeezed("in the bundle, not looked at") in squeezed(RENDERINGS[form](stamped))


@pytest.mark.parametrize("form", RENDERINGS)
def test_what_was_kept_is_shown_with_its_end(bundle_of, form):
    def keep(statement):
        disposal = {
            "forget_samples": "kept_for_replay",
            "superseded_weights": "kept_by_policy",
            "kept_until": "2026-12-23T06:54:00.000000Z",
        }
        statement["disposal"] |= disposal
        statement["limits"].append(KEPT_LIMIT)
        return statement

    text = squeezed(RENDERINGS[form](bundle_of("certificate", keep)))
    for words in (WORDS["kept_for_replay"], WORDS["kept_by_policy"], "2026-12-23T06:54:00.000000Z"):
        assert squeezed(words) in text


@pytest.mark.parametrize("form", RENDERINGS)
def test_what_a_record_leaves_out_is_left_out_or_said_to_be_missing(bundle_of, form):
    def sparse(statement):
        statement["parameters"] |= {"floor": None, "perturbation": None, "prior": None}
        statement["solvers"][0]["figures"] = {}
        statement["bounds"][0]["note"] = ""
        statement["request"]["legal_ground"] = None
        return statement

    text = squeezed(RENDERINGS[form](bundle_of("estimate", sparse)))
    assert squeezed("none was given (the controller's word") in text
    assert "Perturbations" not in text
    assert "Prior" not in text

    def broken(statement):
        return statement | {"gates": []}

    text = squeezed(RENDERINGS[form](bundle_of("failure", broken)))
    assert squeezed("No gate was evaluated.") in text

    def first(statement):
        weights = statement["revision_before"]["weights_sha256"]
        statement["revision_before"]["number"] = 0
        statement["lineage"] = {
            "registered_weights_sha256": weights,
            "deletions": 0,
            "previous_statement_sha256": None,
        }
        return statement

    text = squeezed(RENDERINGS[form](bundle_of("refusal", first)))
    assert squeezed("the last of them there was none") in text

    def undeclared(statement):
        statement["surrogate"]["declared_distance"] = None
        return statement | {"verdict": UNDECLARED_VERDICT}

    text = squeezed(RENDERINGS[form](bundle_of("conditional", undeclared)))
    assert squeezed("Declared distance of the surrogate none was declared") in text


@pytest.mark.parametrize("form", RENDERINGS)
def test_a_bound_is_never_rounded(bundle_of, form):
    exact = 1.2345678901234567e-12

    def bound(statement):
        statement["bounds"][0]["value"] = exact
        return statement

    assert repr(exact) in squeezed(RENDERINGS[form](bundle_of("estimate", bound)))


def named(name):
    def change(statement):
        statement["model"]["name"] = name
        return statement

    return change


HOSTILE = [
    "<script>alert(1)</script>",
    '<img src="file:///etc/passwd"/>',
    '<a href="https://example.org/">certificate</a>',
    '"><b onload=x>',
    "</style></head>{{ 7 * 7 }}",
    "a & b &lt; c &#60;",
    "<para><b>unclosed",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_and_never_markup(bundle_of, name):
    bundle = bundle_of("refusal", named(name))
    page = Page(render_html(bundle))
    harmless = Page(render_html(bundle_of("refusal")))
    assert name in page.text
    assert page.tags == harmless.tags
    assert {key for key, _ in page.attributes} == {key for key, _ in harmless.attributes}
    assert squeezed(name) in squeezed(text_of_pdf(bundle))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tab\there", "tab\\there"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x00end", "\\x00end"),
        ("left\u202etfel", "left\\u202etfel"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ],
)
def test_characters_that_show_nothing_are_shown_by_their_number(bundle_of, name, shown):
    bundle = bundle_of("failure", named(name))
    assert shown in text_of_page(bundle)
    assert squeezed(shown) in squeezed(text_of_pdf(bundle))


def test_what_the_pdfs_font_lacks_or_cannot_place_is_shown_by_its_number(bundle_of):
    bundle = bundle_of("failure", named("模型 Ünïcode Ω أب"))
    assert "模型 Ünïcode Ω أب" in text_of_page(bundle)
    assert squeezed("\\u6a21\\u578b Ünïcode Ω \\u0623\\u0628") in squeezed(text_of_pdf(bundle))


@pytest.mark.parametrize("text", ["word " * 2_000 + "end.", "x" * 12_000 + "end."])
def test_a_text_that_is_longer_than_a_page_is_shown_to_its_end(bundle_of, text):
    def finding(statement):
        statement["detail"] = text
        return statement

    bundle = bundle_of("failure", finding)
    assert squeezed(text) in squeezed(text_of_page(bundle))
    assert squeezed(text) in squeezed(text_of_pdf(bundle))


def test_a_page_loads_nothing_and_runs_nothing(bundle_of):
    page = Page(render_html(bundle_of("certificate")))
    assert not {"script", "img", "link", "iframe", "object", "form", "a"} & set(page.tags)
    assert not {"style", "src", "href"} & {key for key, _ in page.attributes}
    (policy,) = [value for key, value in page.attributes if "default-src" in (value or "")]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'"
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_a_page_can_be_read_by_a_screen_reader(bundle_of):
    page = Page(render_html(bundle_of("certificate")))
    assert ("lang", "en") in page.attributes
    assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("title") == 1
    scopes = [value for key, value in page.attributes if key == "scope"]
    assert len(scopes) == page.tags.count("th") > 0


def test_a_pdf_holds_no_link_script_or_file_and_is_the_same_each_time(bundle_of):
    bundle = bundle_of("certificate", named('<a href="https://example.org/">x</a>'))
    content = render_pdf(bundle)
    assert content == render_pdf(bundle)
    assert render_html(bundle) == render_html(bundle)
    for word in (b"/URI", b"/JavaScript", b"/Launch", b"/EmbeddedFile", b"/AcroForm"):
        assert word not in content
    reader = pypdf.PdfReader(io.BytesIO(content))
    assert reader.trailer["/Root"]["/Lang"] == "en"
    assert "Certificate" in reader.metadata.title


def test_documents_made_at_the_same_time_do_not_mix():
    bundles = [json.loads(file.read_bytes()) for file in OLD]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(render_pdf, bundles * 2))
    assert made == [render_pdf(bundle) for bundle in bundles] * 2


@pytest.mark.parametrize("render", [render_html, render_pdf])
def test_parts_that_do_not_belong_together_become_no_document(bundle_of, render):
    own, other = bundle_of("certificate"), bundle_of("refusal")
    proof = LogProof.parse(own["proof"])
    for forged in (
        own | {"envelope": other["envelope"]},
        own | {"entry": other["entry"]},
        own | {"proof": other["proof"]},
        own | {"proof": LogProof(2, proof.hashes, proof.checkpoint).text()},
        own | {"proof": LogProof(1, proof.hashes[:1], proof.checkpoint).text()},
        own | {"format": "lethe.bundle/v1"},
        own | {"format": "lethe.bundle/v3"},
        own | {"more": 1},
        {},
    ):
        with pytest.raises(UnreadableBundleError, match="no record bundle"):
            render(forged)


def test_an_old_bundle_with_a_checkpoint_of_another_record_becomes_no_document():
    own, other = (json.loads(file.read_bytes()) for file in OLD[:2])
    for forged in (
        own | {"checkpoint": other["checkpoint"]},
        own | {"previous_chain_hash": "1" * 64},
    ):
        with pytest.raises(UnreadableBundleError, match="does not cover"):
            render_html(forged)


def test_an_overclaim_becomes_no_document_whoever_signed_it(bundle_of, signer):
    bundle = bundle_of("estimate")
    document = json.loads(base64.b64decode(bundle["envelope"]["payload"]))
    document["predicate"]["kind"] = "certificate"
    envelope = signer.sign_envelope(STATEMENT_TYPE, canonical_json(document))
    with pytest.raises(UnreadableBundleError):
        render_pdf(bundle | {"envelope": envelope.model_dump(mode="json")})


def test_the_finding_about_a_forged_file_holds_no_control_characters(bundle_of):
    with pytest.raises(UnreadableBundleError) as caught:
        render_html(bundle_of("refusal") | {"\x1b[32mVERIFIED\x1b[0m": 1})
    assert str(caught.value).isprintable()


@pytest.fixture
def lethe(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [LETHE, "render", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def test_the_command_writes_either_form_by_the_files_name(lethe, tmp_path, bundle_of):
    bundle = bundle_of("certificate")
    (tmp_path / "record.json").write_text(json.dumps(bundle))
    for name, render in (("record.html", render_html), ("record.PDF", render_pdf)):
        done = lethe("record.json", "--output", name)
        assert done.returncode == 0, done.stderr
        assert "lethe verify record.json" in done.stdout
        assert (tmp_path / name).read_bytes() == render(bundle)


@pytest.mark.parametrize(
    "case",
    [
        ("{}", "record.html", "no record bundle"),
        ("nonsense", "record.pdf", "no record bundle"),
        ('{"format":1,"format":2}', "record.pdf", "stands twice"),
        (None, "record.txt", "neither .html nor .pdf"),
        (None, "missing/record.pdf", "cannot write missing/record.pdf"),
    ],
)
def test_the_command_says_what_it_cannot_do(lethe, tmp_path, bundle_of, case):
    content, output, words = case
    text = json.dumps(bundle_of("refusal")) if content is None else content
    (tmp_path / "record.json").write_text(text)
    done = lethe("record.json", "--output", output)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / output).exists()
