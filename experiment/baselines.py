"""What simple models reach on the same parts: the figure that a recurrent model has to beat.

Dimensions: n rows of a part, O regression targets.
"""

import warnings

import numpy as np

from data.batching import Part
from data.dataset import Dataset
from experiment import metrics

# Of the training part: a baseline takes seconds and no more memory than its model.
MOST_ROWS, MOST_VALUES = 10_000, 10_000_000


def flat_rows(part: Part, steps: int, rows: np.ndarray) -> np.ndarray:
    """Return scaled sequences end to end [n, steps * D], cut or filled up with 0."""
    inputs = part.inputs[rows][:, :steps]
    missing = steps - inputs.shape[1]
    return np.pad(inputs, ((0, 0), (0, missing), (0, 0))).reshape(len(rows), -1)


def labelled(part: Part, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scaled readings [S, D] and the targets of every step that has one."""
    known = part.weights[rows] > 0
    return part.inputs[rows][known], part.targets[rows][known]


def baselines(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Fit on the training part, measure on the test part; of every step, each on its own reading."""
    from sklearn.linear_model import LogisticRegression, Ridge

    train, test, known = dataset.train, dataset.test, dataset.test_known
    steps, width = train.inputs.shape[1:]
    most = max(2, min(MOST_ROWS, MOST_VALUES // (steps * width)))
    rows = train.rows[:: -(-len(train) // most)]
    if known.steps is None:
        x, x_test = flat_rows(train, steps, rows), flat_rows(test, steps, test.rows)
        y = train.targets[rows]
    else:
        (x, y), (x_test, _) = labelled(train, rows), labelled(test, test.rows)
    results = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: a baseline is taken as it comes
        if dataset.meaning.task == "classification":
            share = np.bincount(y, minlength=dataset.meaning.output_size) / len(y)
            guesses = {"majority": np.tile(share, (len(x_test), 1))}
            if len(np.unique(y)) > 1:
                model = LogisticRegression(max_iter=200).fit(x, y)
                chances = np.zeros((len(x_test), len(share)))
                chances[:, model.classes_] = model.predict_proba(x_test)
                guesses["logistic regression"] = chances
            for name, guess in guesses.items():
                results[name] = metrics.classification(guess, known.targets)
        else:
            restore = dataset.meaning.scaling.restore
            guesses = {"mean": np.tile(restore(y.mean(axis=0)), (len(x_test), 1))}
            model = Ridge().fit(x, y)
            guesses["ridge"] = restore(model.predict(x_test).reshape(len(x_test), -1))
            if known.last is not None:
                guesses["persistence"] = known.last
            for name, guess in guesses.items():
                results[name] = metrics.regression(guess, known.targets)
    return results
