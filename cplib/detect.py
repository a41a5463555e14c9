"""What `python -m cplib detect` does: photographs beside good ones as a table, heat maps, pictures and a report."""

import base64
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from tqdm import tqdm

from cplib import photos
from cplib.detector import Detector
from cplib.files import replace_bytes
from cplib.report import plots

log = logging.getLogger(__name__)

_SHOWN = 6  # photographs at each end of the list, in a picture
_IN_REPORT = 30  # that the report shows, so that it can be mailed


def run(detector: Detector, images: photos.Photos, to: str | Path | None = None, strict: bool = False) -> pd.DataFrame:
    """Score photographs of a folder, or a list of them, with a fitted detector. Returns the table of `Detector.score`.

    It writes to the folder `to`, by default detected/<name of the folder>: photos.csv; maps/, each photograph in full
    size with heat where it is unlike good ones; report.html, all in one file. What an earlier call wrote for the same
    photographs is replaced; of others it is kept, and the next free number is added. A ValueError for a folder `to`
    that holds anything else.
    """
    place = open_place(images, to)
    sources = dict(zip(*photos.listed(images), strict=True))
    scored, skipped = detector.scored(images, strict)
    table = detector.table(scored, skipped)
    shutil.rmtree(place / "maps", ignore_errors=True)
    (place / "maps").mkdir(exist_ok=True)
    replace_bytes(place / "photos.csv", table.to_csv(index=False, float_format="%.4g").encode())
    heats, small = {name: heat for name, _, _, heat in scored}, {}
    for rank, name in enumerate(tqdm(table["image"], "heat maps", disable=None, leave=False), 1):
        short = name.replace("/", " ").encode()[-120:].decode(errors="ignore")
        try:
            heated = heat_on(detector.open(sources[name]), heats[name], detector.threshold())
            heated.save(place / "maps" / f"{rank:04d} {short}.{'png' if max(heated.size) > 65_500 else 'jpg'}")
        except (ValueError, OSError) as error:  # it may have gone since it was scored
            log.warning("%s: no heat map (%s)", name, photos.shown(str(error)))
            heated = Image.new("RGB", (320, 320), "gray")
        if rank <= _IN_REPORT:
            heated.thumbnail((320, 320))
            small[name] = heated
    plots.use_style()
    given = str(images) if isinstance(images, str | Path) else f"{len(sources)} photographs"
    replace_bytes(place / "report.html", _report(detector, table, small, given).encode())
    log.info("%s: %s; open report.html", place, _headline(table))
    return table


def heat_on(photo: Image.Image, heat: np.ndarray, threshold: float) -> Image.Image:
    """A photograph with a map (rows, columns) of it as heat. It begins where a good photograph is at its most unusual,
    and is strongest at twice the threshold: equal colours mean the same in all photographs. A map of one place, which
    tells no part of the photograph from another, leaves it as it is."""
    if heat.size == 1:
        return photo.copy()
    warmth = np.clip(heat / max(2 * threshold, 4), 0, 1)
    # the share is more than linear, as weak heat is to be seen too
    parts = 255 * colormaps["autumn_r"](warmth)[..., :3], 255 * 0.65 * np.sqrt(warmth)
    # enlarged as 8 bits: in float a photograph of 12 million pixels took a gigabyte
    color, share = (Image.fromarray(x.astype(np.uint8)).resize(photo.size, Image.Resampling.BICUBIC) for x in parts)
    return Image.composite(color, photo, share)


def ends(table: pd.DataFrame, pictures: dict[str, Image.Image]) -> Figure:
    """Both ends of the list, no photograph twice."""
    rows, titles = {}, []
    for end, part in (("most", table[:_SHOWN]), ("least", table[_SHOWN:][::-1][:_SHOWN])):
        if len(part):
            square = [ImageOps.pad(pictures[name], (160, 160), color="white") for name in part["image"]]
            rows[f"{end}\nanomalous"] = [np.asarray(x).transpose(2, 0, 1) for x in square]
            titles.append([f"{row.image[-18:]}\n{row.score:.1f}" for row in part.itertuples()])
    return plots.image_grid(list(rows.values()), list(rows), titles) if rows else plots.notice("no photographs")


def histogram(table: pd.DataFrame, detector: Detector) -> Figure:
    """Scores of photographs and of good ones, with the threshold."""
    figure, axis = plots.plt.subplots(figsize=(6, 2.2))
    good, threshold = detector.good_scores_, detector.threshold()
    both = np.concatenate([good, table["score"]])
    bins = np.linspace(both.min(), max(both.max(), threshold), 40)
    axis.hist(good, bins, color=plots.GREY, alpha=0.6, label=f"{len(good)} good ones, each unseen")
    axis.hist(table["score"], bins, color=plots.BLUE, alpha=0.6, label=f"{len(table)} photographs")
    axis.axvline(threshold, color=plots.RED, lw=1, label="threshold")
    axis.set(xlabel="score", ylabel="photographs")
    axis.legend()
    return figure


def open_place(images: photos.Photos, to: str | Path | None = None) -> Path:
    """The folder to write to: new, empty, or with results, of these photographs if it is not named. Made, and noted."""
    named = [images] if isinstance(images, str | Path) else [] if isinstance(images, np.ndarray) else images
    paths = sorted(str(Path(p).expanduser().resolve()) for p in named)
    source, of, number = Path(paths[0] if len(paths) == 1 else "photos"), json.dumps(paths).encode(), 1
    name = (source.name if source.is_dir() else source.stem) or "photos"
    while True:
        place = Path(to).expanduser() if to else Path("detected") / (name if number == 1 else f"{name}-{number}")
        note = place / photos.RESULTS
        is_own = note.exists() and (to or note.read_bytes() == of)
        if is_own or not place.exists() or (place.is_dir() and not any(place.iterdir())):
            replace_bytes(note, of)
            return place
        if to:
            raise ValueError(
                f"{photos.shown(place)}: holds something else than results of a detector; name a new folder"
            )
        number += 1


def _headline(table: pd.DataFrame) -> str:
    return f"{sum(table['verdict'] == 'defect')} of {len(table)} photographs score above the threshold"


def _report(detector: Detector, table: pd.DataFrame, small: dict[str, Image.Image], images: str) -> str:
    def encoded(save: Callable, *how: str) -> str:
        out = io.BytesIO()
        save(out, *how)
        return base64.b64encode(out.getvalue()).decode()

    figure = histogram(table, detector)
    plots.plt.close(figure)
    template = Environment(loader=PackageLoader("cplib", "."), autoescape=True).get_template("detect.html")
    return template.render(
        title=_headline(table),
        detector=detector,
        table=table,
        images=photos.shown(images),
        skipped=[*getattr(detector, "skipped_", ()), *table.attrs["skipped"]],
        histogram=encoded(figure.savefig),
        cards=[(row, encoded(small[row.image].save, "JPEG")) for row in table[:_IN_REPORT].itertuples()],
        rows=table.to_html(index=False, border=0, float_format=lambda v: f"{v:.3g}"),
    )
