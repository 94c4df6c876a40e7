// All sample answers: unpacked when they are first asked for, filtered by run, by what changed and by words.
const unzip = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
(() => {
  const PAGE = 50;
  const element = (tag, name, ...parts) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...parts);
    return made;
  };
  const sign = (right) => (right === null ? "" : right ? " ✓" : " ✗");
  const line = (name, words, text) => element("p", name, element("small", "", words), text);
  const article = ([task, side, prompt, target, base, before], tuned, after) => element("article", "sample",
    line("asked", `${side === "domain" ? "Domain" : "General"} · ${task}`, prompt), line("wanted", "Wanted", target),
    line("", "Base model" + sign(before), base), line("", "Tuned" + sign(after), tuned));
  const kinds = {
    all: () => true,
    changed: (question, tuned) => question[4] !== tuned,
    better: (question, _, after) => question[5] === false && after === true,
    worse: (question, _, after) => question[5] === true && after === false,
  };

  const fill = (box, { questions, runs }) => {
    const [run, which, words] = [".run", ".which", ".words"].map((name) => box.querySelector(name));
    const list = box.querySelector(".list"), more = box.querySelector(".more"), status = box.querySelector("[role=status]");
    run.append(...runs.map(([name], i) => new Option(name, i)));
    let found = [], shown = 0;
    const show = () => {
      for (const [i, tuned, after] of found.slice(shown, shown + PAGE)) list.append(article(questions[i], tuned, after));
      shown = Math.min(shown + PAGE, found.length);
      more.hidden = shown === found.length;
    };
    const search = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = runs[run.value][1];
      found = rows.filter(([i, tuned, after]) => {
        const said = (questions[i].join(" ") + " " + tuned).toLowerCase();
        return kinds[which.value](questions[i], tuned, after) && wanted.every((word) => said.includes(word));
      });
      list.replaceChildren();
      shown = 0;
      show();
      status.textContent = `${found.length} of ${rows.length} answers`;
    };
    for (const control of [run, which, words]) control.addEventListener("input", search);
    more.addEventListener("click", show);
    search();
  };

  let unpacked;
  for (const box of document.querySelectorAll("details.answers")) {
    box.addEventListener("toggle", async () => {
      unpacked ??= unzip("answers").then(JSON.parse);
      fill(box, (await unpacked)[box.dataset.of]);
    }, { once: true });
  }
})();
