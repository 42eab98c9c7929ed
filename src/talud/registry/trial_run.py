"""Open run of a trial in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.utils import mlflow_tags

from talud.errors import RegistryError
from talud.registry.connection import metrics, translated_errors

# MLflow's limit for a request.
METRICS_PER_REQUEST = 1000


@dataclass(frozen=True)
class TrialRun:
    """Open run of a trial."""

    client: MlflowClient
    run_id: str

    def log_epochs(self, epochs: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        """Log the metrics of epochs as points of learning curves.

        Logging an epoch again changes nothing. Keras's `val_f1` becomes `validation/f1`, and `f1` becomes
        `training/f1`: the UI groups curves by these prefixes, and the bare names are used for scores.

        Args:
            epochs: number of each epoch, counted from 1, its end in milliseconds since 1970, and its metrics.
        """
        points = [
            Metric(_curve(name), float(value), time, number)
            for number, time, metrics in epochs
            for name, value in metrics.items()
        ]
        with translated_errors():
            for first in range(0, len(points), METRICS_PER_REQUEST):
                self.client.log_batch(self.run_id, points[first : first + METRICS_PER_REQUEST])

    @property
    def logged_epochs(self) -> int:
        """Last epoch with logged metrics, or 0."""
        with translated_errors():
            curve = self.client.get_metric_history(self.run_id, _curve("loss"))
        return max((point.step for point in curve), default=0)

    def log_scores(self, scores: Mapping[str, float]) -> None:
        """Log the scores of the trial on the validation blocks.

        Values are rounded to 6 decimals, seconds to one. Unchanged scores are not logged again.
        """
        rounded = {name: round(float(value), 1 if name == "seconds" else 6) for name, value in scores.items()}
        with translated_errors():
            present = self.client.get_run(self.run_id).data.metrics
            changed = {name: value for name, value in rounded.items() if present.get(name) != value}
            if changed:
                self.client.log_batch(self.run_id, metrics(changed))

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Log the training data as an MLflow input once.

        Args:
            name: name of the data in the UI.
            digest: data version, an MD5 in hex; MLflow keeps 36 characters.
            source: path of the data, relative to the project's root.
        """
        dataset = Dataset(name, digest, source_type="local", source=json.dumps({"uri": source}))
        context = [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "training")]
        with translated_errors():
            inputs = self.client.get_run(self.run_id).inputs
        if inputs and inputs.dataset_inputs:
            return
        try:
            self._log_input(DatasetInput(dataset, context))
        except RegistryError as error:
            # Another trial has logged the same data concurrently; databases word this error differently.
            if "INSERT INTO datasets" not in str(error):
                raise
            self._log_input(DatasetInput(dataset, context))

    def _log_input(self, data: DatasetInput) -> None:
        with translated_errors():
            self.client.log_inputs(self.run_id, [data])


def _curve(name: str) -> str:
    return f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else f"training/{name}"
