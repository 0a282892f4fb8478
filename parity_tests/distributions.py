"""Cases whose outputs are quantiles, or means and standard deviations, of two targets."""

from dataclasses import dataclass, replace

import numpy as np

from data.scaling import Scaling
from parity_tests.cases import Case
from parity_tests.test_export import questions, units_of
from spec import reference
from spec.config import ModelConfig
from spec.units import LEAST_STD

TARGETS = 2


@dataclass(frozen=True)
class Forecast(Case):
    """A case with another loss; its random head makes quantiles cross."""

    loss: str = "quantile"

    def __str__(self) -> str:
        return f"{super().__str__()}-{self.loss}"

    @property
    def config(self) -> ModelConfig:
        each = 3 if self.loss == "quantile" else 2
        return replace(super().config, loss=self.loss, output_size=TARGETS * each)


FORECASTS = [
    Forecast("gru", ragged=True, loss="quantile"),
    Forecast("gru", ragged=True, loss="gaussian_nll"),
    Forecast("rnn", ragged=True, loss="quantile", every_step=True),
]


def forecast_units(case: Forecast) -> Scaling:
    """Draw means and standard deviations of the inputs and of the two targets."""
    units = units_of(case)
    return replace(
        units, target_mean=units.target_mean[:TARGETS], target_std=units.target_std[:TARGETS]
    )


def forecasts(case: Forecast, params: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Answer by the reference, number by number; also say how many quantiles crossed."""
    units, answers, crossed = forecast_units(case), {}, 0
    params = {name: array.astype(np.float64) for name, array in params.items()}
    for inputs, lengths in questions(case):
        scaled = np.nan_to_num((inputs - units.input_mean) / units.input_std)
        outputs = reference.predict(case.config, params, scaled, lengths).predictions
        rows = []
        for output in outputs.reshape(-1, outputs.shape[-1]):
            row = []
            for target in range(TARGETS):
                mean, std = units.target_mean[target], units.target_std[target]
                if case.loss == "quantile":
                    own = output[3 * target : 3 * target + 3].tolist()
                    crossed += own != sorted(own)
                    row += [value * std + mean for value in sorted(own)]
                else:
                    center, raw = output[2 * target : 2 * target + 2]
                    spread = np.log1p(np.exp(raw)) + LEAST_STD
                    row += [center * std + mean, spread * std]
            rows.append(row)
        answers[str(inputs.shape)] = np.reshape(rows, outputs.shape)
    return answers, crossed
