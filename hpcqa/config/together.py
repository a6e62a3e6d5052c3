"""What settings must be to each other: said before any work starts, not by the stage that stumbles over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcqa.errors import ConfigError

if TYPE_CHECKING:
    from hpcqa.config import Config, ModelConfig, ViewsConfig
    from hpcqa.config.ssl import SslConfig

PATCH_OF = {
    "context": "patch",
    "background": "patch_background",
    "detail": "patch",
    "focal_plane": "patch_focal_plane",
}


def check_together(config: Config) -> None:
    """Compare settings with each other.

    Raises:
        ConfigError: two of them contradict each other; names both.
    """
    _check_views(config)
    check_mix(config.ssl)
    manifest, classify = config.manifest, config.classify
    if 0 < manifest.last_mjd < manifest.first_mjd:
        raise ConfigError(
            f"manifest.last_mjd={manifest.last_mjd:g}: expected no less than manifest.first_mjd={manifest.first_mjd:g}."
        )
    if classify.review_above > classify.bad_above:
        raise ConfigError(
            f"classify.review_above={classify.review_above:g}: expected at most classify.bad_above="
            f"{classify.bad_above:g}, above which an exposure is bad."
        )


def check_mix(ssl: SslConfig) -> None:
    """ConfigError if there are no views to train on, or views without a share of the images."""
    if not ssl.views:
        raise ConfigError("ssl.views=[]: expected at least one view.")
    if len(ssl.mix) < len(ssl.views):
        raise ConfigError(f"ssl.mix={ssl.mix}: expected one share for each of ssl.views={ssl.views}.")


def patched(view: str, model: ModelConfig, views: ViewsConfig) -> tuple[int, int, int]:
    """Rows and columns of a view, and the side of its patches.

    Raises:
        ConfigError: the sides are not multiples of the patch.
    """
    key = PATCH_OF[view]
    patch, (rows, cols) = getattr(model, key), getattr(views, view)
    if rows % patch or cols % patch:
        raise ConfigError(f"views.{view}=[{rows},{cols}]: both sides must be multiples of model.{key}={patch}.")
    return rows, cols, patch


def _check_views(config: Config) -> None:
    views = config.views
    for view in config.ssl.views:
        patched(view, config.model, views)
    if any(side % views.stamp for side in views.detail):
        raise ConfigError(f"views.detail={views.detail}: both sides must be multiples of views.stamp={views.stamp}.")
