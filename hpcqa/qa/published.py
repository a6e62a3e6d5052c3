"""The published recipe, for comparison: one vector a CCD, min-max scaled, 15 components, 7 neighbours, unanimous.

Source: Luo et al. 2025 (arXiv:2507.12784). There a label on an exposure counts for each of its CCDs, distances are
city-block, and an exposure is selected from three unanimously bad CCDs on. Here distances are Euclidean.
"""

from __future__ import annotations

import numpy as np

from hpcqa.qa import knn
from hpcqa.qa.blocks import Pca, Raw, per_exposure
from hpcqa.qa.learn import BAD, Examples
from hpcqa.qa.scores import vote

COMPONENTS, NEIGHBOURS, UNANIMOUS = 15, 7, 0.9
VIEW = "context"


def published_scores(examples: Examples, raw: Raw) -> np.ndarray:
    """Score of exposures: unanimously bad CCDs, and the mean vote among equals: float64 (exposure,).

    Args:
        examples: labelled exposures.
        raw: exposures to score.
    """
    owner = examples.exposure_of_ccd()
    labelled = (examples.any_bad() | (examples.whole >= 0))[owner]
    bad = ((examples.whole == BAD) | (examples.share_bad() > 0))[owner][labelled]
    vectors = examples.raw.ccd[VIEW][labelled]
    low, high = vectors.min(axis=0), vectors.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    projection = Pca.fit((vectors - low) / span, (vectors - low) / span, COMPONENTS)
    references = projection.apply((vectors - low) / span)
    queries = projection.apply((raw.ccd[VIEW] - low) / span)
    votes = vote(knn.nearest(queries, references, NEIGHBOURS), bad)
    unanimous = per_exposure((votes > UNANIMOUS).astype(np.float64)[:, None], raw.starts, ("mean",))[:, 0]
    return np.asarray(unanimous * raw.sizes() + per_exposure(votes[:, None], raw.starts, ("mean",))[:, 0])
