"""Settings of the classifier, its decisions, their evaluation and the report."""

from __future__ import annotations

from dataclasses import dataclass

from hpcqa.config.fields import setting


@dataclass(frozen=True)
class FitConfig:
    k: int = setting(0, "Neighbours of each class that a score averages over; 0: chosen, from 4 on.", low=0, high=1000)
    score: str = setting(
        "auto",
        "What the neighbours say: the ratio of the distances to good and to bad ones, a vote, or softmax weights. "
        "auto, as 0 for k and pca: chosen by cross-validation over nights, from ratio on, for a gain beyond two "
        "standard errors.",
        choices=("auto", "ratio", "vote", "softmax"),
    )
    metric: str = setting(
        "auto", "How distances are measured; auto: chosen, from euclidean on.", choices=("auto", "euclidean", "cosine")
    )
    pca: int = setting(0, "Principal components kept of each block; 0: chosen, from 32 on.", low=0, high=4096)
    bad_rate: float = setting(
        0.02, "Share of bad exposures expected in production; corrects p_bad.", low=1e-5, high=0.9
    )
    clean: bool = setting(
        True,
        "Of an exposure that is labelled bad as a whole, take only the CCDs that look bad as bad examples; false: all "
        "(an ablation).",
    )
    precision: float = setting(
        0.0,
        "Choose the threshold of the verdict bad so that this share of the exposures called bad is bad; 0: "
        "classify.bad_above.",
        low=0,
        high=0.999,
    )
    recall: float = setting(
        0.0,
        "Choose the threshold of review so that this share of the bad exposures is called bad or reviewed; 0: "
        "classify.review_above.",
        low=0,
        high=1,
    )
    unlisted_good: bool = setting(False, "Take exposures that no list names as good (weakly).")
    folds: int = setting(5, "Cross-validation folds, grouped by night.", low=2, high=50)


@dataclass(frozen=True)
class ClassifyConfig:
    bad_above: float = setting(0.7, "Verdict bad from this p_bad on.", low=0, high=1)
    review_above: float = setting(0.3, "Verdict review from this p_bad on.", low=0, high=1)
    novel_above: float = setting(
        8.0, "Verdict review from this novelty on.", unit="scatter of the good exposures", low=0, high=1e6
    )
    review: int = setting(0, "Send at most so many exposures to review; 0: no limit.", low=0)
    device: str = setting("cpu", "Where distances are computed.", choices=("cpu", "cuda"), output=False)
    index: str = setting(
        "exact",
        "How neighbours are found: exact, or by faiss's cells for millions of references (its recall is logged).",
        choices=("exact", "faiss"),
    )


@dataclass(frozen=True)
class EvaluateConfig:
    bootstrap: int = setting(500, "Bootstrap samples over nights for intervals.", low=10, high=100000)
    holdout: float = setting(
        0.3, "Share of the labelled nights kept out of fit, where no truth table is given.", low=0, high=0.9
    )


@dataclass(frozen=True)
class ReportConfig:
    exposures: int = setting(60, "Exposures shown with pictures.", low=0, high=5000)
