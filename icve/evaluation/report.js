"use strict";
(() => {
  const section = document.getElementById("examples");
  if (!section) return;
  const control = (id) => document.getElementById(id);
  const list = control("cards");
  const cards = [...list.children].map((article) => ({
    article,
    sheet: article.querySelector("img"),
    canvases: [...article.querySelectorAll("canvas")],
    frames: Number(article.dataset.frames),
    near: true,
  }));

  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let frame = 0;
  let due = 0;

  // Mean absolute difference to the source's pixels, from black through red and yellow to white.
  function heatMap(context, source) {
    const { width, height } = context.canvas;
    const image = context.getImageData(0, 0, width, height);
    const pixels = image.data;
    for (let i = 0; i < pixels.length; i += 4) {
      let sum = 0;
      for (let c = 0; c < 3; c++) sum += Math.abs(pixels[i + c] - source[i + c]);
      const heat = Math.min(1, sum / 300) * 3;
      for (let c = 0; c < 3; c++) pixels[i + c] = 255 * Math.min(1, Math.max(0, heat - c));
    }
    context.putImageData(image, 0, 0);
  }

  function draw(card) {
    if (!card.sheet.complete || !card.sheet.naturalWidth) return;
    const heat = control("heat").checked;
    let source = null;
    for (const canvas of card.canvases) {
      const { width, height } = canvas;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const x = Number(canvas.dataset.column) * width;
      const y = (frame % card.frames) * height;
      context.drawImage(card.sheet, x, y, width, height, 0, 0, width, height);
      if (!heat) continue;
      if (source === null) source = context.getImageData(0, 0, width, height).data;
      else heatMap(context, source);
    }
  }

  function drawAll() {
    for (const card of cards) if (card.near && !card.article.hidden) draw(card);
  }

  // Every clip shows the same frame number: one clock, advanced here only.
  function tick(now) {
    const interval = 1000 / (Number(section.dataset.fps) * Number(control("speed").value));
    if (playing && now >= due) {
      due = Math.max(due + interval, now);
      frame += 1;
      drawAll();
    }
    requestAnimationFrame(tick);
  }

  function setPlaying(value) {
    playing = value;
    control("play").textContent = playing ? "Pause" : "Play";
  }

  function arrange() {
    const kind = control("kind").value;
    const outcome = control("outcome").value;
    let shown = 0;
    for (const { article } of cards) {
      article.hidden = (kind && article.dataset.kind !== kind) || (outcome && article.dataset.outcome !== outcome);
      shown += !article.hidden;
    }
    const order = control("order").value;
    const key = order.replace("-", "");
    const sign = key === "index" || order.startsWith("-") ? 1 : -1;
    const sorted = [...cards].sort((a, b) => sign * (a.article.dataset[key] - b.article.dataset[key]));
    for (const { article } of sorted) list.append(article);
    control("shown").textContent = `${shown} of ${cards.length} shown`;
    drawAll();
  }

  control("play").addEventListener("click", () => setPlaying(!playing));
  control("step").addEventListener("click", () => {
    setPlaying(false);
    frame += 1;
    drawAll();
  });
  control("heat").addEventListener("change", drawAll);
  for (const id of ["kind", "outcome", "order"]) control(id).addEventListener("change", arrange);
  for (const card of cards) card.sheet.addEventListener("load", () => draw(card));

  // Cards far from the window are not drawn.
  const byArticle = new Map(cards.map((card) => [card.article, card]));
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const card = byArticle.get(entry.target);
        card.near = entry.isIntersecting;
        if (card.near) draw(card);
      }
    },
    { rootMargin: "300px" },
  );
  for (const card of cards) observer.observe(card.article);

  setPlaying(playing);
  arrange();
  requestAnimationFrame(tick);
})();
