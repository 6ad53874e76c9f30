// What figures do beyond standing there, in the report and on the live page: values on hover and
// under the keyboard, data beside each figure, downloads, a head's attention pattern. Everything
// shown is set as text, never as markup.
const casestudy = (() => {
  "use strict";
  const $ = (q, at = document) => at.querySelector(q);
  const $$ = (q, at = document) => [...at.querySelectorAll(q)];
  const shared = JSON.parse($("#shared").textContent);
  const tip = $(".tip"), said = $(".said");
  const cache = new WeakMap();

  function dataOf(figure) {
    if (!cache.has(figure)) cache.set(figure, JSON.parse($("script.data", figure).textContent));
    return cache.get(figure);
  }

  // The labels of the i-th cell, the last axis fastest.
  function labels(data, i) {
    const found = [];
    for (let d = data.axes.length - 1; d >= 0; d--) {
      const size = data.axes[d][1].length;
      found.unshift(data.axes[d][1][i % size]);
      i = Math.floor(i / size);
    }
    return found;
  }

  function shown(value) {
    if (value === null || value === undefined) return "not measured";
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2)
      : String(Number(value.toFixed(size < 1 ? 4 : 3)));
    return text.replace("-", "\u2212").replace("e+", "e");
  }

  function describe(data, i) {
    const at = labels(data, i), c = data.columns;
    const lines = data.axes.map(([name], d) => {
      const text = name === "prompt" && shared.prompts[at[d]];
      return `${name} ${at[d]}${text ? `: ${text}` : ""}`;
    });
    let value = c.value ? `${shown(c.value[i])} ${data.unit}` : "";
    if (c.lower && c.lower[i] !== null && c.lower[i] !== undefined)
      value += `  [${shown(c.lower[i])}, ${shown(c.upper[i])}]`;
    if (c.n && c.n[i]) value += `  n = ${c.n[i]}`;
    for (const name of Object.keys(c))
      if (!["value", "lower", "upper", "n"].includes(name)) value += `\n${name} ${shown(c[name][i])}`;
    return `${lines.join("\n")}\n${value}`;
  }

  function show(mark, x, y) {
    const figure = mark.closest("figure");
    tip.textContent = describe(dataOf(figure), Number(mark.dataset.i));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 6))}px`;
    tip.style.top = `${y + box.height + 18 > innerHeight ? y - box.height - 10 : y + 14}px`;
  }

  function leave() {
    tip.hidden = true;
    $$(".plot .on").forEach((mark) => mark.classList.remove("on"));
  }

  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest && event.target.closest("[data-i]");
    if (mark) show(mark, event.clientX, event.clientY);
    else if (!tip.hidden && !document.activeElement.matches(".plot")) leave();
  });
  addEventListener("scroll", () => { if (!document.activeElement.matches(".plot")) leave(); }, { passive: true });
  document.addEventListener("focusout", (event) => { if (event.target.matches(".plot")) leave(); });

  // Arrow keys walk over the marks of a focused plot; Enter does what a click would.
  // Escape closes what Enter opened: a figure's data, and a head that is still on its way. A dialog
  // closes by itself.
  function fold(at) {
    asked++;
    const button = at.closest && !at.closest("dialog") && $('[aria-expanded="true"]', at.closest("figure, .listing") || document.createElement("i"));
    if (button) { button.click(); button.focus(); }
  }
  document.addEventListener("keydown", (event) => {
    const plot = event.target;
    if (event.key === "Escape") { leave(); fold(event.target); }
    if (!plot.matches || !plot.matches(".plot")) return;
    const marks = $$("[data-i]", plot);
    if (!marks.length) return;
    const now = marks.findIndex((mark) => mark.classList.contains("on"));
    const axes = dataOf(plot.closest("figure")).axes;
    const row = axes.length > 1 ? axes[axes.length - 1][1].length : 1;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], turn = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" && now >= 0 && !marks[now].dataset.head && openCard(named(marks[now]))) return;
    if (event.key === "Enter" && now >= 0) return marks[now].dispatchEvent(new MouseEvent("click", { bubbles: true }));
    let next = event.key === "Home" ? 0 : event.key === "End" ? marks.length - 1 : null;
    if (step || turn) next = now < 0 ? 0 : now + (step || 0);
    if (turn && now >= 0) next = beyond(marks, now, turn, row);
    if (next === null) return;
    event.preventDefault();
    if (next < 0 || next >= marks.length) return;
    leave();
    marks[next].classList.add("on");
    const box = marks[next].getBoundingClientRect();
    show(marks[next], box.x + Math.min(box.width, 60), box.y + box.height / 2);
    said.textContent = tip.textContent;
  });

  // A node of a circuit under the pointer: the edges that are not its own step back.
  document.addEventListener("pointerover", (event) => {
    const node = event.target.closest && event.target.closest("[data-node]");
    $$(".plot .dim").forEach((edge) => edge.classList.remove("dim"));
    if (!node) return;
    $$("[data-ends]", node.closest(".plot")).forEach((edge) =>
      edge.classList.toggle("dim", !edge.dataset.ends.split(" ").includes(node.dataset.node)));
  });

  // The nearest mark in the next row that has any; cells without a value have no mark.
  function beyond(marks, now, turn, row) {
    const places = marks.map((mark) => Number(mark.dataset.i));
    const line = (i) => Math.floor(places[i] / row), across = (i) => places[i] % row;
    let best = -1;
    marks.forEach((_, i) => {
      const far = (line(i) - line(now)) * turn;
      if (far < 1) return;
      const before = best < 0 ? Infinity : (line(best) - line(now)) * turn;
      if (far < before || (far === before && Math.abs(across(i) - across(now)) < Math.abs(across(best) - across(now)))) best = i;
    });
    return best;
  }

  // Rows for people and for CSV alike.
  function rows(data) {
    const names = Object.keys(data.columns);
    const prompts = data.axes.findIndex(([name]) => name === "prompt");
    const head = [...data.axes.map(([name]) => name), ...(prompts < 0 ? [] : ["text"]), ...names, "unit"];
    const total = data.columns[names[0]].length, body = [];
    for (let i = 0; i < total; i++) {
      if (data.columns[names[0]][i] === null) continue;
      const at = labels(data, i);
      body.push([...at, ...(prompts < 0 ? [] : [shared.prompts[at[prompts]] || ""]),
        ...names.map((name) => data.columns[name][i]), data.unit]);
    }
    return [head, body];
  }

  // A table's columns as rows.
  function tableRows(listing) {
    const columns = JSON.parse($("script.cells-data", listing).textContent), head = Object.keys(columns);
    return [head, columns[head[0]].map((_, i) => head.map((name) => columns[name][i]))];
  }

  function csv([head, body]) {
    const cell = (value) => {
      if (value === null || value === undefined) return "";
      if (typeof value === "number") return String(value);
      // A text that a spreadsheet would run as a formula gets an apostrophe.
      const text = /^[=+\-@\t\r]/.test(value) && isNaN(Number(value)) ? `'${value}` : value;
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [head, ...body].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  function toggleData(figure, button) {
    const open = $(".cells", figure);
    button.setAttribute("aria-expanded", String(!open));
    if (open) return open.remove();
    const data = dataOf(figure), [head, body] = rows(data), most = 500;
    const box = document.createElement("div"), table = document.createElement("table");
    box.className = "cells";
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Data of this figure");
    const line = (cells, tag, to) => {
      const tr = to.insertRow();
      for (const value of cells) {
        const td = document.createElement(tag);
        if (tag === "th") td.scope = "col";
        td.textContent = typeof value === "number" ? shown(value) : value ?? "";
        if (typeof value === "number") td.className = "num";
        tr.append(td);
      }
    };
    line(head, "th", table.createTHead());
    const to = table.createTBody();
    body.slice(0, most).forEach((row) => line(row, "td", to));
    box.append(table);
    const note = document.createElement("p");
    note.className = "caption";
    note.textContent = (body.length > most ? `The first ${most} of ${body.length} rows; all are in the CSV. ` : "")
      + (data.source ? `Stored in ${data.source}.` : "");
    box.append(note);
    $(".tools", figure).after(box);
  }

  // A plot as a file of its own: computed styles written out, colours as plain rgb.
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const seen = new Map();
  function rgb(colour) {
    if (!/color|oklab|oklch|lab|lch/.test(colour)) return colour;
    if (!seen.has(colour)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b] = pen.getImageData(0, 0, 1, 1).data;
      seen.set(colour, `rgb(${r},${g},${b})`);
    }
    return seen.get(colour);
  }

  // With what a drawing has where nothing is said, which need not be.
  const MARKS = { fill: "rgb(0, 0, 0)", "fill-opacity": "1", stroke: "none", "stroke-width": "1px",
    "stroke-dasharray": "none", opacity: "1", "vector-effect": "none" };
  const TEXTS = { "font-family": "", "font-size": "", "font-weight": "400", "text-anchor": "start", "dominant-baseline": "auto" };

  function standalone(plot) {
    const NS = "http://www.w3.org/2000/svg";
    const [top, right, bottom, left] = plot.dataset.pad.split(" ").map(Number);
    const box = plot.getBoundingClientRect();
    const title = plot.closest("figure").querySelector("figcaption").textContent.trim().replace(/^Figure \d+\.\s*/, "");
    const out = document.createElementNS(NS, "svg"), page = getComputedStyle(document.body);
    const width = Math.ceil(box.width), height = Math.ceil(box.height) + 24;
    const set = (node, values) => Object.entries(values).forEach(([k, v]) => node.setAttribute(k, v));
    set(out, { xmlns: NS, width, height, viewBox: `0 0 ${width} ${height}` });
    const named = document.createElementNS(NS, "title");
    named.textContent = plot.getAttribute("aria-label");
    const back = document.createElementNS(NS, "rect");
    set(back, { width, height, fill: page.backgroundColor });
    const heading = document.createElementNS(NS, "text");
    set(heading, { x: 8, y: 16, fill: page.color, "font-family": "sans-serif", "font-size": 13 });
    heading.textContent = title;
    const inner = document.createElementNS(NS, "svg");
    set(inner, { x: left, y: top + 24, width: width - left - right, height: box.height - top - bottom, overflow: "visible" });
    inner.append(...[...plot.childNodes].map((node) => node.cloneNode(true)));
    const from = $$("*", plot), to = $$("*", inner);
    from.forEach((node, i) => {
      const style = getComputedStyle(node);
      const kept = node.matches("text") ? { ...MARKS, ...TEXTS } : node.matches("svg, g") ? {} : MARKS;
      for (const [name, usual] of Object.entries(kept)) {
        const value = style.getPropertyValue(name);
        if (value && value !== usual) to[i].setAttribute(name, rgb(value));
      }
      for (const name of ["class", "style", "data-i", "data-head", "data-node", "data-ends", "data-part"]) to[i].removeAttribute(name);
    });
    out.append(named, back, heading, inner);
    return [new XMLSerializer().serializeToString(out), width, height];
  }

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function fileName(figure, kind) {
    const text = $(".head", figure).textContent.trim().toLowerCase();
    return `${text.replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60)}.${kind}`;
  }

  function savePng(figure) {
    const [text, width, height] = standalone($(".plot", figure));
    const image = new Image();
    image.onload = () => {
      const sheet = document.createElement("canvas");
      sheet.width = width * 2;
      sheet.height = height * 2;
      sheet.getContext("2d").drawImage(image, 0, 0, sheet.width, sheet.height);
      sheet.toBlob((blob) => save(blob, fileName(figure, "png")));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (!button) return;
    const figure = button.closest("figure, .listing"), what = button.dataset.do;
    if (what === "data") toggleData(figure, button);
    if (what === "csv") save(new Blob([csv(figure.matches("figure") ? rows(dataOf(figure)) : tableRows(figure))], { type: "text/csv" }), fileName(figure, "csv"));
    if (what === "svg") save(new Blob([standalone($(".plot", figure))[0]], { type: "image/svg+xml" }), fileName(figure, "svg"));
    if (what === "png") savePng(figure);
  });

  // Buttons that need this script stand hidden until it runs.
  function ready(at = document) {
    $$(".tools, .theme", at).forEach((node) => { node.hidden = false; });
  }
  ready();

  $(".theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  });

  // A head's attention pattern, opened from anywhere that names a head. In a report every pattern
  // lies in the page; a live page sets `patterns` to ask for one when it is opened.
  const dialog = $("dialog.head-view");
  const own = {
    prompts: Object.keys(shared.patterns).map((key) => [key, shared.prompts[key] || ""]),
    async get(prompt, layer, at) {
      const of = shared.patterns[prompt];
      if (!of || !of.layers.includes(layer) || !of.heads.includes(at)) return null;
      of.data ||= bytes(of.bytes);
      const size = (of.tokens.length * (of.tokens.length + 1)) / 2;
      const from = (of.layers.indexOf(layer) * of.heads.length + of.heads.indexOf(at)) * size;
      return { tokens: of.tokens, data: of.data.subarray(from, from + size) };
    },
  };
  // The card of a part: a page beside a report, or what a live page makes when it is opened.
  let cards = {
    of(name) {
      if (!shared.cards) return [];
      if (shared.cards[name]) return [node("a", { href: shared.cards[name], textContent: `Card of ${name}` })];
      return [node("span", { textContent: `Its card: casestudy parts DIR --part "${name}" --corpus TEXT` })];
    },
    open(name) {
      const address = shared.cards && shared.cards[name];
      if (address) location.href = address;
      return Boolean(address);
    },
  };
  // What a mark may be called: its labels, alone and after their axis ("neuron 3.512").
  function named(mark) {
    const data = dataOf(mark.closest("figure"));
    return labels(data, Number(mark.dataset.i)).flatMap((label, d) => [label, `${data.axes[d][0]} ${label}`]);
  }
  // The first of some labels that is a part with a card; whether there is one.
  function openCard(names) {
    return names.some((name) => /^(head|neuron) \d+\.\d+$|^mlp \d+$/.test(name) && cards.open(name));
  }
  document.addEventListener("click", (event) => {
    const label = event.target.closest(".plot [data-part]");
    if (label) openCard([label.dataset.part]);
  });
  let patterns = own, of = null, head = null, prompt = null, query = null, asked = 0;

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  }

  // A pattern's entry: a byte each, on and below the diagonal, row after row.
  function entry(row, column) {
    return column > row ? 0 : of.data[(row * (row + 1)) / 2 + column] / 255;
  }

  function node(tag, options = {}, ...children) {
    const made = document.createElement(tag);
    const { style, ...rest } = options;
    for (const [name, value] of Object.entries(rest))
      if (name in made && name !== "list") made[name] = value;
      else made.setAttribute(name, value);
    if (style !== undefined) made.style.setProperty("--t", style);
    made.append(...children);
    return made;
  }

  function drawHead(focus) {
    const [layer, at] = head, n = of.tokens.length;
    if (query === null || query >= n) query = n - 1;
    const choose = node("select", { ariaLabel: "Prompt" }, ...patterns.prompts.map(([key, text]) =>
      node("option", { value: key, selected: key === prompt, textContent: `${key}: ${text.slice(0, 60)}` })));
    choose.addEventListener("change", () => openHead(`${layer}.${at}`, choose.value));
    const close = node("button", { type: "button", className: "close", textContent: "Close" });
    close.addEventListener("click", () => dialog.close());
    const chips = node("p", { className: "toks" }, ...of.tokens.map((token, i) => {
      const share = entry(query, i);
      const chip = node("button", { type: "button", ariaPressed: String(i === query), textContent: token, style: share,
        title: i > query ? "comes later" : `${Math.round(share * 100)} % of the attention from ${of.tokens[query]}` });
      chip.dataset.pos = i;
      chip.addEventListener("pointerenter", () => { if (query !== i) { query = i; drawHead(); } });
      chip.addEventListener("focus", () => { if (query !== i) { query = i; drawHead(i); } });
      chip.addEventListener("click", () => { query = i; drawHead(i); });
      return chip;
    }));
    const ranked = of.tokens.map((token, i) => [entry(query, i), token, i])
      .sort((a, b) => b[0] - a[0]).filter(([share]) => share >= 0.005).slice(0, 4);
    const words = `From “${of.tokens[query]}” (position ${query}): ` + ranked.map(([share, token, i]) =>
      `${Math.round(share * 100)} % on “${token}” (${i})`).join(", ") + ".";
    dialog.replaceChildren(
      node("h2", { id: "head-view-h", textContent: `Where head ${layer}.${at} looks` }),
      node("div", { className: "bar" }, choose, ...cards.of(`head ${layer}.${at}`), close), chips,
      node("p", { className: "caption", textContent: words + " Point at a token, or move to it with Tab, to see what it attends to. Below, rows are queries and columns keys." }),
      cells(n, `Attention pattern of head ${layer}.${at}, queries down, keys across. ${words}`));
    if (focus === "select") choose.focus();
    else if (focus !== undefined) $(`[data-pos="${focus}"]`, dialog).focus();
  }

  // The whole pattern: an element per entry, or one picture where there are too many.
  const MOST_TOKENS = 64;
  function cells(n, ariaLabel) {
    if (n > MOST_TOKENS) return picture(n, ariaLabel);
    const map = node("div", { className: "map", role: "img", ariaLabel });
    const named = n <= 40;
    map.style.gridTemplateColumns = `${named ? "minmax(3rem, max-content) " : ""}repeat(${n}, minmax(0, 26px))`;
    for (let row = 0; row < n; row++) {
      if (named) map.append(node("b", { textContent: of.tokens[row], className: row === query ? "row" : "" }));
      for (let column = 0; column < n; column++)
        map.append(node("i", { style: entry(row, column), className: row === query ? "row" : "",
          title: column > row ? "" : `${of.tokens[row]} \u2192 ${of.tokens[column]}: ${Math.round(entry(row, column) * 100)} %` }));
    }
    return map;
  }

  function picture(n, ariaLabel) {
    const size = Math.max(2, Math.floor(640 / n)), sheet = node("canvas", { role: "img", ariaLabel, width: n * size, height: n * size });
    const brush = sheet.getContext("2d"), shade = node("i", { className: "shade", style: 0 });
    dialog.append(shade);
    brush.fillStyle = getComputedStyle(shade).backgroundColor;
    brush.fillRect(0, 0, sheet.width, sheet.height);
    shade.style.setProperty("--t", 1);
    brush.fillStyle = getComputedStyle(shade).backgroundColor;
    shade.remove();
    for (let row = 0; row < n; row++)
      for (let column = 0; column <= row; column++) {
        brush.globalAlpha = entry(row, column);
        brush.fillRect(column * size, row * size, size, size);
      }
    return sheet;
  }

  async function openHead(name, wanted = prompt) {
    const keys = patterns.prompts.map(([key]) => key);
    const chosen = keys.includes(wanted) ? wanted : keys[0];
    const [layer, at] = name.split("."), mine = ++asked, found = await patterns.get(chosen, layer, at);
    if (!found || mine !== asked) return;
    [of, head, prompt, query] = [found, [layer, at], chosen, null];
    leave();
    drawHead("select");
    if (!dialog.open) dialog.showModal();
    $("select", dialog).focus();
    document.dispatchEvent(new CustomEvent("head", { detail: name }));
  }
  document.addEventListener("click", (event) => {
    const named = event.target.closest("[data-head]");
    if (named) openHead(named.dataset.head);
    else if (event.target === dialog) dialog.close();
  });

  return { $, $$, bytes, labels, leave, node, openHead, ready, say: (text) => { said.textContent = text; },
    set patterns(from) { patterns = from; }, set cards(from) { cards = from; } };
})();
