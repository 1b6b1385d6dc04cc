"""What a manifest and the service's settings allow together, for one model."""

from app.errors import InvalidInputError
from app.registry import networks
from app.registry.refusals import reworded
from app.registry.schemas import GatePolicyOut, Manifest, PolicyOut, StatisticsKind
from app.settings import Settings
from core.errors import InvalidOptionError
from core.privacy import covered_norm, require_policy
from core.vocabulary import Anchor, Loss, Mechanism, Method, RidgeConvention, Task, Tier, tier_of

# Of a budget: the smallest normal float64.
_LEAST_LIMIT = 2.0**-1022
STORED_METHODS = frozenset({Method.STORED, Method.SKETCH})
_OF_HEADS = frozenset({Method.SURROGATE, Method.PAPER_SDP})


def require_consistent(
    manifest: Manifest, settings: Settings, *, has_statistics: bool, has_surrogate: bool
) -> None:
    """Check what no field of the manifest shows by itself.

    Raises:
        InvalidInputError: Fields contradict each other, the settings, or the parts that were sent.
    """
    _require_size(manifest, settings, has_statistics=has_statistics)
    networks.require_consistent(manifest, has_surrogate=has_surrogate)
    _require_loss(manifest)
    _require_ridge(manifest)
    _require_gate(manifest, settings)
    if manifest.surrogate_distance is not None and not has_surrogate:
        raise InvalidInputError(
            f"manifest.surrogate_distance: {manifest.surrogate_distance:.6g} is declared, but no"
            " surrogate was sent",
            field="manifest.surrogate_distance",
            remedy="Send the part `surrogate` with the features that the distance is of, or leave"
            " the distance out.",
        )
    _require_privacy(manifest, settings)
    _require_some_method(manifest, has_statistics=has_statistics, has_surrogate=has_surrogate)


def in_force(
    manifest: Manifest, settings: Settings, *, has_statistics: bool, has_surrogate: bool
) -> PolicyOut:
    """Return what the next request is held against."""
    return PolicyOut(
        methods=methods(manifest, has_statistics=has_statistics, has_surrogate=has_surrogate),
        gate=gate_in_force(manifest, settings),
        anchor=anchor(manifest, settings),
    )


def gate_in_force(manifest: Manifest, settings: Settings) -> GatePolicyOut:
    """Return the stricter of the manifest's gate and the settings', figure by figure.

    The settings may have become stricter since the registration; that counts, too.
    """
    declared = manifest.policy.gate
    return GatePolicyOut(
        threshold=min(declared.threshold or settings.gate_threshold, settings.gate_threshold),
        splits=max(declared.splits or settings.gate_splits, settings.gate_splits),
        skew_level=max(declared.skew_level or settings.gate_skew_level, settings.gate_skew_level),
    )


def anchor(manifest: Manifest, settings: Settings) -> Anchor:
    """Return what becomes of the anchor: the owner's choice, since neither is the weaker promise.

    `move` forgets the old weights, `keep` spends less of the budget.
    """
    return manifest.policy.anchor or settings.statistics_anchor


def methods(manifest: Manifest, *, has_statistics: bool, has_surrogate: bool) -> list[Method]:
    """Return the methods that a request may name, the default first."""
    possible = possible_methods(
        manifest, has_statistics=has_statistics, has_surrogate=has_surrogate
    )
    allowed = manifest.policy.methods
    return [method for method in possible if allowed is None or method in allowed]


def has_true_bound(method: Method, manifest: Manifest) -> bool:
    """Tell whether a method's tier comes with a bound that noise can be held against.

    A surrogate's bound is conditional on what its owner declared, and a sketch's holds with a
    probability: no (ε, δ) follows from either.
    """
    certifies = tier_of(method, manifest.loss) in {Tier.EXACT, Tier.CERTIFIED}
    return certifies and method is not Method.SKETCH


def stored_method(manifest: Manifest) -> Method:
    """Return the method that takes what the part `statistics` of such a model is."""
    network = manifest.network
    is_sketch = network is not None and network.statistics is StatisticsKind.SKETCH
    return Method.SKETCH if is_sketch else Method.STORED


def misfit(method: Method, manifest: Manifest) -> str | None:
    """Return why a method is none for such a model, whatever parts were sent; None if it is one."""
    if manifest.network is None:
        return (
            "is for networks, and the model is a linear head" if method is Method.SKETCH else None
        )
    if method in _OF_HEADS:
        return "is for linear heads, and the model is a network"
    if method in STORED_METHODS and method is not stored_method(manifest):
        return f"does not take statistics of the kind '{manifest.network.statistics}'"
    return None


def possible_methods(
    manifest: Manifest, *, has_statistics: bool, has_surrogate: bool
) -> list[Method]:
    """Return the methods that a model's parts allow, the best first."""
    parts = dict.fromkeys(STORED_METHODS, has_statistics) | {Method.SURROGATE: has_surrogate}
    return [
        method
        for method in Method
        if misfit(method, manifest) is None
        and parts.get(method, True)
        and (manifest.privacy is None or has_true_bound(method, manifest))
    ]


def _require_size(manifest: Manifest, settings: Settings, *, has_statistics: bool) -> None:
    network = manifest.network
    limits = [("num_outputs", "max_outputs", "Declare fewer outputs")]
    if network is None:
        limits.append(("num_features", "max_features", "Reduce the features' dimension"))
    else:
        limits.append(("num_features", "max_parameters", "Linearise fewer layers"))
        # D² numbers, where they are stored at all.
        if has_statistics and network.statistics is StatisticsKind.GRAM:
            sketch = "Collect a sketch and declare network.statistics `sketch`"
            limits.append(("num_features", "max_features", sketch))
    for name, setting, remedy in limits:
        found, limit = getattr(manifest, name), getattr(settings, setting)
        if found > limit:
            raise InvalidInputError(
                f"manifest.{name}: {found} is above this service's limit {limit}",
                field=f"manifest.{name}",
                remedy=f"{remedy}, or ask the operator to raise {setting.upper()}.",
            )


def _require_loss(manifest: Manifest) -> None:
    if manifest.loss is Loss.LOGISTIC and manifest.task is not Task.CLASSIFICATION:
        raise InvalidInputError(
            f"manifest.loss: '{manifest.loss}' is for classification, the task is"
            f" '{manifest.task}'",
            field="manifest.loss",
            remedy="Declare the task `classification`, with targets 0 and 1, or the loss"
            " `squared`.",
        )


def _require_ridge(manifest: Manifest) -> None:
    """Check that a model without a ridge is one that can do without."""
    if manifest.ridge.strength > 0:
        return
    reason = None
    if manifest.ridge.convention is not RidgeConvention.TOTAL:
        reason = "the convention `per_sample` has a positive one; declare `total`"
    elif manifest.network is not None:
        reason = "a network has parameters that no sample touches, which only a ridge determines"
    elif manifest.loss is not Loss.SQUARED:
        reason = "logistic loss may have no optimum without a ridge; train with a positive one"
    elif manifest.privacy is not None:
        reason = "without a ridge no distance to retraining is known that noise could hide"
    if reason is not None:
        raise InvalidInputError(
            f"manifest.ridge.strength: 0, but {reason}",
            field="manifest.ridge.strength",
            remedy="Declare the strength that the model was trained with; 0 stands for least"
            " squares alone.",
        )


def _require_gate(manifest: Manifest, settings: Settings) -> None:
    """Check that an owner does not loosen what the operator set."""
    declared = manifest.policy.gate
    rules = (
        ("threshold", declared.threshold, settings.gate_threshold, "most", "GATE_THRESHOLD"),
        ("splits", declared.splits, settings.gate_splits, "least", "GATE_SPLITS"),
        ("skew_level", declared.skew_level, settings.gate_skew_level, "least", "GATE_SKEW_LEVEL"),
    )
    for name, found, limit, side, setting in rules:
        if found is not None and (found > limit if side == "most" else found < limit):
            raise InvalidInputError(
                f"manifest.policy.gate.{name}: {found:g} is looser than this service's, at {side}"
                f" {limit:g}",
                field=f"manifest.policy.gate.{name}",
                remedy="Declare a stricter figure, leave it out to take the service's, or ask the"
                f" operator to change {setting}.",
            )


def _require_privacy(manifest: Manifest, settings: Settings) -> None:
    if manifest.privacy is None:
        return
    if manifest.privacy.mechanism is Mechanism.OBJECTIVE and manifest.loss is Loss.SQUARED:
        raise InvalidInputError(
            "manifest.privacy.mechanism: 'objective-perturbation' with the loss 'squared'",
            field="manifest.privacy.mechanism",
            remedy="Deletions from stored statistics are exact for the squared loss: declare no"
            " privacy, or 'output-perturbation'.",
        )
    try:
        require_policy(
            manifest.privacy.to_core(),
            manifest.n_samples,
            largest_epsilon=settings.largest_epsilon,
        )
    except InvalidOptionError as error:
        more = " The operator's LARGEST_EPSILON says what ε may be."
        raise reworded(error, "manifest.", more=more) from error
    if covered_norm(manifest.privacy.to_core()) < _LEAST_LIMIT:
        raise InvalidInputError(
            f"manifest.privacy.sigma: {manifest.privacy.sigma:.6g} is so little noise that float64"
            " has no number for what it hides",
            field="manifest.privacy.sigma",
            remedy="Declare the standard deviation that ε, δ and the budget need"
            " (`core.privacy.sigma_for`).",
        )


def _require_some_method(manifest: Manifest, *, has_statistics: bool, has_surrogate: bool) -> None:
    possible = possible_methods(
        manifest, has_statistics=has_statistics, has_surrogate=has_surrogate
    )
    if not possible:
        raise InvalidInputError(
            "manifest.privacy: noise is declared, but without stored statistics no deletion has a"
            " bound that it could be held against",
            field="manifest.privacy",
            remedy="Send the part `statistics`, or declare no privacy.",
        )
    if not methods(manifest, has_statistics=has_statistics, has_surrogate=has_surrogate):
        found = ", ".join(manifest.policy.methods or [])
        raise InvalidInputError(
            f"manifest.policy.methods: of {found} none can run with what was sent",
            field="manifest.policy.methods",
            remedy=f"Allow one of {', '.join(possible)}, or send what the others need.",
        )
