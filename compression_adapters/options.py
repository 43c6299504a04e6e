"""What is searched and how: each option with its default, its choices and its check.

`compress` documents the options for users and takes its defaults from here, and so does
the command line, with its help texts. Importing this module imports nothing slow.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor, nn

LossName = Literal[
    "squared_l2",
    "relative_squared_l2",
    "kl_divergence",
    "cross_entropy",
    "top1_error",
    "disagreement",
    "cosine_distance",
]
EncodingName = Literal["log", "energy", "linear", "path"]
"""What a coordinate means, see `rank_scale` and, for `path`, `path_parameters`."""
PATH: Final = "path"
"""The encoding that is not of one layer alone."""
AtMax = Literal["dense", "factor"]
ChooseName = Literal["low_rank", "best"]
"""Which forms a layer can have, see `CHOICES`."""
Objective = Literal["ratio", "rate"]
Level = Literal["pairwise", "joint", "marginal"]
Sampling = Literal["leader_challenger", "challenger", "expected_improvement"]
SizeName = Literal["weights", "multiply-adds", "bytes", "latency"]
"""What the size of a network is, see `SizeMeasure`."""
SizeOf = Literal["layers", "network"]
"""Whether the size is that of the layers in play or of the whole network."""
Start = Literal["auto", "path", "line", "space-filling"]
"""What is evaluated first, see `attach_first_points`."""

AUTO: Final = "auto"
FEW_COORDINATES: Final = 3
"""More layers than this share so few coordinates, unless it is said how they do."""
FEWEST_SAMPLES: Final = 50
"""The paper's m: the start and the minimum of `num_samples="auto"`."""
CALIBRATE: Final = 500
"""Calibration inputs by default; measured in docs/benchmarks/data_aware.md."""
HELD_OUT: Final = 4000
"""Inputs that are held out for a statement by default, at most.

With so many, a network whose true agreement is .985 is shown to have .98 in three of
four cases; with a quarter of them, one of .99."""
DEFAULT_GAMMA: Final = 10.0
"""Weight of a loss in units of the outputs' squared size, where none is given.

A tenth of a per cent of the outputs' squared size weighs as much as one per cent of the
weights. Measured in docs/benchmarks/quality.md: at 1, ResNet18 loses two points of
accuracy; at 10, FC3 loses a fifth of a point."""
LATENCY_SECONDS: Final = 30.0
"""Budget for a table of times; measured in docs/benchmarks/speed.md."""
DEFAULT_NAME: Final = "compression"
PRESET_NAMES: Final = ("fc3", "vgg16", "resnet18", "resnet50")
"""Keys of `PRESETS`."""


def option(
    default: Any,
    help: str | None = None,
    *,
    choices: Any = None,
    at_least: int | None = None,
    above: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
) -> Any:
    """Declare an option of a search.

    Args:
        default: Its default.
        help: For the command line; None for an option that it does not have.
        choices: A `Literal` of the values that it takes.
        at_least: Smallest value of a whole number.
        above: A number is larger than this.
        below: A number is smaller than this.
        metavar: What the command line's help puts for the value.
    """
    metadata = {
        "help": help,
        "choices": None if choices is None else get_args(choices),
        "at_least": at_least,
        "above": above,
        "below": below,
        "metavar": metavar,
    }
    return field(default=default, metadata=metadata)


def require_gamma(gamma: float) -> None:
    """Raise unless gamma is a valid weight of a loss.

    Args:
        gamma: Weight of the loss.

    Raises:
        ValueError: when `gamma` is not positive and finite.
    """
    if not (isinstance(gamma, int | float) and 0.0 < gamma < math.inf):
        raise ValueError(
            "gamma, the weight of the loss, must be positive and finite; got "
            f"{gamma!r}."
        )


def read_ratio(ratio: float | str) -> float:
    """Read a ratio as a number or as a percentage.

    Args:
        ratio: Such as 0.3, `"0.3"` or `"30%"`.

    Returns:
        A number in (0, 1).

    Raises:
        ValueError: when it is not a ratio.

    Example:
        >>> read_ratio("30%"), read_ratio(0.25)
        (0.3, 0.25)
    """
    value = math.nan
    try:
        if isinstance(ratio, str) and ratio.strip().endswith("%"):
            value = float(ratio.strip()[:-1]) / 100.0
        else:
            value = float(ratio)
    except ValueError:
        pass
    if not 0.0 < value < 1.0:
        raise ValueError(
            f"ratio must lie between 0 and 1, or be text such as '30%'; got {ratio!r}."
        )
    return value


def read_speedup(speedup: float) -> float:
    """Read how many times faster a network has to be.

    Args:
        speedup: Such as 2.0.

    Returns:
        The largest share of the original's time, in (0, 1).

    Raises:
        ValueError: when it is not a number above 1.

    Example:
        >>> read_speedup(2.0)
        0.5
    """
    number = isinstance(speedup, int | float) and not isinstance(speedup, bool)
    if not (number and 1.0 < speedup < math.inf):
        raise ValueError(
            "speedup must be a number above 1, how many times faster the network has "
            f"to be; got {speedup!r}."
        )
    return 1.0 / float(speedup)


def require_size(size: Any, size_of: str) -> None:
    """Raise unless there is such a size; whether a table fits is seen later."""
    known = get_args(SizeName)
    if isinstance(size, str) and size not in known and not size.endswith(".json"):
        near = difflib.get_close_matches(size, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"size must be one of {', '.join(known)}, a table of measured times, or "
            f"the path of one (.json); got {size!r}.{hint}"
        )
    if size_of not in get_args(SizeOf):
        raise ValueError(
            "size_of must be 'layers', those in play, or 'network', the whole one; "
            f"got {size_of!r}."
        )


def require_num_samples(num_samples: int) -> None:
    """Raise unless so many samples give a standard error."""
    if not isinstance(num_samples, int) or num_samples < 2:
        raise ValueError(
            f"num_samples must be at least 2, for a standard error; got {num_samples}."
        )


def require_worker_options(
    workers: int | None, resources: Any, timeout: float | None
) -> None:
    """Raise unless evaluations on workers can be made with these options."""
    if timeout is not None and not 0.0 < timeout < math.inf:
        raise ValueError(f"timeout must be positive and finite; got {timeout!r}.")
    if resources is not None:
        is_fine = isinstance(resources, Mapping) and all(
            isinstance(name, str)
            and type(amount) in (int, float)
            and 0.0 <= amount < math.inf
            for name, amount in resources.items()
        )
        if not is_fine:
            raise ValueError(
                "resources must be a dictionary of names and amounts, such as "
                f"{{'num_gpus': 1}}; got {resources!r}."
            )
    if workers is None and (resources is not None or timeout is not None):
        raise ValueError(
            "resources and timeout are about evaluations on Ray: give a number of "
            "workers too, or leave them out; got "
            f"resources={resources!r}, timeout={timeout!r}, workers=None."
        )


def read_resources(text: str) -> dict[str, float]:
    """Read what an evaluation reserves.

    Args:
        text: Such as `"num_gpus=1,num_cpus=4"`.

    Raises:
        ValueError: when it is not of that form.

    Example:
        >>> read_resources("num_gpus=0.5,num_cpus=4")
        {'num_gpus': 0.5, 'num_cpus': 4}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, amount = (piece.strip() for piece in part.partition("="))
        try:
            number = float(amount)
        except ValueError:
            number = math.nan
        if not name or not 0.0 <= number < math.inf:
            raise ValueError(
                "resources must be of the form NAME=NUMBER,NAME=NUMBER, such as "
                f"num_gpus=1; got {text!r}."
            )
        found[name] = int(number) if number.is_integer() else number
    return found


def require_objective(objective: str) -> None:
    """Raise unless there is such an objective."""
    if objective not in get_args(Objective):
        raise ValueError(f"objective must be 'ratio' or 'rate'; got {objective!r}.")


def require_tie(tie: Callable[[str], str] | str | None) -> None:
    """Raise unless layers can be tied in this way."""
    if isinstance(tie, str) and tie != "threshold":
        raise ValueError(
            "tie must be a function of a layer's name, None, or 'threshold'; got "
            f"{tie!r}."
        )


def require_rank_options(
    encoding: str, at_max: str, min_rank: int, round_to: int
) -> None:
    """Raise unless a scale of ranks can be made with these options."""
    if encoding not in get_args(EncodingName):
        raise ValueError(
            f"encoding must be one of {', '.join(get_args(EncodingName))}; got "
            f"{encoding!r}."
        )
    if at_max not in get_args(AtMax):
        raise ValueError(f"at_max must be 'dense' or 'factor'; got {at_max!r}.")
    for name, number in (("min_rank", min_rank), ("round_to", round_to)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the search balances: a weight of the loss, or a target in its place.

    The fields are keywords of `compress`, which documents them.
    """

    gamma: float | None = option(
        None,
        "Weight of the loss; larger keeps more weights.  [default: the preset's, or 10 "
        "on the loss in units of the outputs' size]",
        above=0.0,
    )
    ratio: float | str | None = option(
        None,
        "In place of --gamma: the best network of this size or less, such as 30%.",
        metavar="SIZE",
    )
    loss_at_most: float | None = option(
        None,
        "In place of --gamma: the smallest network that loses no more than this.",
        above=0.0,
    )
    agreement_at_least: float | None = option(
        None,
        "In place of --gamma: the smallest network whose largest output is the "
        "original's on at least this share of inputs, such as 0.98. Needs no labels.",
        above=0.0,
        below=1.0,
    )
    accuracy_drop_at_most: float | None = option(
        None,
        "In place of --gamma: the smallest network that loses no more accuracy than "
        "this, such as 0.01. Needs labels.",
        above=0.0,
        below=1.0,
    )
    speedup: float | None = option(
        None,
        "In place of --gamma: the best network that is so many times faster, measured.",
        above=1.0,
    )

    def __post_init__(self) -> None:
        if self.gamma is not None:
            require_gamma(self.gamma)
        if self.ratio is not None:
            read_ratio(self.ratio)
        if self.loss_at_most is not None and not 0.0 < self.loss_at_most < math.inf:
            raise ValueError(f"loss_at_most must be positive; got {self.loss_at_most}.")
        for name in ("agreement_at_least", "accuracy_drop_at_most"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1.0:
                raise ValueError(
                    f"{name} must be a share between 0 and 1; got {value!r}."
                )
        if self.speedup is not None:
            read_speedup(self.speedup)

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the fields that were given."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def is_quality(self) -> bool:
        """Whether the target is shown on held-out inputs."""
        return bool({"agreement_at_least", "accuracy_drop_at_most"} & {*self.given})

    def require_one(self) -> None:
        """Refuse none and several.

        Raises:
            ValueError: when not exactly one is given.
        """
        if len(self.given) != 1:
            raise ValueError(
                f"Expected exactly one of {', '.join(f.name for f in fields(self))}; "
                f"got {' and '.join(self.given) or 'none'}."
            )


@dataclass(frozen=True, kw_only=True)
class ProblemOptions:
    """What is searched: layers, their ranks, and how a network is evaluated.

    The fields are keywords of `compress`, which documents them, and of
    `compression_problem`. `choose=None` stands for `choose_low_rank`, and
    `binary_loss=None` for what is known of the loss.

    Raises:
        ValueError: when a value is out of its range; the message names the option.
    """

    labels: Tensor | None = None
    collate: Callable[[list[Any]], Any] | None = None
    output: str | int | Callable[[Any], Tensor] | None = option(
        None,
        "Which output is compared, of a network that returns several: its name, its "
        "index, or the path of a module.  [default: logits, last hidden state, ...]",
        metavar="NAME",
    )
    held_out: int | None = option(
        None,
        "Inputs that are kept apart for the statement about quality at the end.  "
        "[default: with a target up to 4000, at most 40 % of a pool; else none]",
        at_least=0,
    )
    loss: str | Callable[..., Tensor] = option(
        "squared_l2",
        "What is measured. All but cross_entropy and top1_error compare with the "
        "outputs of the original network, without labels; relative_squared_l2 is 1 for "
        "outputs of zero, disagreement the share of other predictions.",
        choices=LossName,
    )
    num_samples: int | Literal["auto"] = option(
        FEWEST_SAMPLES,
        "Fresh samples per evaluation; auto: as many as take as long as the rest of a "
        "trial.",
        at_least=2,
        metavar="NUMBER|auto",
    )
    calibrate: int = option(
        CALIBRATE,
        "Inputs that the factors are fitted to, at most a fifth of a pool; the others "
        "are evaluated on. 0: factors of the weights alone, the paper's.",
        at_least=0,
    )
    calibration_seed: int = option(
        0, "Determines which inputs the factors are fitted to.", at_least=0
    )
    choose: Callable[[str, nn.Module], Any] | ChooseName | None = option(
        None,
        "best: every form of a convolution, and at each size the one that loses least; "
        "low_rank: one form.  [default: low_rank]",
        choices=ChooseName,
    )
    include: Any = None
    exclude: Any = ()
    tie: Callable[[str], str] | Literal["threshold"] | None = None
    coordinates: int | None = option(
        None,
        "Layers share so many coordinates, which run along the price path; for many "
        f"layers.  [default: {FEW_COORDINATES}; one a layer if --calibrate is 0]",
        at_least=1,
    )
    encoding: str = option(
        "log",
        "How a coordinate in [0, 1] becomes a rank; linear is the paper's, path runs "
        "along the price path.",
        choices=EncodingName,
    )
    at_max: AtMax = option(
        "dense",
        "What the top of a layer's range means; factor is the paper's.",
        choices=AtMax,
    )
    min_rank: int = option(1, "Smallest rank of a layer.", at_least=1)
    round_to: int = option(1, "Use multiples of this as ranks, such as 8.", at_least=1)
    skip_no_gain: bool = option(False, "Leave out ranks that save no multiply-adds.")
    objective: Objective = option(
        "ratio",
        "ratio: gamma * loss + ratio is minimised; rate: the paper's other form, "
        "1 / ratio - gamma * loss, is maximised.",
        choices=Objective,
    )
    binary_loss: bool | None = None
    size: Any = option(
        "weights",
        "What the size is: weights, multiply-adds, bytes as stored, or latency, which "
        "is measured here; or the .json file of a table of times.",
        metavar="SIZE|FILE",
    )
    size_of: SizeOf = option(
        "layers",
        "Whether the size is that of the layers in play or of the whole network, which "
        "a --speedup is always of.",
        choices=SizeOf,
    )
    latency_batch: int | None = option(
        None,
        "Inputs in a batch that is timed.  [default: those of an evaluation]",
        at_least=1,
    )
    latency_seconds: float = option(
        LATENCY_SECONDS, "Budget for measuring the times of the layers.", above=0.0
    )

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in get_args(LossName):
            raise ValueError(
                f"loss must be one of {', '.join(get_args(LossName))}, or a function; "
                f"got {self.loss!r}."
            )
        if self.num_samples != AUTO:
            require_num_samples(self.num_samples)
        for name in ("calibrate", "calibration_seed", "held_out"):
            number = getattr(self, name)
            if name == "held_out" and number is None:
                continue
            if type(number) is not int or number < 0:
                raise ValueError(
                    f"{name} must be a whole number, at least 0; got {number!r}."
                )
        batch, seconds = self.latency_batch, self.latency_seconds
        if batch is not None and (type(batch) is not int or batch < 1):
            raise ValueError(
                f"latency_batch must be a whole number, at least 1; got {batch!r}."
            )
        if not (isinstance(seconds, int | float) and 0.0 < seconds < math.inf):
            raise ValueError(f"latency_seconds must be positive; got {seconds!r}.")
        if isinstance(self.choose, str) and self.choose not in get_args(ChooseName):
            raise ValueError(
                f"choose must be one of {', '.join(get_args(ChooseName))}, or a "
                f"function; got {self.choose!r}."
            )
        require_size(self.size, self.size_of)
        require_objective(self.objective)
        require_tie(self.tie)
        require_rank_options(self.encoding, self.at_max, self.min_rank, self.round_to)
        self._require_coordinates()
        if self.encoding == PATH and isinstance(self.tie, str):
            raise ValueError(
                f"tie={self.tie!r} has an order of its own, and encoding 'path' as "
                "well; use one of them."
            )

    @property
    def is_shared_by_default(self) -> bool:
        """Whether many layers share coordinates because nothing else is asked for."""
        own = self.coordinates, self.tie, self.encoding
        return own == (None, None, "log") and self.calibrate > 0

    def _require_coordinates(self) -> None:
        """Raise unless there is one way in which layers share coordinates."""
        few = self.coordinates
        if few is None:
            return
        if type(few) is not int or few < 1:
            raise ValueError(
                f"coordinates must be a whole number, at least 1; got {few!r}."
            )
        if self.tie is not None or self.encoding not in ("log", PATH):
            raise ValueError(
                "coordinates groups the layers and orders them by the price path, and "
                f"tie={self.tie!r} with encoding={self.encoding!r} does so in another "
                "way; use one of them."
            )

    @property
    def first_num_samples(self) -> int:
        """Samples per evaluation that a search starts with."""
        return FEWEST_SAMPLES if self.num_samples == AUTO else self.num_samples


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How the search is made, when it ends, and where it is kept.

    The fields are keywords of `compress`, which documents them.

    Raises:
        ValueError: when a value is out of its range; the message names the option.
            Those of the certificate are checked by `CertificateSettings`.
    """

    delta: float = option(
        0.02,
        "Tolerance, in units of the objective gamma * loss + ratio.",
        above=0.0,
    )
    epsilon: float = option(
        0.05,
        "Allowed probability that the result is not within delta of the best.",
        above=0.0,
        below=1.0,
    )
    level: str = option(
        "marginal",
        "What the certificate accounts for; pairwise is the paper's rule.",
        choices=Level,
    )
    relative: bool = option(False, "Read delta as a share of the objective.")
    num_initial_trials: int | None = option(
        None,
        "Space-filling evaluations before the model proposes.  [default: two more than "
        "there are coordinates, at least 6]",
        at_least=2,
    )
    sampling: str = option(
        "leader_challenger",
        "What to evaluate next; challenger is the paper's.",
        choices=Sampling,
    )
    start: Start = option(
        "auto",
        "What to evaluate first; path: networks on the price path, which auto means "
        "with data-aware factors; line: networks whose layers are all cut alike, which "
        "it means else, from four coordinates on.",
        choices=Start,
    )
    search: bool = option(
        True,
        "Whether to search; else the network is taken from the price path, and nothing "
        "is certified.",
    )
    max_trials: int = option(
        200, "Evaluations after which to stop without a certificate.", at_least=2
    )
    minutes: float | None = option(
        None,
        "Minutes after which to end with the best network so far.  [default: no limit]",
        above=0.0,
    )
    seed: int = option(0, "Determines samples and proposals.", at_least=0)
    refit: bool = option(
        True,
        "Refit the network that is kept on the calibration inputs, and move its batch "
        "norm, each if it is better on fresh samples; not with --calibrate 0.",
    )
    progress: bool | None = None
    db: str | Path | None = option(
        None,
        "Keep the search in this database, or continue the one that it holds: an "
        "SQLite file, or a URL such as postgresql+psycopg://USER@HOST/NAME.",
        metavar="PATH|URL",
    )
    name: str = option(DEFAULT_NAME, "Name of the search in the database.")
    workers: int | None = option(
        None,
        "Evaluations at the same time, on Ray.  "
        "[default: one after the other, without Ray]",
        at_least=1,
    )
    resources: Mapping[str, float] | None = option(
        None,
        "What each evaluation reserves on Ray, such as num_gpus=1 or "
        "num_cpus=4,big_memory=1.  [default: num_cpus=1]",
        metavar="NAME=NUMBER,...",
    )
    timeout: float | None = option(
        None,
        "Seconds after which an evaluation on Ray is cancelled and its trial fails.  "
        "[default: no limit]",
        above=0.0,
    )

    def __post_init__(self) -> None:
        for name in ("search", "refit", "relative"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name} must be True or False; got {getattr(self, name)!r}."
                )
        if self.max_trials < 2:
            raise ValueError(f"max_trials must be at least 2, got {self.max_trials}")
        if self.minutes is not None and not 0.0 < self.minutes < math.inf:
            raise ValueError(
                f"minutes must be positive and finite; got {self.minutes!r}."
            )
        if self.minutes is not None and self.workers is not None:
            raise ValueError(
                "minutes cannot be combined with workers so far; leave one of them "
                "out, or limit the search by max_trials."
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0; got {self.seed}.")
        require_worker_options(self.workers, self.resources, self.timeout)
        known = get_args(Start)
        on_workers = self.start in ("path", "line") and self.workers is not None
        if self.start not in known or on_workers:
            raise ValueError(
                f"start must be one of {', '.join(known)}, and 'path' and 'line' go "
                f"without workers; got {self.start!r} and workers={self.workers}."
            )


@dataclass(frozen=True, kw_only=True)
class CompressionOptions:
    """Everything that a call of `compress` asks for, beside network and inputs.

    Args:
        target: A weight of the loss, or a target in its place.
        problem: What is searched.
        search: How.

    Raises:
        ValueError: when two options exclude each other.
    """

    target: Target = Target()
    problem: ProblemOptions = ProblemOptions()
    search: SearchOptions = SearchOptions()

    def __post_init__(self) -> None:
        if self.search.minutes is not None and self.target.speedup is not None:
            raise ValueError(
                "minutes cannot be combined with speedup so far; leave it out, or "
                "limit the search by max_trials."
            )
        if not self.search.search and (
            self.search.workers is not None or self.search.db is not None
        ):
            raise ValueError(
                "search=False takes a network from the price path at once, without "
                "workers and without db; leave these out."
            )
        if self.target.speedup is not None:
            if isinstance(self.problem.size, str) and self.problem.size in (
                *("multiply-adds", "bytes"),
            ):
                raise ValueError(
                    "speedup is about time: leave size out, or give size='latency' or "
                    f"a table of times; got {self.problem.size!r}."
                )
            if self.problem.objective != "ratio" or self.search.workers is not None:
                raise ValueError(
                    "speedup needs objective='ratio' and measures in this process, "
                    "without workers; got "
                    f"objective={self.problem.objective!r} and "
                    f"workers={self.search.workers!r}."
                )
            if self.search.db is not None:
                raise ValueError(
                    "speedup measures networks while it searches, so that a search "
                    "continued from a database might ask for another gamma; leave db "
                    "out, or search with the gamma and the table of times of a result."
                )
        if self.problem.num_samples != AUTO:
            return
        if self.search.workers is not None:
            raise ValueError(
                "num_samples='auto' weighs an evaluation against a proposal, one after "
                "the other in one process; give a number with workers."
            )
        if self.search.db is not None:
            raise ValueError(
                "num_samples='auto' depends on wall times, so that a search continued "
                "from a database might choose otherwise; give a number with db."
            )

    @classmethod
    def of(cls, **keywords: Any) -> CompressionOptions:
        """Sort keywords of `compress` into their groups.

        Args:
            keywords: Any of the fields of the three groups.

        Raises:
            TypeError: for a keyword that `compress` does not have.
            ValueError: when a value cannot be used; the message says which and why.

        Example:
            >>> CompressionOptions.of(gamma=0.1, delta=0.2).search.delta
            0.2
        """
        return cls().changed(**keywords)

    def changed(self, **keywords: Any) -> CompressionOptions:
        """Return these options with others in place of some; a target replaces one.

        Args:
            keywords: Any of the fields of the three groups.

        Raises:
            TypeError: for a keyword that `compress` does not have.
            ValueError: when a value cannot be used; the message says which and why.
        """
        unknown = [name for name in keywords if name not in KEYWORDS]
        if unknown:
            near = difflib.get_close_matches(unknown[0], KEYWORDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"compress has no option {', '.join(map(repr, unknown))}; its options "
                f"are {', '.join(KEYWORDS)}.{hint}"
            )
        groups: dict[str, dict[str, Any]] = {"target": {}, "problem": {}, "search": {}}
        for name, value in keywords.items():
            groups[KEYWORDS[name]][name] = value
        own = {k: v for k, v in groups["target"].items() if v is not None}
        return CompressionOptions(
            target=Target(**own) if own else self.target,
            problem=replace(self.problem, **groups["problem"]),
            search=replace(self.search, **groups["search"]),
        )

    def with_default_target(self) -> CompressionOptions:
        """Return these options with a gamma, where neither it nor a target is given.

        The loss is then the squared distance of the outputs in units of their squared
        size, at weight `DEFAULT_GAMMA`. A loss of `"disagreement"` or
        `"cosine_distance"`, which have such a unit of their own, stays.

        Raises:
            ValueError: when another loss was chosen, whose unit says nothing.
        """
        if self.target.given:
            return self
        loss = self.problem.loss
        if loss == "squared_l2":
            loss = "relative_squared_l2"
        if loss not in ("relative_squared_l2", "disagreement", "cosine_distance"):
            raise ValueError(
                f"Expected one of {', '.join(TARGETS)}; got none. Only the losses "
                "squared_l2, relative_squared_l2, disagreement and cosine_distance "
                "need none, because they have a unit of their own."
            )
        return replace(
            self,
            target=Target(gamma=DEFAULT_GAMMA),
            problem=replace(self.problem, loss=loss),
        )

    def with_held_out(self) -> CompressionOptions:
        """Return these options with inputs held out, unless a gamma was given.

        A search for a gamma holds none out unless it is told how many: its trials draw
        from the whole pool, as they did before there were statements.
        """
        if self.problem.held_out is not None or self.target.given == ("gamma",):
            return self
        return replace(self, problem=replace(self.problem, held_out=HELD_OUT))

    def to_keywords(self) -> dict[str, Any]:
        """Return the options as keywords of `compress`."""
        return {
            name: getattr(getattr(self, group), name)
            for name, group in KEYWORDS.items()
        }


TARGETS: Final = tuple(f.name for f in fields(Target))
"""Names of the options of which a search takes exactly one."""

KEYWORDS: Final[Mapping[str, str]] = {
    f.name: group
    for group, kind in (
        ("target", Target),
        ("problem", ProblemOptions),
        ("search", SearchOptions),
    )
    for f in fields(kind)
}
"""Each option's name and the group that it belongs to."""


def type_of(name: str) -> type:
    """Return the type that the text of an option is read as: int, float or str.

    Example:
        >>> type_of("max_trials"), type_of("delta"), type_of("ratio")
        (<class 'int'>, <class 'float'>, <class 'str'>)
    """
    groups = (Target, ProblemOptions, SearchOptions)
    (declared,) = (f for kind in groups for f in fields(kind) if f.name == name)
    if declared.metadata.get("at_least") is not None:
        return int
    return str if declared.metadata.get("above") is None else float
