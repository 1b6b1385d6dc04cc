"""Which plots there are, and which rows of which benchmark they are drawn from."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Plot:
    """One plot: which rows, and what of them.

    Rows that lack `x` or `y` belong to another plot, and a figure that is not positive has no place
    on a logarithmic axis. Repetitions of one (series, x) become their median with a band or a bar
    from least to most; flags become the share that is true. `y` may name several figures of a row,
    each a series of its own by the name given.
    """

    name: str
    caption: str
    x: str
    y: str | dict[str, str]
    x_label: str
    y_label: str
    kind: Literal["lines", "dots", "bars", "scatter"] = "lines"
    series: tuple[str, ...] = ()
    where: dict[str, Any] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    diagonal: bool = False
    lines: tuple[tuple[float, str], ...] = ()


PLOTS: dict[str, tuple[Plot, ...]] = {
    "unlearning": (
        Plot(
            "rho-w",
            "What is left of the forget set: 1 is doing nothing, retraining has 0",
            x="forget_set",
            y="rho_w",
            x_label="forget set",
            y_label="ρ_w = ‖W_u − W_r*‖ / ‖W* − W_r*‖",
            kind="dots",
            series=("method",),
            where={"table": "exact"},
            log_y=True,
            lines=((1e-8, "target of the exact tier"),),
        ),
        Plot(
            "accuracy",
            "Accuracy on the test set hardly tells methods apart",
            x="forget_set",
            y="test",
            x_label="forget set",
            y_label="test accuracy (%)",
            kind="dots",
            series=("method",),
            where={"table": "exact"},
        ),
        Plot(
            "forget-curvature",
            "Closed form of the published estimator",
            x="n_forget",
            y="rho_w",
            x_label="n_f (samples)",
            y_label="ρ_w (doing nothing is 1)",
            series=("lambda",),
            where={"method": "forget-curvature", "d": 256},
            log_x=True,
            log_y=True,
        ),
        Plot(
            "paper-sdp",
            "The published program at the paper's m, 10 % forgotten",
            x="value",
            y="rho_w",
            x_label="m (perturbations)",
            y_label="ρ_w (doing nothing is 1)",
            kind="dots",
            series=("method",),
            where={"table": "paper-sdp", "varied": "m"},
            log_y=True,
        ),
        Plot(
            "baselines",
            "The paper's baselines on the same head, 10 % forgotten",
            x="method",
            y="test",
            x_label="method",
            y_label="test accuracy (%)",
            kind="dots",
            where={"table": "baselines"},
        ),
        Plot(
            "membership",
            "Membership inference with reference models: ½ is guessing",
            x="method",
            y="lira_auc",
            x_label="attacked model",
            y_label="AUC of the likelihood-ratio attack (%)",
            kind="dots",
            where={"table": "membership"},
            lines=((50.0, "guessing"),),
        ),
    ),
    "certificates": (
        Plot(
            "ratio",
            "How loose the bounds are, single deletions",
            x="lambda",
            y={"ratio": "ours", "literature_ratio": "literature's form"},
            x_label="λ (ridge strength a sample)",
            y_label="bound / true residual",
            where={"kind": "single"},
            log_x=True,
            log_y=True,
            lines=((1.0, "a violation is below"),),
        ),
        Plot(
            "bound",
            "Bound against truth, single deletions: none may lie below the line",
            x="true",
            y="bound",
            x_label="true ‖∇L(W_u; D_r)‖",
            y_label="certified bound",
            kind="scatter",
            series=("lambda",),
            where={"kind": "single"},
            log_x=True,
            log_y=True,
            diagonal=True,
        ),
        Plot(
            "stream",
            "How loose the bounds become, one deletion after the other",
            x="deletions",
            y="ratio",
            x_label="deletions so far",
            y_label="bound / true residual",
            series=("anchor", "lambda"),
            where={"kind": "stream"},
            log_y=True,
        ),
        Plot(
            "capacity",
            "Deletions until the budget is spent",
            x="lambda",
            y={
                "deletions_keep": "ours, anchor kept",
                "deletions_move": "ours, anchor moved",
                "deletions_literature": "literature's form",
            },
            x_label="λ (ridge strength a sample)",
            y_label="deletions",
            kind="dots",
            where={"kind": "capacity"},
            log_y=True,
        ),
    ),
    "gate": (
        Plot(
            "coverage",
            "The gate's estimate against the truth, random forget sets",
            x="rho_g",
            y="rho_g_estimate",
            x_label="true ρ_g",
            y_label="estimate (7) of ρ_g",
            kind="scatter",
            series=("loss",),
            where={"kind": "random", "statistics": False},
            log_x=True,
            log_y=True,
            diagonal=True,
        ),
        Plot(
            "random-refused",
            "Random forget sets that the gate refuses",
            x="n_f",
            y="refused",
            x_label="n_f (samples)",
            y_label="share refused",
            series=("loss", "statistics"),
            where={"kind": "random"},
            log_x=True,
        ),
        Plot(
            "skewed-refused",
            "Skewed forget sets that the gate refuses",
            x="skew",
            y="refused",
            x_label="kind of skew",
            y_label="share refused",
            kind="dots",
            series=("statistics",),
            where={"kind": "skewed"},
            lines=((0.95, "target"),),
        ),
    ),
    "estimators": (
        Plot(
            "against-cvxpy",
            "The published program: our solver and cvxpy",
            x="d",
            y={"own_seconds": "our solver", "cvxpy_seconds": "cvxpy"},
            x_label="d (features)",
            y_label="time (s)",
            series=("equations",),
            where={"table": "against cvxpy"},
            log_x=True,
            log_y=True,
        ),
        Plot(
            "growth-d",
            "Growth of our solver's time with the features",
            x="d",
            y="seconds",
            x_label="d (features)",
            y_label="time (s)",
            series=("law",),
            where={"table": "growth", "grows": "d"},
            log_x=True,
            log_y=True,
        ),
        Plot(
            "growth-m",
            "Growth of our solver's time with the perturbations",
            x="m",
            y="seconds",
            x_label="m (perturbations)",
            y_label="time (s)",
            series=("law",),
            where={"table": "growth", "grows": "m"},
            log_x=True,
            log_y=True,
        ),
        Plot(
            "error",
            "What the estimates are worth: 1 is doing nothing",
            x="estimator",
            y="rho_w",
            x_label="estimator",
            y_label="ρ_w",
            kind="dots",
            where={"table": "error"},
            log_y=True,
            lines=((1.0, "doing nothing"),),
        ),
    ),
    "speed": (
        Plot(
            "speedup",
            "One record: retraining's time over deletion's",
            x="convention",
            y="speedup",
            x_label="ridge convention",
            y_label="times faster than retraining",
            kind="bars",
            where={"table": "one-record"},
        ),
        Plot(
            "growth-d",
            "One record: time by the number of features",
            x="d",
            y={
                "retrain_seconds": "retraining",
                "first_seconds": "first deletion",
                "delete_seconds": "deletion with a stored factor",
                "floor_seconds": "bare triangular solves",
            },
            x_label="d (features)",
            y_label="time (s)",
            where={"table": "growth-d"},
            log_x=True,
            log_y=True,
        ),
        Plot(
            "growth-n-f",
            "Time by the number of records in one batch",
            x="n_f",
            y={"retrain_seconds": "retraining", "delete_seconds": "deletion"},
            x_label="n_f (records)",
            y_label="time (s)",
            where={"table": "growth-n_f"},
            log_x=True,
            log_y=True,
        ),
        Plot(
            "growth-outputs",
            "One record: time by the number of outputs",
            x="outputs",
            y={"retrain_seconds": "retraining", "delete_seconds": "deletion"},
            x_label="C (outputs)",
            y_label="time (s)",
            where={"table": "growth-C"},
            log_x=True,
            log_y=True,
        ),
    ),
}
