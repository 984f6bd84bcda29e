"""Cards and lists of datasets as text: what there is to predict, and tables that fit the terminal."""

from data_pipelines import card_text
from data_pipelines.registry import get_entry


def test_a_row_says_what_there_is_to_predict():
    cells = dict(zip(card_text.HEADER, card_text.table_row(get_entry("treesatai_ts").card), strict=True))
    assert cells["sensors"] == "aerial s2 s1-asc" and cells["extent"] == "60 m" and cells["patches (m)"] == "10 20 30"
    assert cells["labels"] == "multi-label of 15" and cells["licence"] == "CC-BY-4.0"
    assert card_text.label_kinds(get_entry("biomassters").card).startswith("map of ")
    assert card_text.label_kinds(get_entry("fuel_moisture").card).startswith("live fuel moisture")
    assert card_text.label_kinds(get_entry("bradd_s1ts").card) == "change map of 2"


def test_tables_wrap_their_widest_columns():
    shown = card_text.fitted_table(("a", "b"), [("1", "one two three four"), ("22", "five")], width=14)
    assert shown.splitlines() == ["a   b", "--  ----------", "1   one two", "    three four", "22  five"]


def test_words_are_not_broken_even_where_there_is_no_room():
    assert "incomprehensible" in card_text.fitted_table(("a", "b"), [("1", "incomprehensible")], width=8)
