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
    fps: Number(article.dataset.fps),
    near: true,
  }));

  const fastest = Math.max(...cards.map((card) => card.fps));
  const slowest = Math.min(...cards.map((card) => card.fps));
  const chosen = (id) => control(id)?.value ?? "";

  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let clock = 0; // seconds of video since the page was opened; every clip shows its frame at this time
  let last = null;

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
      const y = (Math.floor(clock * card.fps + 1e-6) % card.frames) * height;
      context.drawImage(card.sheet, x, y, width, height, 0, 0, width, height);
      if (!heat) continue;
      if (source === null) source = context.getImageData(0, 0, width, height).data;
      else heatMap(context, source);
    }
  }

  function drawAll() {
    for (const card of cards) if (card.near && !card.article.hidden) draw(card);
  }

  // One clock for all clips, advanced here and by "Next frame" only.
  function tick(now) {
    if (playing && last !== null) {
      const frame = Math.floor(clock * fastest);
      clock += ((now - last) / 1000) * Number(control("speed").value);
      if (Math.floor(clock * fastest) !== frame) drawAll();
    }
    last = now;
    requestAnimationFrame(tick);
  }

  function setPlaying(value) {
    playing = value;
    control("play").textContent = playing ? "Pause" : "Play";
  }

  function arrange() {
    const kind = chosen("kind");
    const outcome = chosen("outcome");
    const least = chosen("least");
    let shown = 0;
    for (const { article } of cards) {
      const data = article.dataset;
      article.hidden =
        (kind && data.kind !== kind) ||
        (outcome && data.outcome !== outcome) ||
        (least !== "" && !(Number(data[chosen("figure")] ?? NaN) >= Number(least)));
      shown += !article.hidden;
    }
    const order = chosen("order");
    const key = order.replace("-", "");
    const sign = key === "index" || order.startsWith("-") ? 1 : -1;
    const value = (card) => Number(card.article.dataset[key] ?? NaN);
    const compare = (a, b) => {
      if (key === "kind") return a.article.dataset.kind.localeCompare(b.article.dataset.kind);
      const [x, y] = [value(a), value(b)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // without a figure: last
      return sign * (x - y);
    };
    for (const { article } of [...cards].sort(compare)) list.append(article);
    control("shown").textContent = `${shown} of ${cards.length} shown`;
    drawAll();
  }

  control("play").addEventListener("click", () => setPlaying(!playing));
  control("step").addEventListener("click", () => {
    setPlaying(false);
    clock = (Math.floor(clock * slowest + 1e-6) + 1) / slowest;
    drawAll();
  });
  control("heat").addEventListener("change", drawAll);
  for (const id of ["kind", "outcome", "figure", "least", "order"]) control(id)?.addEventListener("input", arrange);
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
