"""The sections of a document about a record, from the record's own JSON in any version."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.evidence.canonical import sha256_hex
from app.evidence.rendering._bundle import Parts
from app.evidence.rendering._words import (
    BACKBONES,
    BOUNDS,
    DELIVERED,
    FATES,
    GROUNDS,
    METHODS,
    STANDINGS,
    TIERS,
    number,
    pairs,
)
from app.evidence.rendering.document import (
    Block,
    Code,
    Facts,
    Heading,
    Items,
    Paragraph,
    Section,
    Table,
)


def sections_of(parts: Parts) -> Iterable[Section]:
    """Yield what a document says about a record, the most important first."""
    fact = parts.record.model_dump(mode="json")
    yield _asked(fact)
    yield _done(fact)
    yield from _guarantee(fact)
    yield from _bounds(fact)
    yield _gates(fact)
    yield from _metrics(fact)
    yield _disposal(fact)
    yield _scope(fact)
    yield Section("Limits that the record admits", (Items(tuple(fact["limits"])),))
    yield _computed(fact)
    yield from _lineage(fact)
    yield _how_to_verify(fact, parts)


def _asked(fact: Mapping[str, Any]) -> Section:
    request, model = fact["request"], fact["model"]
    rows = [
        ("Request", Code(request["id"])),
        ("Received", fact["times"]["received"]),
        ("Model", model["name"]),
        ("Identifier of the model", Code(model["id"])),
        ("Task and loss", f"{model['task']}, {model['loss']} loss"),
        ("Samples to forget", number(request["n_forget"])),
        ("Method", METHODS[fact["method"]]),
    ]
    if "legal_ground" in request:
        ground = request["legal_ground"]
        words = "none was given" if ground is None else GROUNDS[ground]
        rows.append(("Legal ground", f"{words} (the controller's word, not judged here)"))
    rows += [
        ("Commitment to the samples", Code(request["sample_commitment"])),
        ("Digest of the model's manifest", Code(model["manifest_sha256"])),
    ]
    return Section("What was asked", (Facts(tuple(rows)),))


def _done(fact: Mapping[str, Any]) -> Section:
    rows = [("Started", fact["times"]["started"]), ("Finished", fact["times"]["finished"])]
    blocks: list[Block] = []
    if fact["tier"] is not None:
        rows.append(("Tier", TIERS[fact["tier"]]))
    if fact["kind"] in {"refusal", "failure"}:
        rows += [("Cause", fact["cause"]), ("Finding", fact["detail"])]
        if fact["kind"] == "refusal":
            rows.append(("Remedy", fact["remedy"]))
    if (surrogate := fact.get("surrogate")) is not None:
        distance = surrogate["declared_distance"]
        rows += [
            ("Declared distance of the surrogate", number(distance, "none was declared")),
            ("Digest of the surrogate's features", Code(surrogate["features_sha256"])),
        ]
    blocks.append(Facts(tuple(rows)))
    blocks += _revision("The revision before", fact["revision_before"])
    if "revision_after" in fact:
        blocks += _revision("The revision after", fact["revision_after"])
        blocks += [Heading("What this rests on"), _assumptions(fact["assumptions"])]
    else:
        blocks.append(Paragraph("No new weights were made: the revision before stays in force."))
    return Section("What was done", tuple(blocks))


def _revision(title: str, revision: Mapping[str, Any]) -> list[Block]:
    statistics = revision["statistics_sha256"]
    rows = [
        ("Number", number(revision["number"])),
        ("Training samples behind it", number(revision["n_samples"])),
        ("Delivered", DELIVERED[revision.get("delivered", "weights")]),
        ("SHA-256 of what is delivered", Code(revision["weights_sha256"])),
        ("Digest of the statistics", "none stored" if statistics is None else Code(statistics)),
    ]
    return [Heading(title), Facts(tuple(rows))]


def _guarantee(fact: Mapping[str, Any]) -> Iterable[Section]:
    if fact["kind"] != "certificate":
        return
    privacy = fact.get("privacy")
    if privacy is None:
        yield Section("(ε, δ)", (Paragraph("No (ε, δ) guarantee is made."),))
        return
    rows = (
        ("ε", number(privacy["epsilon"])),
        ("δ", number(privacy["delta"])),
        ("Mechanism", privacy["mechanism"]),
        ("σ, deviation of each entry of the noise", number(privacy["sigma"])),
        ("Bound that the noise hides", privacy["measure"]),
        ("Budget: largest value that is hidden", number(privacy["limit"])),
        ("Spent, all deletions included", number(privacy["spent"])),
        ("Left", number(privacy["left"])),
    )
    blocks = (Facts(rows), Heading("What this rests on"), _assumptions(privacy["assumptions"]))
    yield Section("(ε, δ) guarantee", blocks)


def _bounds(fact: Mapping[str, Any]) -> Iterable[Section]:
    if "bounds" not in fact:
        return
    blocks: list[Block] = []
    if fact["kind"] != "certificate":
        blocks.append(Paragraph("None of these certifies anything."))
    # What certifies before what does not, and else as in the record.
    for bound in sorted(fact["bounds"], key=lambda one: not one["certifies"]):
        certifies = "yes, under its assumptions" if bound["certifies"] else "no"
        rows = [
            ("Value", number(bound["value"], "it cannot be computed")),
            ("Certifies", certifies),
            ("Where it comes from", bound["equation"]),
        ]
        if bound["note"]:
            rows.append(("To be known", bound["note"]))
        name = bound["name"]
        title = f"{BOUNDS[name]} ({name})" if name in BOUNDS else name
        blocks += [Heading(title), Facts(tuple(rows))]
        if bound["assumptions"]:
            blocks.append(_assumptions(bound["assumptions"]))
    yield Section("Bounds on what is left of the samples", tuple(blocks))


def _gates(fact: Mapping[str, Any]) -> Section:
    policy = fact["parameters"]["gate"]
    rows = [
        ("Threshold of the gate", number(policy["threshold"])),
        ("Splits", number(policy["splits"])),
        ("An estimate has to be identified", number(policy["require_identified"])),
    ]
    if "skew_level" in policy:
        rows.append(("Level of all skew tests together", number(policy["skew_level"])))
    blocks: list[Block] = [
        Paragraph("The thresholds were set before the request was looked at."),
        Facts(tuple(rows)),
    ]
    for gate in fact["gates"]:
        found = (
            ("Result", "passed" if gate["passed"] else "NOT passed"),
            ("Value", number(gate["value"], "none could be measured")),
            ("Threshold", number(gate["threshold"], "none")),
            ("Finding", gate["detail"]),
        )
        blocks += [Heading(gate["name"]), Facts(found)]
    if not fact["gates"]:
        blocks.append(Paragraph("No gate was evaluated."))
    return Section("Gates", tuple(blocks))


def _metrics(fact: Mapping[str, Any]) -> Iterable[Section]:
    if (metrics := fact.get("metrics")) is None:
        return
    rows = []
    for name, words in (("forget", "Forget samples"), ("holdout", "Holdout samples")):
        before, after = metrics[f"{name}_before"], metrics[f"{name}_after"]
        for key, figure in (
            ("mean_loss", "mean loss"),
            ("accuracy", "accuracy"),
            ("n_samples", "how many"),
        ):
            rows.append((f"{words}: {figure}", _figure(before, key), _figure(after, key)))
    rows.append(
        (
            "Loss on the remaining samples",
            number(metrics["retain_loss_before"]),
            number(metrics["retain_loss_after"]),
        )
    )
    if "membership_before" in metrics:
        before, after = metrics["membership_before"], metrics["membership_after"]
        for key, figure in (
            ("auc", "area under the curve"),
            ("tpr_at_1_percent_fpr", "true positives at 1 % false ones"),
        ):
            words = f"Membership test: {figure}"
            rows.append((words, _figure(before, key), _figure(after, key)))
    facts = [("Norm of the change of the weights", number(metrics["weight_change"]))]
    if "reconstruction" in metrics:
        leak, words = metrics["reconstruction"], "Reconstruction from both weights: cosine"
        facts += [
            (words, _figure(leak, "cosine")),
            (f"{words} with the statistics", _figure(leak, "cosine_with_statistics")),
        ]
    blocks: list[Block] = [
        Paragraph("They describe the weights; they are no evidence that anything was forgotten."),
        Table(("Figure", "before", "after"), tuple(rows)),
        Facts(tuple(facts)),
    ]
    if metrics["missing"]:
        missing = tuple(f"{name}: {why}" for name, why in metrics["missing"].items())
        blocks += [Heading("Why figures are missing"), Items(missing)]
    yield Section("Figures before and after", tuple(blocks))


def _disposal(fact: Mapping[str, Any]) -> Section:
    disposal = fact["disposal"]
    names = {
        "forget_samples": "The samples to forget",
        "superseded_weights": "The old weights",
        "superseded_statistics": "The old statistics",
        "superseded_anchor": "The weights that the statistics were collected at",
        "release_noise": "The noise of the release",
    }
    rows = [(words, FATES[disposal[key]]) for key, words in names.items() if key in disposal]
    if disposal.get("kept_until") is not None:
        rows.append(("What was kept is due to be destroyed by", disposal["kept_until"]))
    return Section("What became of what is no longer needed", (Facts(tuple(rows)),))


def _scope(fact: Mapping[str, Any]) -> Section:
    scope = fact["scope"]
    rows = (
        ("Covered", scope["covered"]),
        ("Data behind the features", BACKBONES[scope["backbone"]]),
    )
    blocks = (Facts(rows), Heading("Not covered"), Items(tuple(scope["not_covered"])))
    return Section("What the record covers", blocks)


def _computed(fact: Mapping[str, Any]) -> Section:
    parameters, environment = fact["parameters"], fact["environment"]
    rows = []
    for key, words in (("floor", "Floor"), ("solver", "Solver"), ("anchor", "Anchor")):
        if parameters.get(key) is not None:
            rows.append((words, parameters[key]))
    if (perturbation := parameters["perturbation"]) is not None:
        count, scale = number(perturbation["count"]), number(perturbation["scale"])
        rows.append(("Perturbations", f"{count}, {perturbation['law']}, scale {scale}"))
    if (prior := parameters.get("prior")) is not None:
        rows.append(("Prior", f"{prior['kind']}, weight {number(prior['weight'])}"))
    rows += [(f"Seed: {purpose}", seed) for purpose, seed in fact["seeds"].items()]
    rows += [
        ("Lethe", environment["lethe_version"]),
        ("Python", environment["python_version"]),
        ("Libraries", pairs(environment["libraries"])),
        ("Device", environment["device"]),
    ]
    if "threads" in environment:
        rows += [
            ("Computing threads", number(environment["threads"])),
            ("Instructions of the CPU", environment["cpu_capability"]),
        ]
    rows.append(("Digest of the code", Code(environment["code_sha256"])))
    blocks: list[Block] = [Facts(tuple(rows))]
    for solver in fact.get("solvers", ()):
        figures = {key: number(value, "not finite") for key, value in solver["figures"].items()}
        found = [("Status", solver["status"])]
        if figures:
            found.append(("Figures", pairs(figures)))
        blocks += [Heading(f"Solver: {solver['name']}"), Facts(tuple(found))]
    return Section("How it was computed", tuple(blocks))


def _lineage(fact: Mapping[str, Any]) -> Iterable[Section]:
    if (lineage := fact.get("lineage")) is None:
        return
    previous = lineage["previous_statement_sha256"]
    rows = (
        ("SHA-256 of the weights that were registered", Code(lineage["registered_weights_sha256"])),
        ("Deletions completed before this request", number(lineage["deletions"])),
        (
            "SHA-256 of the statement about the last of them",
            "there was none" if previous is None else Code(previous),
        ),
    )
    yield Section("Where the revision before comes from", (Facts(rows),))


def _how_to_verify(fact: Mapping[str, Any], parts: Parts) -> Section:
    place, envelope = parts.place, parts.envelope
    signed = "the signature was not looked at for this document"
    rows = [
        ("Record", Code(fact["id"])),
        ("Version of the record", fact["version"]),
        ("Type of what was signed", envelope.payloadType),
        ("SHA-256 of what was signed", Code(sha256_hex(parts.payload))),
        ("Key that the envelope names", Code(envelope.signatures[0].keyid)),
        ("Log", place.origin),
        ("Entry of the log", f"{place.index}, at {place.time}"),
        ("Checkpoint", f"of {place.size} entries; {signed}"),
        (place.digest[0], Code(place.digest[1])),
    ]
    if place.signed_at is not None:
        rows.append(("Time of the checkpoint", place.signed_at))
    if place.timestamped is not None:
        there = "in the bundle, not looked at for this document" if place.timestamped else "none"
        rows.append(("Timestamp by a third party", there))
    blocks = (
        Paragraph("With the bundle, which is the evidence:"),
        Paragraph(fact["how_to_verify"]),
        Facts(tuple(rows)),
    )
    return Section("How to verify", blocks)


def _assumptions(assumptions: Sequence[Mapping[str, str]]) -> Table:
    rows = tuple((one["text"], STANDINGS[one["standing"]]) for one in assumptions)
    return Table(("Assumption", "On whose word"), rows)


def _figure(figures: Mapping[str, Any] | None, key: str) -> str:
    return "—" if figures is None else number(figures[key])
