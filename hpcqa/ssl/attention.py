"""Where the trained network looks: the attention of the last block's CLS token over the patches of a few CCDs.

Half of the CCDs are those that the network suspects most of a defect, half are the most ordinary ones, out of a sample
spread over the survey. The file is for people (the report shows it); nothing is decided by it.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError
from hpcqa.ssl.encode import as_images, autocast, defect_answers
from hpcqa.ssl.feed import Cutouts
from hpcqa.ssl.vit import Block, VisionTransformer

logger = logging.getLogger(__name__)

VIEWS = ("context", "background", "detail")
SAMPLE, SHOWN, BATCH = 192, 6, 32


@torch.inference_mode()
def attention(model: VisionTransformer, images: Tensor, view: str, precision: str = "auto") -> Tensor:
    """Attention of CLS over the patches in the last block.

    Args:
        model: in evaluation mode.
        images: float32 (B, C, H, W).

    Returns:
        float32 (B, heads, rows, columns) of the patches' grid; what is left to 1 goes to CLS and the registers.

    Source: as pictured in Caron et al. 2021 (arXiv:2104.14294) figure 1.
    """
    with autocast(images.device, precision):
        x, grid = model.enter(images, view)
        for block in model.blocks[:-1]:
            x = block(x)
    last = model.blocks[-1]
    assert isinstance(last, Block)
    heads = last.attn.heads
    batch, length, dim = x.shape
    q, k, _ = last.attn.qkv(last.norm1(x.float())).view(batch, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    weights = (q[:, :, :1] @ k.transpose(-1, -2) * (dim // heads) ** -0.5).softmax(-1)
    found: Tensor = weights[:, :, 0, length - grid[0] * grid[1] :].reshape(batch, heads, *grid)
    return found


def suspicion(model: VisionTransformer, cutouts: Cutouts, rows: np.ndarray, config: Config) -> np.ndarray:
    """The largest log-odds of any injected kind of defect in any view that has a head: float32 (row,); NaN for none."""
    highest = np.full(len(rows), np.nan, np.float32)
    for view in (view for view in VIEWS if view in model.defects):
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            images = _images(model, cutouts, view, rows[part])
            found = defect_answers(model, images, view, config.ssl.precision).amax(1).cpu().numpy()
            highest[part] = np.fmax(highest[part], found)
    return highest


def choose(log_odds: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` CCDs to show: the most suspicious first, then those nearest the median; all if NaN."""
    order = np.argsort(-np.nan_to_num(log_odds, nan=-np.inf), kind="stable")
    worst = order[: count - count // 2]
    rest = order[len(worst) :]
    ordinary = rest[np.argsort(np.abs(np.arange(len(rest)) - (len(rest) - 1) / 2), kind="stable")]
    return np.concatenate([worst, ordinary[: count // 2]])


def _images(model: VisionTransformer, cutouts: Cutouts, view: str, rows: np.ndarray) -> Tensor:
    # Readers take rows in ascending order best; a sample of the survey already is.
    return as_images(cutouts.batch(view, rows), next(model.parameters()).device)


def look(model: VisionTransformer, cutouts: Cutouts, config: Config) -> dict[str, np.ndarray]:
    """The columns of ATTENTION for a few CCDs of the survey."""
    usable = np.flatnonzero(np.asarray(cutouts.failed) == 0)
    sample = usable[np.unique(np.linspace(0, len(usable) - 1, min(SAMPLE, len(usable))).astype(int))]
    log_odds = suspicion(model, cutouts, sample, config)
    chosen = choose(log_odds, min(SHOWN, len(sample)))
    rows = sample[chosen]
    columns = {
        "expnum": np.asarray(cutouts.expnum)[rows],
        "ccdnum": np.asarray(cutouts.ccdnum)[rows],
        "suspicion": log_odds[chosen],
    }
    for view in (view for view in VIEWS if view in config.ssl.views):
        pieces = [_images(model, cutouts, view, rows[place : place + 1]) for place in range(len(rows))]
        images = torch.cat(pieces)
        columns[view] = images[:, 0].cpu().numpy().astype(np.float16)
        columns[f"{view}_attention"] = attention(model, images, view, config.ssl.precision).cpu().numpy()
    return columns


def write(config: Config, folder: RunFolder, model: VisionTransformer, content: str, cutouts: Cutouts) -> None:
    """Write RUN/attention.h5; shards that cannot be read leave the run without it, which costs only a picture.

    Args:
        model: the trained network, in evaluation mode.
        content: its content digest.
    """
    try:
        columns = look(model, cutouts, config)
    except DataError as problem:
        logger.warning("pretrain: no picture of attention: %s", problem)
        folder.output("attention").unlink(missing_ok=True)
        return
    parents = {folder.relative(folder.output("backbone")): content}
    store.write_arrays(
        folder.output("attention"), catalog.ATTENTION, columns, Provenance(stage_digest(config, "pretrain"), parents)
    )
