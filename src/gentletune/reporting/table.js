"use strict";
// Sorting by the headers' buttons, and a box that keeps the rows with all its words.
(() => {
  const value = (row, column) => row.cells[column].dataset.v;
  const isNumber = (text) => text !== "" && Number.isFinite(Number(text));

  const compare = (a, b, sign) => {
    // What is missing is last either way.
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    if (isNumber(a) && isNumber(b)) return sign * (Number(a) - Number(b));
    return sign * a.localeCompare(b, "en", { numeric: true });
  };

  const sort = (table, head) => {
    const heads = [...table.tHead.rows[0].cells];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = heads.indexOf(head);
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => compare(value(a, column), value(b, column), down ? -1 : 1));
    table.tBodies[0].append(...rows);
  };

  const filter = (table, text) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const said = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => said.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById(table.id + "-count").textContent =
      words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      head.querySelector("button").addEventListener("click", () => sort(table, head));
    }
    const box = document.querySelector(`[data-filters="${table.id}"]`);
    if (!box) continue;  // too few rows to filter
    box.addEventListener("input", () => filter(table, box.value));
    filter(table, box.value);
  }
})();
