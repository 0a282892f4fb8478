"""Quantiles, and means with standard deviations: exported programs answer as `experiment.answers`."""

from importlib import import_module

import numpy as np
import pytest

from data.dataset import Meaning
from data.sequences import Layout
from experiment.answers import answers
from experiment.exports import MAKERS
from parity_tests.compare import BOUND, assert_same
from parity_tests.distributions import FORECASTS, forecast_units, forecasts
from parity_tests.test_export import PROGRAMS, questions
from spec import reference


@pytest.mark.parametrize("case", FORECASTS, ids=str)
@pytest.mark.parametrize("format", PROGRAMS)
def test_program_answers_in_order_and_in_the_unit_of_the_data(format, case):
    maker = import_module(MAKERS[format][0])
    units = forecast_units(case)
    content = maker.export(case.config, case.params, "float64", units, format, "{}")
    found = {str(x.shape): maker.run(content, format, x, n) for x, n in questions(case)}
    expected, crossed = forecasts(case, case.params)
    assert crossed or case.loss != "quantile"  # else sorting is not tested
    assert_same(found, expected, BOUND)


@pytest.mark.parametrize("case", FORECASTS, ids=str)
def test_predict_answers_the_same(case):
    units = forecast_units(case)
    layout = Layout(("a", "b"), ("y", "z"), None, True, None)
    meaning = Meaning("regression", (), layout, units)
    found = {}
    for inputs, lengths in questions(case):
        scaled = np.nan_to_num((inputs - units.input_mean) / units.input_std)
        outputs = reference.predict(case.config, case.params, scaled, lengths).predictions
        found[str(inputs.shape)] = answers(case.config, meaning, outputs)
    assert_same(found, forecasts(case, case.params)[0], BOUND)
