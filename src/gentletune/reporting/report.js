(() => {
  const { figures, points, rows } = JSON.parse(document.getElementById("data").textContent);
  const narrow = window.matchMedia("(max-width: 700px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const drawn = new Set();
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // A colour written $ink is the page's --ink of the moment.
  const themed = (figure) => {
    const style = getComputedStyle(root);
    return JSON.parse(JSON.stringify(figure), (key, value) =>
      /color$/.test(key) && typeof value === "string" && value.startsWith("$")
        ? style.getPropertyValue("--" + value.slice(1)).trim()
        : value);
  };

  // Any score against any: the points of the page's data in the layout of the first figure.
  const against = (figure, { axes, rows: options }, across, up) => {
    const traces = new Map(), rings = new Map();
    for (const [method, name, color, symbol, role, values] of options) {
      const x = values[across], y = values[up];
      if (!x || !y) continue;
      const told = (key, [value, error]) => `${escape(key)}: ${value.toPrecision(3)} ± ${error.toPrecision(2)}`;
      const hover = `<b>${escape(name)}</b><br>${told(across, x)}<br>${told(up, y)}`;
      const add = (to, key, more) => {
        if (!to.has(key)) {
          to.set(key, { type: "scatter", mode: "lines+markers", name: escape(key), x: [], y: [], text: [],
            line: { color, width: 1 }, marker: { color, symbol, size: symbol === "star" ? 17 : 11 },
            error_x: { array: [], color, thickness: 1.2, width: 3 }, error_y: { array: [], color, thickness: 1.2, width: 3 },
            hovertemplate: "%{text}<extra></extra>", ...more });
        }
        const trace = to.get(key);
        trace.x.push(x[0]);
        trace.y.push(y[0]);
        trace.text.push(hover);
        trace.error_x.array.push(x[1]);
        trace.error_y.array.push(y[1]);
      };
      add(traces, method, {});
      if (role) add(rings, role, { mode: "markers", marker: { color: "rgba(0,0,0,0)", symbol: "circle", size: 24,
        line: { color: "$accent", width: 3 } } });
    }
    const axis = (old, key) => {
      const [title, higher] = axes[key];
      const { range, ...rest } = old;
      return { ...rest, title: { ...old.title, text: title }, autorange: higher ? true : "reversed" };
    };
    const layout = { ...figure.layout, annotations: [], xaxis: axis(figure.layout.xaxis, across),
      yaxis: axis(figure.layout.yaxis, up) };
    return { data: [...traces.values(), ...rings.values()], layout };
  };

  const section = (box) => box.id.split("-")[0];
  const choice = (prefix, axis) => document.querySelector(`select[data-axis="${axis}"][data-of="${prefix}"]`).value;
  const wanted = (box) => {
    const found = points[section(box)];
    if (!box.id.includes("-tradeoff-") || !found) return figures[box.id];
    const [across, up] = ["x", "y"].map((axis) => choice(section(box), axis));
    const same = across === found.shown[0] && up === found.shown[1];
    return same ? figures[box.id] : against(figures[box.id], found, across, up);
  };

  const draw = (box) => {
    const figure = themed(wanted(box));
    const main = box.id.includes("-tradeoff-");
    if (narrow.matches) {
      // No room for names beside points: the legend and a tap tell them.
      delete figure.layout.annotations;
      // The legend takes a line for each trace.
      figure.layout.height += main ? 80 : 18 * figure.data.filter((trace) => trace.showlegend !== false).length;
      if (main) figure.layout.margin = { l: 50, r: 10, t: 10, b: 60 };
      for (const axis of ["xaxis", "yaxis"]) {
        const title = figure.layout[axis].title;
        if (title) title.font = { size: 11 };
      }
    }
    for (const trace of figure.data) {
      const pressed = document.querySelector(`[data-shows="${box.id}"][aria-pressed="true"]`);
      if (pressed && trace.name === pressed.dataset.name) trace.visible = true;
    }
    drawn.add(box);
    box.style.minHeight = figure.layout.height + "px";
    Plotly.react(box, figure.data, figure.layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: main && !narrow.matches ? "hover" : false,
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]],
    });
  };
  const redraw = () => drawn.forEach(draw);

  const save = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const asCsv = (table) => {
    const heads = [...new Set(table.flatMap(Object.keys))];
    const quoted = (value) => (/[",\n]/.test(value) ? `"${String(value).replace(/"/g, '""')}"` : value ?? "");
    return [heads, ...table.map((row) => heads.map((head) => row[head]))].map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  };
  const saves = {
    png: (prefix) => Plotly.downloadImage(`${prefix}-tradeoff-0`, { format: "png", scale: 2, filename: "tradeoff" }),
    csv: (prefix) => save("settings.csv", "text/csv", asCsv(rows[prefix])),
    json: (prefix) => save("settings.json", "application/json", JSON.stringify(rows[prefix], null, 1)),
  };

  // Figures are drawn when they come near: twenty at once would keep a phone busy for seconds.
  const start = () => {
    const boxes = [...document.querySelectorAll(".figure")];
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "800px" });
    for (const box of boxes) near.observe(box);
    window.addEventListener("beforeprint", () => boxes.filter((box) => !drawn.has(box)).forEach(draw));
    dark.addEventListener("change", redraw);
    narrow.addEventListener("change", redraw);
    for (const button of document.querySelectorAll("[data-shows]")) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
        button.textContent = button.getAttribute("aria-pressed") === "true" ? "Hide single runs" : "Show single runs";
        draw(document.getElementById(button.dataset.shows));
      });
    }
    for (const select of document.querySelectorAll("select[data-axis]")) {
      select.addEventListener("input", () => draw(document.getElementById(`${select.dataset.of}-tradeoff-0`)));
    }
    for (const button of document.querySelectorAll("[data-saves]")) {
      button.addEventListener("click", () => saves[button.dataset.saves](button.dataset.of));
    }
  };

  const themes = ["auto", "light", "dark"];
  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    root.dataset.theme = next;
    theme.textContent = "Theme: " + next;
    redraw();
  });

  // Paper folds nothing; what was folded is so again afterwards.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.fold:not([open])")];
    for (const one of folded) one.open = true;
  });
  window.addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));

  // The plotting library lies here compressed; as an element it must still have the hash that the policy names.
  const unpack = async () => {
    const script = document.createElement("script");
    script.textContent = await unzip("plotly");
    document.head.append(script);
    start();
  };
  const missing = (error) => {
    for (const box of document.querySelectorAll(".figure")) {
      box.textContent = "This browser cannot show the interactive figures; pareto.png beside this page has the main one.";
      box.style.minHeight = "0";
    }
    console.warn(error);
  };
  unpack().catch(missing);
})();
