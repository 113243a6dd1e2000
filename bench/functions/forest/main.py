"""forest: means of a table by class, and a random forest that predicts ten rows of it (pandas, scikit-learn)."""

import os
import sys

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

# Imported by services like this one, used by other requests.
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

ROWS, COLUMNS, TREES, PREDICTED = 600, 20, 20, 10


def init(seed):
    values = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS))
    classes = (values.sum(axis=1) > 0).astype(int)
    model = RandomForestClassifier(n_estimators=TREES, random_state=seed % 2**32).fit(values, classes)
    return values, pd.DataFrame(values).assign(kind=classes), model


def handle(state, n):
    values, table, model = state
    first = n % (ROWS - PREDICTED)
    means = table.groupby("kind").mean().to_numpy().sum()
    chances = model.predict_proba(values[first : first + PREDICTED])
    return {"means": round(float(means), 6), "chance": round(float(chances[:, 1].sum()), 6)}


medes_runtime.serve("forest", init, handle)
