"use strict";
(() => {
  const tokens = document.getElementById("tokens");
  if (!tokens) return;
  const views = document.getElementById("views");
  const told = document.getElementById("told");
  let chosen = null;

  function colour() {
    const view = Number(views.elements.view.value);
    tokens.dataset.view = String(view);
    for (const box of [tokens, views]) box.classList.toggle("weights", view > 0);
    for (const token of tokens.querySelectorAll(".answer .t")) token.className = `t l${token.dataset.v[view]}`;
    if (chosen) chosen.classList.add("on");
    views.querySelector(".from").textContent = view ? "0" : "likely";
    views.querySelector(".to").textContent = view ? "weight 1" : "p < 0.001";
  }

  function choose(token) {
    if (chosen) chosen.classList.remove("on");
    chosen = token;
    told.hidden = !token;
    if (!token) return;
    token.classList.add("on");
    told.textContent = `“${token.textContent}”: ${token.title}`;
  }

  views.addEventListener("change", colour);
  views.addEventListener("submit", (event) => event.preventDefault());
  tokens.addEventListener("click", (event) => {
    const token = event.target.closest(".answer .t");
    choose(token === chosen ? null : token);
  });
  tokens.addEventListener("keydown", (event) => {
    const answer = event.target.closest(".answer");
    if (event.key === "Escape") choose(null);
    if (!answer || (event.key !== "ArrowRight" && event.key !== "ArrowLeft")) return;
    event.preventDefault();
    const inside = chosen && answer.contains(chosen);
    const next = event.key === "ArrowRight"
      ? inside ? chosen.nextElementSibling : answer.firstElementChild
      : inside ? chosen.previousElementSibling : answer.lastElementChild;
    if (next) choose(next);
  });
  colour(); // a browser may have kept another choice
})();
