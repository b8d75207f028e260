"""Draw the outlines of a jsonl file over their images, to check answers and masks visually.

python data_tools/draw_polygons.py --data_file_paths seg/val.jsonl --image_folders coco --output_dir drawn --limit 20
python data_tools/draw_polygons.py seg/val.jsonl --image-root coco --output drawn    # the same, with VLM-R1's arguments

Each PNG shows one row: the target mask in blue, the outline of the answer in red, its boxes in yellow, and a caption
with the question and the IoU. Rows of tasks other than `seg` are skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from vlm_grpo.records import Record

BLUE, RED, YELLOW = (30, 110, 255), (255, 40, 40), (255, 220, 0)
CAPTION = 34  # pixels below the image
LEAST_WIDTH = 320


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags; exit with status 2 if one is out of range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("files", nargs="?", metavar="FILES", help="the same as --data_file_paths")
    add("--data_file_paths", metavar="FILES", help="jsonl files, separated by ':'")
    folders = "image folder of each file, separated by ':', or one folder for all"
    add("--image_folders", "--image-root", metavar="FOLDERS", help=folders)
    pictures = "folder for one PNG per row, NUMBER_ID.png"
    add("--output_dir", "--output", required=True, type=Path, metavar="FOLDER", help=pictures)
    add("--limit", type=int, default=50, metavar="N", help="stop after N rows (default: 50)")
    arguments = parser.parse_args(argv)
    if bool(arguments.files) == bool(arguments.data_file_paths):
        parser.error("pass the jsonl files once, as --data_file_paths FILES or as FILES")
    arguments.data_file_paths = arguments.data_file_paths or arguments.files
    if arguments.limit < 1:
        parser.error(f"--limit must be at least 1, got {arguments.limit}")
    return arguments


def draw(arguments: argparse.Namespace) -> int:
    """Write the images; return 1 if there is no row to draw."""
    from vlm_grpo.data import load_dataset

    rows = load_dataset(arguments.data_file_paths, image_folders=arguments.image_folders)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    count = 0
    for number in range(len(rows)):
        record = rows[number]["record"]
        if record.task != "seg" or not record.images:
            continue
        save(picture(record), arguments.output_dir / f"{number:05d}_{file_name(record.id)}.png")
        count += 1
        if count == arguments.limit:
            break
    print(f"{arguments.output_dir}: {count:,} pictures")
    if not count:
        print(f"no row of {arguments.data_file_paths} has the task seg and an image", file=sys.stderr)
    return int(not count)


def picture(record: Record) -> Image.Image:
    """Return the image of a record with mask, outline, boxes and a caption.

    Raises:
        ValueError: the image cannot be decoded; the message names the line.
    """
    from PIL import Image, ImageDraw

    from vlm_grpo.data.images import open_image
    from vlm_grpo.masks import decode_regions, read_shape, region_iou
    from vlm_grpo.masks.raster import regions_to_mask
    from vlm_grpo.rewards.mask import answer_extent, target_mask

    image = open_image(record.images[int(record.extra.get("box_image") or 0)])
    truth = target_mask(record.extra["mask"])
    size = (truth.height, truth.width)
    extent = answer_extent(record, truth)
    found = decode_regions(record.answer, *size, extent)
    shown = tinted(image, regions_to_mask([truth.boundaries], *size), border(regions_to_mask(found, *size)))
    pencil = ImageDraw.Draw(shown)
    for part in read_shape(record.answer)[1]:
        x, y = shown.width / extent[0], shown.height / extent[1]
        pencil.rectangle([round(side) for side in part.box * [x, y, x, y]], outline=YELLOW)
    whole = Image.new("RGB", (max(shown.width, LEAST_WIDTH), shown.height + CAPTION), "white")
    whole.paste(shown)
    text = (
        f"{record.question.replace('<image>', '').strip()}\nIoU {region_iou(found, truth.boundaries):.3f}   {record.id}"
    )
    ImageDraw.Draw(whole).text((4, shown.height + 3), text, fill="black")
    return whole


def tinted(image: Image.Image, mask: np.ndarray, line: np.ndarray) -> Image.Image:
    """Return the image with a mask in blue and a line in red, both (H, W) of bool and scaled to the image."""
    from PIL import Image

    shown = image.convert("RGB")
    for layer, color, strength in ((mask, BLUE, 110), (line, RED, 255)):
        cover = Image.fromarray(layer.astype("uint8") * strength).resize(shown.size, Image.Resampling.NEAREST)
        shown.paste(color, mask=cover)
    return shown


def border(mask: np.ndarray) -> np.ndarray:
    """Return the border pixels of a mask, (H, W) of bool; pixels at the image border count."""
    import numpy as np

    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def file_name(identity: Any) -> str:
    """Return an id as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in str(identity))[:80]


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    from vlm_grpo.io import whole_file

    with whole_file(path, sync=False) as file:
        image.save(file, "PNG")


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if the data have problems, 2 for a usage error."""
    from vlm_grpo.cli._exit import exit_status

    arguments = parse(argv)
    return exit_status(lambda: draw(arguments))


if __name__ == "__main__":
    sys.exit(main())
