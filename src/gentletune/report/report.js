"use strict";
(() => {
  const source = document.getElementById("figures").textContent;
  const narrow = window.matchMedia("(max-width: 700px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  // A colour written $ink is the page's --ink of the moment.
  const themed = () => {
    const style = getComputedStyle(document.documentElement);
    return JSON.parse(source, (key, value) =>
      /color$/.test(key) && typeof value === "string" && value.startsWith("$")
        ? style.getPropertyValue("--" + value.slice(1)).trim()
        : value);
  };

  const draw = () => {
    for (const [id, figure] of Object.entries(themed())) {
      const box = document.getElementById(id);
      if (narrow.matches) {
        // No room for names beside points: the legend and a tap tell them.
        delete figure.layout.annotations;
        if (id === "tradeoff") figure.layout.margin = { l: 50, r: 10, t: 10, b: 60 };
        for (const axis of ["xaxis", "yaxis"]) {
          const title = figure.layout[axis].title;
          if (title) title.font = { size: 11 };
        }
      }
      Plotly.react(box, figure.data, figure.layout, {
        responsive: true,
        displaylogo: false,
        displayModeBar: id === "tradeoff" && !narrow.matches ? "hover" : false,
        modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
      });
    }
  };

  draw();
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
})();
