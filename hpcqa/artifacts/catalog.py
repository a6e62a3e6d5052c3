"""Every artifact's schema, in the order of the flow. One key everywhere: (expnum, ccdnum)."""

from __future__ import annotations

from hpcqa.artifacts.schema import Column, Schema

EXPNUM = Column("expnum", "int64", "Exposure number; date-style numbers of 12 digits occur.")
CCDNUM = Column("ccdnum", "int32", "Number of the CCD in its camera.")

MANIFEST = Schema(
    "manifest",
    1,
    (
        EXPNUM,
        CCDNUM,
        Column("ccdname", "str", "Name of the CCD, e.g. N26."),
        Column("camera", "str", "Camera as the table names it, lower case."),
        Column("band", "str", "Band, e.g. g."),
        Column("mjd_obs", "float64", "Start of the exposure.", unit="d"),
        Column("night", "int32", "Local night as YYYYMMDD; groups exposures in splits."),
        Column("exptime", "float32", "Exposure time.", unit="s"),
        Column("ra", "float64", "Centre of the CCD.", unit="deg"),
        Column("dec", "float64", "Centre of the CCD.", unit="deg"),
        Column("ebv", "float32", "E(B-V); NaN where the table has none.", unit="mag"),
        Column("width", "int32", "Columns of the image as the table says; 0 unknown.", unit="px"),
        Column("height", "int32", "Rows of the image as the table says; 0 unknown.", unit="px"),
        Column("zpt", "float32", "Zero point of the exposure for 1 ADU/s; NaN unknown.", unit="mag"),
        Column("ccdzpt", "float32", "Zero point of the CCD for 1 ADU/s; NaN unknown.", unit="mag"),
        Column("fwhm", "float32", "FWHM as the table says; NaN unknown.", unit="px"),
        Column("ccd_cuts", "int64", "legacypipe's ccd_cuts as the table says; 0 where it has none."),
        Column("plver", "str", "Version of the pipeline that processed the image."),
        Column("plprocid", "str", "Processing id."),
        Column("object", "str", "Target as the table says."),
        Column("image_path", "str", "Absolute path of the image file; empty if not found."),
        Column("image_hdu", "int32", "FITS extension of the image."),
        Column("table", "str", "Table that the row came from."),
        Column("table_row", "int64", "Row in that table."),
        Column("cuts", "int64", "Why the row is not processed; bits of survey/cuts.py; 0: it is."),
        Column("cut_detail", "str", "What was found, in words, for rows that are cut."),
        Column("shard", "int32", "Number of the shard file that holds the exposure; -1 for rows that are cut."),
    ),
)

LABELS = Schema(
    "labels",
    1,
    (
        EXPNUM,
        Column("ccdnum", "int32", "CCD, or -1 for the whole exposure."),
        Column("bad", "bool", "True bad, False good."),
        Column("reasons", "int64", "Bits of hpcqa.reasons; bad always has at least one, good has none."),
        Column("severity", "float32", "Severity of a simulated defect; NaN unknown."),
        Column("source", "str", "List, and section or reviewer, that says so."),
        Column("line", "int32", "Line of that list."),
        Column("text", "str", "What the list says, unparsed."),
    ),
)

SHARD = Schema(
    "shard",
    1,
    (
        Column("expnum", "int64", "Exposure number.", dims=("ccd",)),
        Column("ccdnum", "int32", "CCD number.", dims=("ccd",)),
        Column("failed", "int64", "Why the CCD has no views; bits of pixels/failures.py; 0: it has.", dims=("ccd",)),
        Column(
            "wrong_sum",
            "bool",
            "Whether the CCD has views although its image, or its mask, contradicts its DATASUM.",
            dims=("ccd",),
            optional=True,
        ),
        Column("bin", "int32", "Native pixels along a side of one context pixel; 0 failed.", unit="px", dims=("ccd",)),
        Column("background_bin", "int32", "Native pixels along a side of a background cell.", unit="px", dims=("ccd",)),
        Column(
            "context", "float16", "Context view, stretched; 0 unknown.", unit="asinh(sigma)", dims=("ccd", "cy", "cx")
        ),
        Column(
            "background",
            "float16",
            "Cells without sources, less the exposure's sky, over it; NaN unknown.",
            unit="sky",
            dims=("ccd", "by", "bx"),
        ),
        Column(
            "background_noise",
            "float16",
            "Expected noise of each cell; NaN unknown.",
            unit="sky",
            dims=("ccd", "by", "bx"),
        ),
        Column("detail", "float16", "Star and sky stamps, stretched.", unit="asinh(sigma)", dims=("ccd", "dy", "dx")),
        Column(
            "numbers",
            "float32",
            "Measured numbers; names and units in the attributes; NaN unknown.",
            dims=("ccd", "number"),
        ),
        Column("exposure", "int64", "The exposures of this shard, in order.", dims=("exposure",)),
        Column("exposure_band", "str", "Band of each exposure.", dims=("exposure",)),
        Column("exposure_sky", "float32", "What its backgrounds are relative to.", unit="ADU", dims=("exposure",)),
    ),
    key=("expnum", "ccdnum"),
)

SHARD_INDEX = Schema(
    "shard_index",
    1,
    (
        Column("shard", "str", "File name of each shard.", dims=("shard",)),
        Column("content", "str", "Content digest of the shard.", dims=("shard",)),
        Column("size", "int64", "Size of the file.", unit="B", dims=("shard",)),
        Column("modified", "int64", "When the file was last written.", unit="ns", dims=("shard",)),
        Column("num_ccds", "int64", "CCD rows of the shard.", dims=("shard",)),
        Column("num_exposures", "int64", "Exposures of the shard.", dims=("shard",)),
        Column(
            "offset",
            "int64",
            "Where the bytes of each dataset (attribute arrays) begin in the file; -1 none.",
            unit="B",
            dims=("shard", "array"),
        ),
        Column("expnum", "int64", "Exposure number; the shards' rows one after another.", dims=("ccd",)),
        Column("ccdnum", "int32", "CCD number.", dims=("ccd",)),
        Column("failed", "int64", "As in the shard.", dims=("ccd",)),
        Column("background_bin", "int32", "As in the shard.", unit="px", dims=("ccd",)),
        Column("exposure", "int64", "The exposures of all shards, in order.", dims=("exposure",)),
        Column("exposure_band", "str", "Band of each exposure.", dims=("exposure",)),
    ),
)

CALIBRATION = Schema(
    "calibration",
    1,
    (
        Column("ccdnum", "int32", "CCD number.", dims=("pattern",)),
        Column("band", "str", "Band.", dims=("pattern",)),
        Column("num_exposures", "int32", "Exposures behind the pattern; 0: no pattern.", dims=("pattern",)),
        Column(
            "pooled", "bool", "Whether the pattern is of all bands together, for want of exposures.", dims=("pattern",)
        ),
        Column(
            "background", "float32", "Weighted median of the background maps.", unit="sky", dims=("pattern", "by", "bx")
        ),
        Column("number_median", "float32", "Median of each measured number.", dims=("pattern", "number")),
        Column("number_scatter", "float32", "1.4826 MAD of each measured number.", dims=("pattern", "number")),
    ),
    key=("ccdnum", "band"),
)

EMBEDDING = Schema(
    "embedding",
    1,
    (
        Column("expnum", "int64", "Exposure number.", dims=("ccd",)),
        Column("ccdnum", "int32", "CCD number.", dims=("ccd",)),
        Column("failed", "int64", "As in the shard.", dims=("ccd",)),
        Column("numbers", "float32", "Measured numbers, as in the shard.", dims=("ccd", "number")),
        Column("context", "float32", "Embedding of the context view.", dims=("ccd", "embedding"), optional=True),
        Column("background", "float32", "Embedding of the background map.", dims=("ccd", "embedding"), optional=True),
        Column("detail", "float32", "Embedding of the detail view.", dims=("ccd", "embedding"), optional=True),
        Column("defects", "float32", "Answers of the injected-defect heads.", dims=("ccd", "defect"), optional=True),
        Column(
            "where",
            "float16",
            "Mean deviation of the background from the CCD's usual one, in a coarse grid over the background view; NaN "
            "unknown.",
            unit="sigma of a cell",
            dims=("ccd", "wy", "wx"),
            optional=True,
        ),
        Column(
            "background_bin",
            "int32",
            "Native pixels along a side of a cell of the background view.",
            unit="px",
            dims=("ccd",),
            optional=True,
        ),
        Column("exposure", "int64", "Exposures.", dims=("exposure",)),
        Column("focal_plane", "float32", "Of the focal plane.", dims=("exposure", "embedding"), optional=True),
        Column(
            "exposure_defects",
            "float32",
            "Answers for the focal plane.",
            dims=("exposure", "exposure_defect"),
            optional=True,
        ),
    ),
    key=("expnum", "ccdnum"),
)


def _pictured(view: str, axes: str) -> tuple[Column, Column]:
    """A view and the attention over its patches; `axes` begins the names of its dimensions."""
    pixels, patches = (f"{axes}y", f"{axes}x"), (f"{axes}py", f"{axes}px")
    meaning = "Attention of CLS over its patches in the last block, by head."
    return (
        Column(view, "float16", f"The {view} view.", unit="asinh(sigma)", dims=("picture", *pixels), optional=True),
        Column(f"{view}_attention", "float32", meaning, dims=("picture", "head", *patches), optional=True),
    )


ATTENTION = Schema(
    "attention",
    1,
    (
        Column("expnum", "int64", "Exposure number.", dims=("picture",)),
        Column("ccdnum", "int32", "CCD number.", dims=("picture",)),
        Column(
            "suspicion", "float32", "Largest log-odds of an injected kind of defect; NaN unknown.", dims=("picture",)
        ),
        *_pictured("context", "c"),
        *_pictured("background", "b"),
        *_pictured("detail", "d"),
    ),
    key=("expnum", "ccdnum"),
)

DECISIONS = Schema(
    "decisions",
    1,
    (
        EXPNUM,
        Column("camera", "str", "Camera."),
        Column("band", "str", "Band."),
        Column("night", "int32", "Local night as YYYYMMDD."),
        Column("verdict", "str", "good, bad, review or undecided."),
        Column("p_bad", "float32", "Calibrated probability that the exposure is bad; NaN if undecided."),
        Column("reasons", "str", "Reasons, comma-separated, most probable first."),
        Column(
            "novelty", "float32", "Distance to the labelled-good exposures in units of their own scatter; NaN unknown."
        ),
        Column("why", "str", "Why undecided or sent to review, in words."),
        Column("extent", "str", "Of what is bad: exposure, or ccds (those that ccd_decisions calls bad); else empty."),
        Column("num_ccds", "int32", "CCDs in the tables."),
        Column("num_decided", "int32", "CCDs that were seen by the network."),
        Column("num_bad_ccds", "int32", "CCDs that are bad by themselves."),
        Column("worst_ccds", "str", "Up to five worst CCDs with their scores."),
        Column("nearest", "str", "The five nearest labelled exposures."),
        Column("evidence", "str", "Measured numbers that stand out most."),
        Column("plver", "str", "Version of the processing that was decided on."),
        Column("plprocid", "str", "Processing id that was decided on."),
    ),
    key=("expnum",),
)

CCD_DECISIONS = Schema(
    "ccd_decisions",
    1,
    (
        EXPNUM,
        CCDNUM,
        Column("ccdname", "str", "Name of the CCD."),
        Column("verdict", "str", "good, bad, review or undecided."),
        Column("p_bad", "float32", "Calibrated probability that this CCD is bad; NaN if undecided."),
        Column("reasons", "str", "Reasons, comma-separated, most probable first."),
        Column("novelty", "float32", "Distance to the good CCDs in units of their own scatter; NaN unknown."),
        Column("why", "str", "Why undecided, in words."),
        Column(
            "where",
            "str",
            "Where a suspicious CCD's background deviates most: columns x and rows y from 1, in sigma; else empty.",
        ),
        Column("table", "str", "Table that the row came from."),
        Column("table_row", "int64", "Row in that table."),
    ),
)

CLASSIFIER = Schema(
    "classifier",
    2,
    (
        # Settings, names and scalers are attributes; the reference set is what the neighbours are looked up in.
        Column("ccd_expnum", "int64", "Exposure of each reference CCD.", dims=("reference_ccd",)),
        Column("ccd_ccdnum", "int32", "CCD number of each reference CCD.", dims=("reference_ccd",)),
        Column("ccd_bad", "bool", "Bad by itself.", dims=("reference_ccd",)),
        Column("ccd_reasons", "int64", "Reasons.", dims=("reference_ccd",)),
        Column("ccd_fold", "int32", "Fold of nights of its exposure.", dims=("reference_ccd",)),
        Column(
            "ccd_features",
            "float32",
            "Scaled and projected blocks, side by side.",
            dims=("reference_ccd", "ccd_feature"),
        ),
        Column("expnum", "int64", "Each reference exposure.", dims=("reference",)),
        Column("bad", "bool", "Bad as a whole.", dims=("reference",)),
        Column("reasons", "int64", "Reasons.", dims=("reference",)),
        Column("fold", "int32", "Fold of nights, left out when one of its exposures is scored.", dims=("reference",)),
        Column("features", "float32", "Scaled and projected blocks, side by side.", dims=("reference", "feature")),
        Column("labelled_expnum", "int64", "Every labelled exposure, sorted.", dims=("labelled",)),
        Column("labelled_fold", "int32", "Its fold.", dims=("labelled",)),
        Column("labelled_bad", "bool", "Bad as a whole or in a CCD.", dims=("labelled",)),
        Column("parameters", "float64", "Scales, projections and weights; see the attribute index.", dims=("value",)),
    ),
)
