"""Finds the landmarks of the one face that each image shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from emocap_pretrain.bulk.compute import Advance, PartComputation, Work, computed_part
from emocap_pretrain.bulk.scorers import Columns, Field, vector_field
from emocap_pretrain.faces.mediapipe_program import POINTS
from emocap_pretrain.faces.processes import ImageProcesses, program
from emocap_pretrain.inference.embedder import Crop


class LandmarkScorer(ImageProcesses[Float32[np.ndarray, " answer"]]):
    """Implements `bulk.scorers.Scorer`: the columns `landmarks`, `passes` and `spread` (`mediapipe_program.py`)."""

    def __init__(self, command: Sequence[str], processes: int) -> None:
        """Starts the processes (`ImageProcesses`)."""
        super().__init__(command, _mesh, processes)

    @property
    def fields(self) -> Sequence[Field]:
        return [
            vector_field("landmarks", 3 * POINTS),
            pa.field("passes", pa.int32()),
            pa.field("spread", pa.float32()),
        ]

    def columns(self, crops: Sequence[Crop]) -> Columns:
        answers = np.stack(self.ask(crops))
        return {"landmarks": answers[:, 2:], "passes": answers[:, 0].astype(np.int32), "spread": answers[:, 1]}


def _mesh(take: Callable[[int], bytes]) -> Float32[np.ndarray, " answer"]:
    return np.frombuffer(take(4 * (2 + 3 * POINTS)), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LandmarkComputation(PartComputation):
    """Computes parts of landmarks.

    Attributes:
        processes: Number of processes that find landmarks, each with one thread.
    """

    processes: int

    def scorer(self) -> LandmarkScorer:
        """Starts the processes; the environment is made first if there is none.

        Raises:
            ConfigError: If the environment cannot be made (`IsolatedEnvironment.python`).
            DataError: If a process ends at its start.
        """
        return LandmarkScorer(program("mesh"), self.processes)

    def started(self) -> Callable[[Work], Advance]:
        """Starts the processes, and returns the function that computes one part (`map_items`)."""
        return partial(computed_part, self, self.scorer())
