"""The known explanations of a mismatch; `parity.diagnose` believes none that it has not tried."""

from parity.explanations.arrays import of_arrays
from parity.explanations.change import Change
from parity.explanations.data import of_inputs, of_literals, of_outputs
from parity.explanations.functions import of_functions, of_masks, of_softmax_scale
from parity.explanations.optimizers import of_optimisers
from parity.explanations.structure import in_one_place, of_modules, of_structure

__all__ = [
    "Change",
    "in_one_place",
    "of_arrays",
    "of_functions",
    "of_inputs",
    "of_literals",
    "of_masks",
    "of_modules",
    "of_optimisers",
    "of_outputs",
    "of_softmax_scale",
    "of_structure",
]
