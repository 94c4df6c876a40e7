(() => {
  const figures = document.getElementById("figures").textContent;
  const narrow = window.matchMedia("(max-width: 700px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const drawn = new Set();

  // A colour written $ink is the page's --ink of the moment.
  const themed = () => {
    const style = getComputedStyle(root);
    return JSON.parse(figures, (key, value) =>
      /color$/.test(key) && typeof value === "string" && value.startsWith("$")
        ? style.getPropertyValue("--" + value.slice(1)).trim()
        : value);
  };
  let current = themed();

  const draw = (box) => {
    const figure = structuredClone(current[box.id]);
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
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    });
  };

  const redraw = () => {
    current = themed();
    for (const box of drawn) draw(box);
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
  };

  const themes = ["auto", "light", "dark"];
  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
    root.dataset.theme = next;
    theme.textContent = "Theme: " + next;
    redraw();
  });

  // The plotting library lies here compressed; as an element it must still have the hash that the policy names.
  const unpack = async () => {
    const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
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
