"""The server's preprocessing agrees with PIL and ONNX Runtime on a picture of each kind."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


@pytest.fixture
def agreement(monkeypatch):
    pytest.importorskip("skimage", reason="scikit-image has the photographs; install .[models]")
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "vision")
    import agreement

    return agreement


@pytest.fixture
def classifier(agreement):
    models = Path(os.environ.get("TIDEGATE_MODELS", ROOT / "models"))
    if not (models / agreement.MODEL / agreement.VERSION).is_dir():
        pytest.skip(f"no {agreement.MODEL} in {models}; run `make models`, or set TIDEGATE_MODELS")
    return agreement.Classifier(models)


def test_a_picture_of_each_kind_gets_the_same_scores_as_with_pil(agreement, classifier):
    found = [
        agreement.compare(classifier, picture)
        for picture in agreement.corpus(("coffee.png", "chelsea.png"))
    ]
    assert len(found) == 32
    assert agreement.agrees(found), found


def test_one_photograph_gets_nearly_one_answer_in_six_sizes(agreement, classifier):
    best, spread = agreement.spread_of(classifier, agreement.six_sizes())
    assert best == [282]
    assert spread < 0.1
