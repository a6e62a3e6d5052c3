"""The manifest stage: every row of every table once, with every reason why one is not processed; and the labels."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hpcqa import instruments
from hpcqa.artifacts.catalog import LABELS, MANIFEST
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.parts import FIRST_SHARD
from hpcqa.artifacts.schema import Provenance, Values
from hpcqa.artifacts.store import digests, is_current, read_provenance, read_table, write_table, write_text
from hpcqa.config import Config
from hpcqa.config.frozen import refuse_other_settings, stage_digest
from hpcqa.errors import ConfigError, DataError, EnvironmentProblem
from hpcqa.instruments.base import Instrument
from hpcqa.parallel.ranks import Ranks
from hpcqa.survey import labels, rules, scan, selection, tables, takeover, versions
from hpcqa.survey.coded import Coded, distinct, pairs
from hpcqa.survey.cuts import BIT, Ledger, funnel_text, names_of
from hpcqa.survey.images import Located, check_folders, is_stream, locate, not_text, shown
from hpcqa.survey.statements import CcdNamer

logger = logging.getLogger(__name__)

MOST_NEAR_MISSES_SHOWN = 3
NEAR_MISSES = "near-misses.csv"
EARLIER = "manifest of the earlier run"  # among the parents in provenance


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Write manifest.parquet, labels.parquet and, where there is a truth table, truth.parquet.

    Raises:
        ConfigError: a path or pattern of the configuration leads nowhere.
        DataError: a table or list is unusable, or no row is left to process.
    """
    if not ranks.is_first:
        return
    instruments.get(config.instrument.name)
    write_manifest(config, folder)
    write_labels(config, folder, "labels", config.survey.labels)
    if config.survey.truth:
        write_labels(config, folder, "truth", [config.survey.truth])
    warn_of_near_misses(folder)
    check_something_left(folder)


# Manifest -----------------------------------------------------------------------------------------------------------


def write_manifest(config: Config, folder: RunFolder) -> None:
    """Write the manifest unless the one that is there was made from the same tables and settings."""
    folders = check_folders(config.survey.images)
    if config.survey.tables:
        paths = tables.expand_paths(config.survey.tables, "survey.tables")
        parents = file_digests(folder, paths)
    elif folders:
        found = scan.find_images(folders, config.instrument.name)
        parents = {"listing": scan.listing_digest(found)}
    else:
        raise ConfigError("survey.tables and survey.images are both empty; name tables, or folders to scan for images.")
    earlier = earlier_manifest(config, folder)
    if earlier is not None:
        parents[EARLIER] = read_provenance(earlier, MANIFEST).content
    path, digest = folder.output("manifest"), stage_digest(config, "manifest")
    if is_current(path, MANIFEST, config_digest=digest, parents=parents) and not _lacks_images(path):
        logger.info("%s is up to date.", path)
        return
    rows = tables.read_tables(paths) if config.survey.tables else scan.read_headers(found)
    columns = build(rows, config, folders)
    for line in funnel_text(np.asarray(columns["cuts"]), exposures=np.asarray(columns["expnum"])):
        logger.info("%s", line)
    notes = {} if earlier is None else {FIRST_SHARD: str(take_over(columns, earlier, config))}
    write_table(path, MANIFEST, columns, Provenance(digest, parents, config.instrument.name, notes=notes))


def earlier_manifest(config: Config, folder: RunFolder) -> Path | None:
    """The manifest of the run that this one goes on from, if it does.

    Raises:
        ConfigError: its settings differ where work is taken over.
        DataError: it has no manifest.
    """
    if not config.survey.update:
        return None
    refuse_other_settings(config)
    return RunFolder(folder.bases[0], folder.bases[1:]).need("manifest", "manifest")


def take_over(columns: dict[str, Values], earlier: Path, config: Config) -> int:
    """Leave unchanged exposures in the earlier run's shards, in place; the first number of this run's own shards."""
    before = read_table(earlier, MANIFEST, takeover.NEEDED)
    now = {name: _plain(columns[name]) for name in (*takeover.NEEDED, "night")}
    found = takeover.compare(now, before)
    logger.info("manifest: %s; the others are in %s", found.in_words(), earlier.parent)
    first = max(int(before["shard"].max(initial=-1)) + 1, int(read_provenance(earlier).notes.get(FIRST_SHARD, "0")))
    kept = (now["cuts"] == 0) & (found.shard < 0)
    own = number_shards(now["expnum"], now["night"], kept, config.shard.exposures_per_shard)
    columns["shard"] = np.where(found.shard >= 0, found.shard, np.where(own >= 0, own + first, -1)).astype(np.int32)
    return first


def _plain(values: Values) -> np.ndarray:
    return values.expand() if isinstance(values, Coded) else values


def _lacks_images(path: Path) -> bool:
    """Whether files were missing: they may have come since, so that such a manifest is made anew."""
    cuts = read_table(path, MANIFEST, ["cuts"])["cuts"]
    return bool((cuts & (BIT["no_folder"] | BIT["no_file"] | BIT["unreadable"])).any())


def file_digests(folder: RunFolder, paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file's bytes, by its path in provenance."""
    found = {}
    for path in paths:
        if not_text(path):
            raise DataError(f"{shown(path)}: the {not_text(path)}.")
        try:
            if is_stream(path):
                raise DataError(f"{path}: not a plain file; write what it gives to a file, and name that.")
            with path.open("rb") as file:
                found[folder.relative(path)] = hashlib.file_digest(file, "sha256").hexdigest()
        except PermissionError:
            raise EnvironmentProblem(f"{path}: permission denied; make the file readable.") from None
        except IsADirectoryError:
            raise DataError(f"{path}: a folder; expected a file, or a pattern such as {path}/*.fits.gz.") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); correct the path.") from None
    return found


def build(rows: tables.CcdRows, config: Config, folders: Sequence[Path]) -> dict[str, Values]:
    """The columns of the manifest from the rows of the tables. Pure but for looking whether images exist."""
    ledger = Ledger(len(rows))
    mjd_obs = rows.numbers["mjd_obs"]
    camera = name_cameras(rows.text["camera"], config.instrument.name)
    modules = {word: instruments.for_camera(word) for word in camera.words}
    image = rows.text["image_filename"]
    expnum = complete_expnums(rows.numbers["expnum"], image, modules.values())
    ledger.add("no_expnum", expnum <= 0, "expnum 0")
    ledger.add("no_module", camera.ask(lambda word: modules[word] is None, bool), camera.rename("camera {}".format))
    ccdnum = number_ccds(ledger, rows, camera, modules)
    band = name_bands(ledger, rows.text["band"], camera, modules)
    located = rows.located if rows.located is not None else locate(image, rows.table, folders)
    cut_missing(ledger, located, rows)
    versions.resolve(
        ledger,
        expnum=expnum,
        ccdnum=ccdnum,
        camera=camera,
        plver=rows.text["plver"],
        plprocid=rows.text["plprocid"],
        preference=lambda some: prefer_images(image, some, modules.values()),
        table=rows.table if rows.located is None else located.path,
    )
    for word, instrument in modules.items():
        if instrument is not None:
            mine = camera.ask(word.__eq__, bool)
            selection.cut_dead(
                ledger,
                instrument,
                mine,
                expnum=expnum,
                ccdnum=ccdnum,
                band=band,
                mjd_obs=mjd_obs,
                plver=rows.text["plver"],
            )
    selection.apply(ledger, config.manifest, expnum=expnum, band=band, numbers=rows.numbers)
    night = name_nights(mjd_obs, camera, modules)
    return {
        "expnum": expnum,
        "ccdnum": ccdnum,
        "ccdname": complete_ccdnames(rows.text["ccdname"], ccdnum, camera, modules),
        "camera": camera,
        "band": band,
        "mjd_obs": mjd_obs,
        "night": night,
        **{name: rows.numbers[name] for name in ("exptime", "ra", "dec", "ebv", "width", "height", "zpt", "ccdzpt")},
        **{name: rows.numbers[name] for name in ("fwhm", "ccd_cuts", "image_hdu")},
        **{name: rows.text[name] for name in ("plver", "plprocid", "object")},
        "image_path": located.path,
        "table": rows.table,
        "table_row": rows.table_row,
        "cuts": ledger.bits,
        "cut_detail": ledger.detail,
        "shard": number_shards(expnum, night, ledger.open_rows, config.shard.exposures_per_shard),
    }


def name_cameras(camera: Coded, default: str) -> Coded:
    """Cameras in lower case; tables without a camera are of the configured one."""
    return camera.rename(lambda word: word.lower() or instruments.get(default).cameras[0])


def complete_expnums(expnum: np.ndarray, image: Coded, modules: Iterable[Instrument | None]) -> np.ndarray:
    """Exposure numbers, taken from the file name where the table has none: int64 (N,); 0 where neither has one."""
    missing = np.flatnonzero(expnum <= 0)
    if not len(missing):
        return expnum
    result = np.where(expnum > 0, expnum, 0)
    known = [module for module in modules if module is not None]
    named = {}
    for code in np.unique(image.codes[missing]):
        names = [module.parse_file_name(Path(image.words[code])) for module in known]
        named[code] = next((name.expnum for name in names if name and name.expnum > 0), 0)
    result[missing] = [named[code] for code in image.codes[missing]]
    return result


def number_ccds(
    ledger: Ledger, rows: tables.CcdRows, camera: Coded, modules: dict[str, Instrument | None]
) -> np.ndarray:
    """CCD numbers: by name where the camera knows it, else as the table says, else the digits of the name.

    int32 (N,); -1 unknown.
    """
    ccdname = rows.text["ccdname"]
    combinations, index = pairs(camera.codes, ccdname.codes, len(ccdname.words))
    words = [(modules[camera.words[first]], ccdname.words[second]) for first, second in combinations]
    code = Coded(index.astype(np.int32), ())
    known = code.take([_known_ccd(module, word) for module, word in words], np.int64)
    numbers = np.where(known >= 0, known, rows.numbers["ccdnum"])
    numbers = np.where(numbers >= 0, numbers, code.take([_digits_of(word) for _, word in words], np.int64))
    legal = np.ones(len(rows), bool)
    for word, module in modules.items():
        if module is not None:
            mine = camera.ask(word.__eq__, bool)
            legal &= ~mine | np.isin(numbers, [ccd.ccdnum for ccd in module.ccds])
    ledger.add("unknown_ccd", ~legal, ccdname.rename(lambda word: f"CCD {word or 'without a name'}"))
    return numbers.astype(np.int32)


def complete_ccdnames(
    ccdname: Coded, ccdnum: np.ndarray, camera: Coded, modules: dict[str, Instrument | None]
) -> Coded:
    """The CCDs' names, by number where the table has none and the camera knows it."""
    rows = np.flatnonzero(ccdname.ask(lambda word: not word, bool))
    if not len(rows):
        return ccdname
    largest = int(ccdnum.max()) + 2
    combinations, index = pairs(camera.codes[rows], ccdnum[rows] + 1, largest)
    names = {word: {ccd.ccdnum: ccd.ccdname for ccd in module.ccds} for word, module in modules.items() if module}
    found = [names.get(camera.words[first], {}).get(second - 1, "") for first, second in combinations]
    codes = ccdname.codes.copy()
    codes[rows] = len(ccdname.words) + index
    return Coded(codes, (*ccdname.words, *found))


def _known_ccd(module: Instrument | None, ccdname: str) -> int:
    number = module.ccdnum_of(ccdname) if module is not None else None
    return -1 if number is None else number


def _digits_of(ccdname: str) -> int:
    digits = ccdname.lower().removeprefix("ccd").removeprefix("im")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else -1


def name_bands(ledger: Ledger, text: Coded, camera: Coded, modules: dict[str, Instrument | None]) -> Coded:
    """Bands as the camera calls them; those that it does not know stay as they are and are cut."""
    combinations, index = pairs(camera.codes, text.codes, len(text.words))
    codes = index.astype(np.int32)
    names, unknown = [], []
    for first, second in combinations:
        module, word = modules[camera.words[first]], text.words[second]
        band = module.band_of(word) if module is not None else word.split()[0] if word.split() else ""
        names.append(band if band is not None else word)
        unknown.append(module is not None and band is None)
    shown = Coded(codes, tuple(f"band {text.words[second]!r}" for _, second in combinations))
    ledger.add("unknown_band", shown.take(unknown, bool), shown)
    return Coded(codes, tuple(names))


def cut_missing(ledger: Ledger, located: Located, rows: tables.CcdRows) -> None:
    """Cut the rows without an image; one warning for each table says how many, and one how many are unreadable."""
    ledger.add("no_folder", located.no_folder, located.problem)
    ledger.add("no_file", located.no_file, located.problem)
    if located.unreadable is not None and located.unreadable.any():
        ledger.add("unreadable", located.unreadable, located.problem)
        first = int(np.flatnonzero(located.unreadable)[0])
        path, said = (column.words[column.codes[first]] for column in (located.path, located.problem))
        logger.warning("%d files give no image, first: %s: %s.", located.unreadable.sum(), path, said.rstrip("."))
    missing = located.no_folder | located.no_file
    for code, count in enumerate(np.bincount(rows.table.codes[missing], minlength=len(rows.table.words))):
        if count:
            first = int(np.flatnonzero(missing & (rows.table.codes == code))[0])
            said = located.problem.words[located.problem.codes[first]]
            logger.warning("%s: %d rows without an image, first: %s.", rows.table.words[code], count, said)


def prefer_images(image: Coded, rows: np.ndarray, modules: Iterable[Instrument | None]) -> np.ndarray:
    """0 for rows whose file name says it is an image, 1 for others: int64, as `rows`."""
    known = [module for module in modules if module is not None]

    def rank(word: str) -> int:
        names = [module.parse_file_name(Path(word)) for module in known]
        return 0 if any(name is not None and name.prodtype == "image" for name in names) else 1

    codes, index = distinct(image.codes[rows])
    return np.asarray(np.array([rank(image.words[code]) for code in codes], np.int64)[index])


def name_nights(mjd_obs: np.ndarray, camera: Coded, modules: dict[str, Instrument | None]) -> np.ndarray:
    """The local night of each row as YYYYMMDD: int32 (N,); 0 without a time. Without a module: noon to noon UTC."""
    times, index = distinct(np.where(np.isfinite(mjd_obs) & (mjd_obs > 0) & (mjd_obs < 1e5), mjd_obs, 0.0))
    combinations, place = pairs(camera.codes, index.astype(np.int32), len(times))
    nights = [_night(modules[camera.words[first]], float(times[second])) for first, second in combinations]
    return Coded(place.astype(np.int32), ()).take(nights, np.int32)


def _night(module: Instrument | None, mjd_obs: float) -> int:
    if mjd_obs <= 0:
        return 0
    if module is not None:
        return module.night(mjd_obs)
    day = np.datetime64("1858-11-17") + np.timedelta64(int(mjd_obs - 0.5), "D")
    return int(str(day).replace("-", ""))


def number_shards(expnum: np.ndarray, night: np.ndarray, kept: np.ndarray, exposures_per_shard: int) -> np.ndarray:
    """The shard of each row: exposures in the order of (night, expnum), so many in each: int32 (N,); -1 if not kept."""
    shard = np.full(len(expnum), -1, np.int32)
    rows = np.flatnonzero(kept)
    exposures, index = distinct(expnum[rows])
    first_night = np.zeros(len(exposures), np.int64)
    first_night[index[::-1]] = night[rows][::-1]
    position = np.empty(len(exposures), np.int64)
    position[np.lexsort((exposures, first_night))] = np.arange(len(exposures))
    shard[rows] = position[index] // exposures_per_shard
    return shard


def check_something_left(folder: RunFolder) -> None:
    """End with an error if every row is cut; the manifest stays and says why for each."""
    path = folder.output("manifest")
    cuts = read_table(path, MANIFEST, ["cuts"])["cuts"]
    if (cuts == 0).any():
        return
    detail = read_table(path, MANIFEST, ["cut_detail"])["cut_detail"]
    names, counts = np.unique(cuts, return_counts=True)
    most = names_of(int(names[np.argmax(counts)]))
    raise DataError(
        f"{path}: all {len(cuts)} rows are cut, most by {' and '.join(most)} (row 0: {detail[0]}); "
        "correct survey.* or manifest.* and run again."
    )


# Labels -------------------------------------------------------------------------------------------------------------


def write_labels(config: Config, folder: RunFolder, artifact: str, patterns: Sequence[str]) -> None:
    """Write labels.parquet or truth.parquet unless it was made from the same lists and rules."""
    parents = file_digests(folder, [path for path, _ in labels.find_lists(patterns)])
    # Which camera an exposure is of decides what its CCDs' names mean.
    parents |= digests(folder, [folder.output("manifest")])
    parents["reason_rules.toml"] = hashlib.sha256(rules.rules_text().encode()).hexdigest()
    path, digest = folder.output(artifact), stage_digest(config, "manifest")
    if is_current(path, LABELS, config_digest=digest, parents=parents):
        logger.info("%s is up to date.", path)
        return
    readings = labels.read_lists(patterns, _namer(config, folder))
    statements = [statement for reading in readings for statement in reading.statements]
    labels.report_conflicts(statements)
    if not statements:
        logger.warning("No labels: classification needs some; name lists in survey.labels.")
    write_table(path, LABELS, labels.to_columns(statements), Provenance(digest, parents, config.instrument.name))


def _namer(config: Config, folder: RunFolder) -> CcdNamer:
    surveyed = read_table(folder.output("manifest"), MANIFEST, ["expnum", "camera"])
    exposures, index = distinct(surveyed["expnum"])
    camera = np.empty(len(exposures), object)
    camera[index[::-1]] = surveyed["camera"][::-1]
    order = np.argsort(exposures)
    return CcdNamer(config.instrument.name, exposures[order], camera[order])


def warn_of_near_misses(folder: RunFolder) -> None:
    """Say how many labelled exposures no table has, and which of them may be typing errors: one line, and a file."""
    labelled = distinct(read_table(folder.output("labels"), LABELS, ["expnum"])["expnum"])[0]
    surveyed = distinct(read_table(folder.output("manifest"), MANIFEST, ["expnum"])["expnum"])[0]
    path = folder.output("logs") / NEAR_MISSES
    absent = np.setdiff1d(labelled, surveyed)
    found = labels.near_misses(labelled, surveyed) if _covers(surveyed, labelled) else []
    if not found:
        path.unlink(missing_ok=True)
        if len(absent):
            logger.info("%d of %d labelled exposures are in no table.", len(absent), len(labelled))
        return
    write_text(path, "labelled,surveyed\n" + "".join(f"{left},{right}\n" for left, right in found))
    examples = ", ".join(f"{left} for {right}" for left, right in found[:MOST_NEAR_MISSES_SHOWN])
    logger.warning(
        "%d of %d labelled exposures are in no table; %d of them look like typing errors (%s%s); %s lists them.",
        len(absent), len(labelled), len({left for left, _ in found}), examples,
        ", ..." if len(found) > MOST_NEAR_MISSES_SHOWN else "", path,
    )  # fmt: skip


def _covers(surveyed: np.ndarray, labelled: np.ndarray) -> bool:
    """Whether the lists are about this survey: else nearly all of their numbers are missing, and none by mistake."""
    return int(np.isin(labelled, surveyed).sum()) * 2 >= len(labelled)
