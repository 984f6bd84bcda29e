"""The table of datasets in docs/DATA.md, made from the cards; `python -m tests.data_pipelines.docs_table` prints it."""

from data_pipelines.card_text import HEADER, table_row
from data_pipelines.registry import dataset_names, get_entry


def docs_table() -> str:
    """The table in markdown."""
    rows = [table_row(get_entry(name).card) for name in dataset_names()]
    lines = [HEADER, ["---"] * len(HEADER), *[(f"`{name}`", *cells) for name, *cells in rows]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(docs_table())
