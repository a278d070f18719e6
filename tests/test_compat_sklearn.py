"""Pipelines of scikit-learn, converted by skl2onnx, give scikit-learn's labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits, make_classification, make_regression
from sklearn.ensemble import (
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, RobustScaler, StandardScaler

import whet

MARGIN = 1e-5
"""Where scikit-learn itself prefers a label by less than this, single precision may prefer another."""

OPSETS = {"": 18, "ai.onnx.ml": 3}

WORDS = {
    "sport": "goal match team player ball league coach win score final stadium race",
    "food": "salt bread soup bake cook taste oven sugar cheese fresh pepper plate",
    "code": "loop bug compile array stack memory thread type class return branch test",
}


def documents(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts of words that lean towards their label, and the labels."""
    rng = np.random.default_rng(seed)
    vocabulary = [w for words in WORDS.values() for w in words.split()]
    texts, labels = [], []
    for _ in range(count):
        label = str(rng.choice(list(WORDS)))
        own = rng.choice(WORDS[label].split(), int(rng.integers(2, 8)))
        other = rng.choice(vocabulary, int(rng.integers(1, 6)))
        words = [w.capitalize() if rng.random() < 0.2 else w for w in (*own, *other)]
        texts.append(", ".join(map(str, rng.permutation(words))) + ".")
        labels.append(label)
    return texts, labels


def compare(pipeline: Any, converted: Any, feed: dict[str, Any], given: Any, *, least: int) -> None:
    """Labels where scikit-learn's margin exceeds `MARGIN`, and probabilities to 1e-4."""
    for level in (whet.GraphOptimizationLevel.ORT_DISABLE_ALL, whet.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = whet.SessionOptions()
        options.graph_optimization_level = level
        made = whet.InferenceSession(converted.SerializeToString(), options, providers=["CPUExecutionProvider"])
        labels, probabilities = made.run(None, feed)
        right = pipeline.predict_proba(given)
        two = np.sort(right, axis=1)[:, -2:]
        sure = two[:, 1] - two[:, 0] > MARGIN
        assert sure.sum() >= least
        np.testing.assert_array_equal(np.asarray(labels)[sure], pipeline.predict(given)[sure])
        if isinstance(probabilities, list):
            probabilities = np.array([[row[c] for c in pipeline.classes_] for row in probabilities])
        np.testing.assert_allclose(probabilities, right, atol=1e-4)


CLASSIFIERS = {
    "logistic regression": lambda: LogisticRegression(max_iter=300),
    "random forest": lambda: RandomForestClassifier(30, random_state=0),
    "gradient boosting": lambda: GradientBoostingClassifier(n_estimators=8, max_depth=3, random_state=0),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("zipmap", [True, False])
def test_classifiers_of_digits(name: str, zipmap: bool) -> None:
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    # No scaler before trees here: pixels are whole numbers, a tree's thresholds lie half way between two, and scaled
    # in single precision a pixel that lies on a threshold falls to either side.
    steps = [StandardScaler()] if name == "logistic regression" else []
    pipeline = make_pipeline(*steps, CLASSIFIERS[name]()).fit(x[:600], y[:600])
    converted = to_onnx(pipeline, x[:1], options={"zipmap": zipmap}, target_opset=OPSETS)
    compare(pipeline, converted, {converted.graph.input[0].name: x[600:]}, x[600:], least=1000)


@pytest.mark.parametrize("scaler", [StandardScaler, MinMaxScaler, RobustScaler])
@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 4])
def test_scaled_measurements_with_named_classes(name: str, scaler: Any, classes: int) -> None:
    x, y = make_classification(400, 10, n_informative=6, n_classes=classes, random_state=classes)
    x, labels = x.astype(np.float32), np.array(["ant", "bee", "cat", "dog"])[y]
    pipeline = make_pipeline(scaler(), CLASSIFIERS[name]()).fit(x[::2], labels[::2])
    converted = to_onnx(pipeline, x[:1], target_opset=OPSETS)
    compare(pipeline, converted, {converted.graph.input[0].name: x[1::2]}, x[1::2], least=150)


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2)])
def test_texts_through_tfidf(ngrams: tuple[int, int]) -> None:
    texts, labels = documents(300, 1)
    steps = make_pipeline(TfidfVectorizer(ngram_range=ngrams), LogisticRegression(max_iter=300)).fit(texts, labels)
    converted = to_onnx(
        steps,
        initial_types=[("text", StringTensorType([None, 1]))],
        options={TfidfVectorizer: {"tokenexp": "[a-zA-Z]+"}},
        target_opset=OPSETS,
    )
    more, _ = documents(200, 2)
    compare(steps, converted, {"text": np.array(more)[:, None]}, more, least=190)


def test_columns_of_several_kinds() -> None:
    rng = np.random.default_rng(4)
    numbers = np.stack([rng.integers(18, 80, 200), rng.random(200) * 9], axis=1).astype(np.float32)
    cities = rng.choice(["ulm", "bonn", "kiel"], (200, 1))
    labels = numbers.prod(axis=1) + (cities[:, 0] == "ulm") * 99 > 250
    table = np.concatenate([numbers.astype(object), cities.astype(object)], axis=1)
    columns = ColumnTransformer([("scale", StandardScaler(), [0, 1]), ("kinds", OneHotEncoder(), [2])])
    pipeline = Pipeline([("columns", columns), ("model", LogisticRegression())]).fit(table[:120], labels[:120])
    types = [("numbers", FloatTensorType([None, 2])), ("city", StringTensorType([None, 1]))]
    converted = to_onnx(pipeline, initial_types=types, target_opset=OPSETS)
    compare(pipeline, converted, {"numbers": numbers[120:], "city": cities[120:]}, table[120:], least=70)


def test_counts_and_a_regression_forest() -> None:
    texts, _ = documents(80, 5)
    counts = CountVectorizer().fit(texts)
    converted = to_onnx(counts, initial_types=[("text", StringTensorType([None]))], target_opset=OPSETS)
    (found,) = whet.InferenceSession(converted.SerializeToString()).run(None, {"text": np.array(texts)})
    np.testing.assert_array_equal(found, counts.transform(texts).toarray())
    x, y = make_regression(200, 6, random_state=1)
    x = x.astype(np.float32)
    forest = RandomForestRegressor(20, random_state=0).fit(x, y)
    converted = to_onnx(forest, x[:1], target_opset=OPSETS)
    (found,) = whet.InferenceSession(converted.SerializeToString()).run(None, {converted.graph.input[0].name: x})
    np.testing.assert_allclose(found[:, 0], forest.predict(x), rtol=1e-4, atol=1e-2)
