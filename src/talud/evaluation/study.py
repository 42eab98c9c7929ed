"""The published study that the pipeline implements: its numbers, as printed there.

Vega and Hidalgo, "Evaluation of U-Net transfer learning model for semantic segmentation of landslides in the
Colombian tropical mountain region". Training basin La Argelia (Carmen de Atrato, Chocó), inference basin
La Liboriana (Salgar, Antioquia; about 160 shallow landslides on 18 May 2015), layers at 12.5 m.
"""

from __future__ import annotations

from dataclasses import dataclass

from talud.metrics import Confusion

AUTHORS = "Vega and Hidalgo"
TITLE = (
    "Evaluation of U-Net transfer learning model for semantic segmentation of landslides "
    "in the Colombian tropical mountain region"
)
TRAINING_BASIN = "La Argelia"
INFERENCE_BASIN = "La Liboriana"
TRIALS = 54  # Table 1: filters 16, 32, 64 × six learning rates × batch size 16, 32, 64; for each image model
EPOCHS = 150


@dataclass(frozen=True)
class ImageModel:
    """One of the study's image models.

    Attributes:
        bands: what its layers are.
        filters: of the best configuration, like the two that follow (Table 2).
        precision: in the training zone, like the two that follow (Table 3, two decimals as printed).
        inference: pixels of the inference zone (Table 4).
    """

    bands: str
    filters: int
    learning_rate: float
    batch_size: int
    precision: float
    recall: float
    f1: float
    inference: Confusion

    @property
    def fall(self) -> float:
        """The part of the training zone's F1 that the inference zone loses; the study does not print it."""
        return 1 - self.inference.f1 / self.f1


IMAGE_MODELS: dict[str, ImageModel] = {
    "3band": ImageModel("RGB", 64, 5e-4, 16, 0.67, 0.73, 0.70, Confusion(1258, 1113, 2021, 38441)),
    "5band": ImageModel("RGB, slope, curvature", 64, 5e-4, 16, 0.70, 0.65, 0.67, Confusion(873, 683, 2406, 38871)),
    "7band": ImageModel(
        "RGB, slope, curvature, VV before and after", 32, 5e-4, 32, 0.65, 0.75, 0.70, Confusion(922, 682, 2357, 38872)
    ),
}
