"""All that calibration fits to images beside thresholds, as one thing that other images can be measured by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msmlp.model.calibration.fitting import fit_policy
from msmlp.model.calibration.settings import Table
from msmlp.model.calibration.temperature import fit_temperatures, tempered
from msmlp.model.policies import StagePolicy, run_policies, stage_policies


@dataclass(frozen=True)
class Fit:
    """The temperature of every exit, and its policy with its parameters."""

    temperatures: tuple[float, ...]
    policies: list[StagePolicy]

    @classmethod
    def of(cls, name: str, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> "Fit":
        """Fit the exit policy `name` to probabilities [N, K, classes] at temperature 1 and labels [N]."""
        temperatures = fit_temperatures(probabilities, labels)
        parameters = fit_policy(name, tempered(probabilities, temperatures), labels)
        return cls(temperatures, stage_policies(name, parameters, probabilities.shape[1]))

    def table(self, probabilities: NDArray[np.float32], labels: NDArray[np.int64], costs: NDArray[np.float64]) -> Table:
        """Scores and correctness of images, these or others; `costs` [K] are the table's."""
        answers, scores = run_policies(self.policies, tempered(probabilities, self.temperatures))
        return Table(np.asarray(scores, dtype=np.float32), answers.argmax(axis=2) == labels[:, None], costs)
