"""How the results page looks, and its one script: a click on a column's heading sorts by it."""

STYLE = """
:root { color-scheme: light; --ink: #1d2329; --soft: #55606b; --line: #d9dee3; --band: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .75rem; padding-top: .75rem; }
h2 { border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
a { color: #14588f; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0; padding: 0; }
.sheet { overflow-x: auto; overflow-wrap: normal; margin: 1.75rem 0; }
table { border-collapse: collapse; font-size: .875rem; min-width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; font-size: 1rem; padding-bottom: .4rem; }
caption span { display: block; max-width: calc(100vw - 2rem); }
th, td { padding: .35rem .55rem; text-align: left; vertical-align: top; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); vertical-align: bottom; border-bottom: 2px solid #9aa5b0; }
tbody th { font-weight: 400; background: #fff; }
.long { min-width: 14rem; max-width: 20rem; white-space: normal; overflow-wrap: anywhere; }
tbody tr:hover > * { background: var(--band); }
.number { text-align: right; }
thead .number { white-space: normal; min-width: 5.5rem; }
td.ours:not(:empty) { background: #e7f1fa; color: #0d4672; font-weight: 600; }
th button { all: unset; cursor: pointer; }
th button:focus-visible, .sheet:focus-visible { outline: 2px solid #14588f; outline-offset: 2px; }
th button::after { content: "\\a0\\2195"; color: #8a949e; }
th[aria-sort="ascending"] button::after { content: "\\a0\\2191"; color: inherit; }
th[aria-sort="descending"] button::after { content: "\\a0\\2193"; color: inherit; }
figure { margin: 1.5rem 0; }
img { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
@media (max-width: 500px) { tbody th { max-width: 9rem; white-space: normal; } }
@media (min-width: 700px) { tbody th, thead th:first-child { position: sticky; left: 0; } }
@media print { th button::after { content: ""; } .sheet { overflow: visible; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
  };
  const order = (a, b) => typeof a === typeof b ? (typeof a === "number" ? a - b : a.localeCompare(b))
    : (typeof a === "number" ? -1 : 1);
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sorted = head.getAttribute("aria-sort");
      const down = sorted ? sorted === "ascending" : head.classList.contains("number");
      const sign = down ? -1 : 1, rows = [...body.rows], empty = row => value(row, i) === "";
      rows.sort((a, b) => empty(a) - empty(b) || sign * order(value(a, i), value(b, i)));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}
"""
