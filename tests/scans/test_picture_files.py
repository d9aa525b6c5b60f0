"""Pictures of every kind as the model sees them."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from medsam3.layouts.pixels import read_mask
from medsam3.scans.picture_files import read_picture
from tests.prediction.predict_config import predict_config

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)


@pytest.fixture
def config(tmp_path):
    return predict_config(tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_8_bits_of_every_mode_as_pillow_has_them(mode, tmp_path, config):
    picture = Image.fromarray(COLOUR).convert(mode)
    picture.save(tmp_path / "a.png")
    shown = read_picture(tmp_path / "a.png", config)
    assert np.array_equal(shown.pixels, np.asarray(picture.convert("RGB"))) and shown.pixels.shape == (3, 4, 3)
    assert shown.notes == (("alpha channel left out",) if "A" in mode else ())
    config.scan.window = [0.0, 100.0]
    unchanged = read_picture(tmp_path / "a.png", config)
    assert np.array_equal(unchanged.pixels, shown.pixels) and "as they are, whatever scan.window" in unchanged.notes[-1]


def test_16_bits_by_percentiles_or_window(tmp_path, config):
    wide = np.array([[0, 100, 200, 1000]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "a.png")
    config.scan.percentiles = [0.0, 100.0]
    assert read_picture(tmp_path / "a.png", config).pixels[0, :, 0].tolist() == [0, 26, 51, 255]  # 25.5 and 51
    config.scan.window = [0.0, 200.0]
    assert read_picture(tmp_path / "a.png", config).pixels[0, :, 2].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_seen_as_viewers_show_it(orientation, tmp_path, config):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        upright = np.asarray(ImageOps.exif_transpose(file))
    pixels = read_picture(tmp_path / "a.png", config).pixels
    assert np.array_equal(pixels, upright) and pixels.flags.writeable  # else torch warns in the middle of the bar
    config.orientation = "stored"
    assert np.array_equal(read_picture(tmp_path / "a.png", config).pixels, COLOUR)


def test_a_turned_tiff_is_seen_as_viewers_show_it(tmp_path, config):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "a.tif", exif=exif)
    shown = read_picture(tmp_path / "a.tif", config)
    assert np.array_equal(shown.pixels, np.rot90(COLOUR, -1)) and "turns them" in shown.notes[0]
    config.orientation = "stored"
    assert np.array_equal(read_picture(tmp_path / "a.tif", config).pixels, shown.pixels)
    assert read_picture(tmp_path / "a.tif", config).lies == "as shown"  # whatever was asked for: it says how it is


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_the_lowest_value_is_white_it_is_shown_white(dtype, tmp_path, config):
    config.scan.percentiles = [0.0, 100.0]
    values = np.array([[0, 51, 255]], dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert read_picture(tmp_path / "a.tif", config).pixels[0, :, 0].tolist() == [255, 204, 0]


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_colours_of_16_bits_are_noted(compression, tmp_path, config):
    values = np.full((3, 4, 3), 4095, np.uint16)  # 12 bits in use: nearly black
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression=compression)
    (note,) = read_picture(tmp_path / "a.tif", config).notes
    assert note.startswith("16 bits per colour") and note.endswith("brightest 15 of 255")


def test_what_pillow_would_take_for_other_numbers(tmp_path, config):
    config.scan.percentiles = [0.0, 100.0]
    wide = np.array([[0, 2**31, 2**32 - 1]], np.uint32)  # Pillow: 0, -2147483648, -1
    tifffile.imwrite(tmp_path / "a.tif", wide)
    assert read_picture(tmp_path / "a.tif", config).pixels[0, :, 0].tolist() == [0, 128, 255]
    assert read_mask(tmp_path / "a.tif").tolist() == wide.tolist()
    tifffile.imwrite(tmp_path / "b.tif", np.array([[-100, 0, 100]], np.int8))
    for read in (lambda: read_picture(tmp_path / "b.tif", config), lambda: read_mask(tmp_path / "b.tif")):
        with pytest.raises(ValueError, match=r"b.tif: cannot be read \(signed values of 8 bits"):
            read()
    Image.fromarray(np.zeros((3, 4, 4), np.uint8), "CMYK").save(tmp_path / "c.jpg")
    assert "CMYK: turned into RGB" in read_picture(tmp_path / "c.jpg", config).notes[0]


def test_what_is_no_single_picture_is_refused(tmp_path, config):
    pages = [Image.fromarray(GREY), Image.fromarray(GREY.T)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a.tif: cannot be read \(holds 2 pages"):
        read_picture(tmp_path / "a.tif", config)
    pages[0].save(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:45])
    with pytest.raises(ValueError, match=r"c.png: cannot be read"):
        read_picture(tmp_path / "c.png", config)
