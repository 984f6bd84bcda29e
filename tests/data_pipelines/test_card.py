"""Cards as JSON: what comes back, own sensors, and folders of another card."""

import dataclasses
import json

import pytest

from anysat_jax import sensors
from anysat_jax.sensors import Sensor
from data_pipelines.card import FILE_NAME, check_essentials, essentials, from_json, read_card, to_json
from data_pipelines.registry import dataset_names, get_entry
from tests.data_pipelines.fake_reader import CARD
from tests.data_pipelines.odd_readers import RICH_CARD


@pytest.fixture
def own_sensors(monkeypatch):
    """A registry of sensors that may be changed."""
    monkeypatch.setattr(sensors, "SENSORS", dict(sensors.SENSORS))
    monkeypatch.setattr("data_pipelines.card.SENSORS", sensors.SENSORS)
    return sensors.SENSORS


def test_every_card_comes_back():
    for card in [RICH_CARD, *(get_entry(name).card for name in dataset_names())]:
        again, found = from_json(to_json(card), "here")
        assert again == card and found == essentials(card)


@pytest.mark.parametrize("changes", [{"title": "a\x1b[31mred"}, {"notes": ("fine", "\x9b31m")}, {"url": "a\rb"}])
def test_texts_that_would_command_a_terminal_are_refused(changes):
    with pytest.raises(ValueError, match=rf"the card's {next(iter(changes))} is '.*', which has control characters"):
        dataclasses.replace(CARD, **changes)


def test_own_sensors_are_registered_at_opening(own_sensors):
    drone = Sensor("drone", "image", ("R", "G"), 0.5, subpatch_pixels=4)
    sensors.register(drone)
    card = dataclasses.replace(CARD, sensors=("drone",), arrays={}, sides={}, masks={})
    text = to_json(card)
    del own_sensors["drone"]
    assert from_json(text, "here")[0] == card and own_sensors["drone"] == drone


def test_an_unknown_sensor_without_a_record_is_refused():
    content = json.loads(to_json(CARD))
    del content["sensors"]["modis"]
    with pytest.raises(ValueError, match=r"here is not a card .*: it lacks the records of \['modis'\]"):
        from_json(json.dumps(content), "here")


def change(content, case):
    if case == "format":
        content["format"] = 99
    if case == "field":
        content["card"]["surprise"] = 1
    if case == "type":
        content["card"]["sensors"] = "s2"
    if case == "number":
        content["card"]["extent"] = "wide"
    if case == "sensor":
        content["sensors"]["s2"]["kind"] = "movie"
    if case == "essentials":
        content["essentials"] = 3
    return json.dumps(content)


@pytest.mark.parametrize("case", ["format", "field", "type", "number", "sensor", "essentials"])
def test_what_is_no_card_is_refused(case):
    with pytest.raises(ValueError, match=r"card\.json is not a card of a dataset"):
        from_json(change(json.loads(to_json(CARD)), case), "card.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
def test_damaged_cards_are_refused(text):
    with pytest.raises(ValueError, match=r"card\.json is not a card of a dataset"):
        from_json(text, "card.json")


def test_a_folder_of_another_card_is_refused_naming_both_sides(tmp_path):
    (tmp_path / FILE_NAME).write_text(to_json(CARD))
    _, stored = read_card(tmp_path)
    check_essentials(tmp_path, stored, CARD)
    check_essentials(tmp_path, stored, dataclasses.replace(CARD, notes=("other words",), patch_sizes=(10,)))
    signed = CARD.arrays | {"s2": "int16"}
    others = {
        r"tile_classes is \['a', 'b', 'c'\], here \['a', 'b'\]": dict(tile_classes=("a", "b")),
        r"arrays of 's2' are \['uint16', None, 10, 4, 4\], here \['int16', None": dict(arrays=signed),
        r"arrays of 's2_mask' are .*, here None": dict(masks={"s1-asc": "band"}),
        r"sensors is \['spot', .*, here \['s2'\]": dict(sensors=("s2",), masks={}, arrays={"s2": "uint16"}, sides={}),
    }
    for message, changes in others.items():
        with pytest.raises(ValueError, match=f"was prepared for another card of dataset 'fake_tiles': .*{message}"):
            check_essentials(tmp_path, stored, dataclasses.replace(CARD, **changes))


def test_other_bands_are_named():
    stored = essentials(CARD)
    stored["bands"]["s2"] = ["B2"]
    with pytest.raises(ValueError, match=r": bands of 's2' are \['B2'\], here \['B2', 'B3'"):
        check_essentials("there", stored, CARD)


def test_a_folder_without_a_card(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*card\.json: it is not a prepared dataset of this release"):
        read_card(tmp_path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "card.json").write_bytes(to_json(CARD).encode().replace(b"a", b"\xa2", 1))
    with pytest.raises(ValueError, match=r"card\.json is not a card of a dataset .*delete the folder"):
        read_card(tmp_path)
