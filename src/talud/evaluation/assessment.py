"""What a map came to on pixels whose truth is known: scores with intervals, for any model and any source of truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.evaluation.bootstrap import FEW, LEVEL, Interval, score_intervals
from talud.evaluation.tally import Tally
from talud.metrics import lack_of_skill

RESAMPLES = 2000
SEED = 0  # of the draws: the same pixels give the same interval, whoever asks, and wherever

Unit = Literal["patches", "blocks"]
# The truth of a block or patch (1 landslide, 0 background, 255 unknown), and its class map (255 not mapped).
Sight = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class Subject:
    """What made the maps.

    Attributes:
        title: for a reader.
        name: of the model.
        version: in the registry, if it is there.
        weights: digest of them; empty for what has none.
        threshold: landslide where the probability is at least this.
    """

    title: str
    name: str
    version: str
    weights: str
    threshold: float

    @classmethod
    def of(cls, model: Model) -> Subject:
        """A model at its own threshold."""
        return cls(
            model.title, model.name, model.version, model.contract.origin.weights, model.contract.measured.threshold
        )


@dataclass(frozen=True)
class Assessment:
    """What maps came to on the pixels of a source whose truth is known.

    Attributes:
        subject: what made them.
        source: an area's name, or a folder.
        pixels: which pixels of it, in words.
        unit: what the bootstrap draws.
        units: how many of them hold a pixel whose truth is known.
        tally: the counts over all of them.
        scores: those of `talud.metrics.SCORES`, each with its interval; they cover what was mapped.
        notes: what a reader must know to judge them.
    """

    subject: Subject
    source: str
    pixels: str
    unit: Unit
    units: int
    tally: Tally
    scores: dict[str, Interval]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        subject: Subject,
        source: str,
        pixels: str,
        unit: Unit,
        sights: Iterable[Sight],
        notes: Iterable[str] = (),
    ) -> Assessment:
        """Count sights one by one, and resample them.

        Raises:
            StudyError: no pixel is mapped whose truth is known.
        """
        tallies = [tally for truth, classes in sights if (tally := Tally.of(classes, truth)).pixels]
        total = sum(tallies, start=Tally())
        if total.pixels == total.not_mapped:
            raise StudyError(f"{source}: has no pixel whose truth is known and that is mapped, so none to score")
        mapped = [tally.confusion for tally in tallies if tally.pixels > tally.not_mapped]
        counts = np.array([(each.tp, each.fp, each.fn, each.tn) for each in mapped], np.int64)
        few = f"{len(mapped)} {unit} are few, so that the intervals are too narrow"
        weak = lack_of_skill(total.confusion)
        return cls(
            subject,
            source,
            pixels,
            unit,
            len(tallies),
            total,
            score_intervals(counts, RESAMPLES, SEED),
            (
                *notes,
                *([few] if len(mapped) < FEW else []),
                *(said for said in (total.missing_class, weak) if said),
            ),
        )

    def record(self) -> dict[str, Any]:
        """All of it, for JSON: scores as numbers under their names, their intervals beside them."""
        return {
            "model": {"name": self.subject.name, "version": self.subject.version, "weights": self.subject.weights},
            "source": self.source,
            "pixels": self.pixels,
            "threshold": self.subject.threshold,
            self.unit: self.units,
            **asdict(self.tally.confusion),
            **{name: round(score.estimate, 6) for name, score in self.scores.items()},
            "intervals": {name: [round(score.low, 6), round(score.high, 6)] for name, score in self.scores.items()},
            "not_mapped_pixels": self.tally.not_mapped,
            "not_mapped_landslide_pixels": self.tally.not_mapped_landslide,
            "not_mapped_share": round(self.tally.not_mapped_share, 6),
            "bootstrap": {"level": LEVEL, "drawn": self.unit, "resamples": RESAMPLES, "seed": SEED},
            "notes": list(self.notes),
        }
