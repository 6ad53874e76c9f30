// The live page: what is typed becomes the address, the address is asked of the server, and the
// answer's HTML takes its places. A newer question withdraws an older one.
(() => {
  "use strict";
  const { $, $$, bytes, openHead, ready } = casestudy;
  const PAUSE = 120; // milliseconds without a keystroke after which something is asked
  const form = $("#ask"), status = $("#status"), progress = $("#progress");
  const fields = Object.fromEntries(["prompt", "corrupted", "answer", "counterpart", "view", "site", "by", "direction", "special", "chat", "prefix", "readout"]
    .map((name) => [name, $(`textarea[name="${name}"], select[name="${name}"], input[name="${name}"]`)]));
  const usual = { view: "clean", site: "resid_pre", by: "", direction: "denoising", corrupted: "", answer: "", counterpart: "", special: "", chat: "", prefix: "", readout: "" };
  const dialog = $("dialog.head-view");
  let state = JSON.parse($("#state").textContent), head = new URLSearchParams(location.search).get("head") || "", part = new URLSearchParams(location.search).get("part") || "";
  const page = `${Date.now().toString(36)}${Math.random().toString(36).slice(2)}`; // of its questions the newest wins
  let asking = null, patching = null, carding = null, pause = 0, whole = true;

  // What the page shows, as a query string without what it need not say.
  function query(changes = {}) {
    const said = new URLSearchParams();
    for (const [name, field] of Object.entries(fields)) {
      const value = name in changes ? changes[name] : field.value;
      if (value !== usual[name]) said.set(name, value);
    }
    for (const name of ["head", "part"]) if (changes[name]) said.set(name, changes[name]);
    return said.toString();
  }

  function remember() {
    $("#view").hidden = !fields.corrupted.value;
    $("#prefix").hidden = !fields.chat.value;
    $("#last").hidden = !fields.readout.value;
    $("#special").hidden = "plain" in form.dataset || Boolean(fields.chat.value); // a template's are parsed
    history.replaceState(null, "", `/?${query({ head, part })}`);
  }

  function say(text, wrong = false) {
    status.textContent = text;
    status.classList.toggle("wrong", wrong);
  }

  const wait = (ms, signal) => new Promise((done, stop) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); stop(signal.reason); });
  });

  // A question that is asked again while the server is busy, until it is answered or withdrawn.
  async function ask(address, signal) {
    for (let busy = false; ; busy = true) {
      const answer = await fetch(address, { signal, headers: { "x-page": page } });
      if (answer.status !== 429) {
        if (busy) say("");
        return answer;
      }
      say("The server is busy; asking again.");
      await wait(1000 * Number(answer.headers.get("retry-after") || 1), signal);
    }
  }

  async function problemOf(answer) {
    const text = await answer.text();
    try { return JSON.parse(text).problem || text; } catch { return text || `The server answered ${answer.status}.`; }
  }

  function place(name, html) {
    const at = document.getElementById(name), focused = at.contains(document.activeElement) ? document.activeElement : null;
    const key = focused && focused.matches("button[name]") ? [focused.name, focused.value] : focused && focused.matches(".plot");
    const open = $$("details", at).map((fold) => fold.open);
    at.innerHTML = html;
    $$("details", at).forEach((fold, i) => { fold.open = Boolean(open[i]); });
    ready(at);
    rove(at);
    at.classList.remove("stale");
    // Focus stays where it was, if what had it is still there.
    if (key === true) { const plot = $(".plot", at); if (plot) plot.focus({ preventScroll: true }); }
    else if (key) {
      const same = $$("button[name]", at).find((b) => b.name === key[0] && b.value === key[1]);
      if (same) same.focus({ preventScroll: true });
    }
  }

  // Of a prompt's tokens one is reached by Tab, the others by arrow keys.
  function rove(at) {
    $$(".reading button", at).forEach((button) => { button.tabIndex = button.ariaPressed === "true" ? 0 : -1; });
  }
  form.addEventListener("keydown", (event) => {
    const tokens = event.target.matches(".reading button") ? $$(".reading button") : [], now = tokens.indexOf(event.target);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (now < 0 || next === undefined) return;
    event.preventDefault();
    if (tokens[next]) tokens[next].focus();
  });

  const failed = (error) => error.name === "AbortError" ? "" : "The explorer does not answer. Is it still running?";

  async function update() {
    clearTimeout(pause);
    if (asking) asking.abort();
    if (patching) patching.abort();
    if (part) passed();
    const own = asking = new AbortController();
    remember();
    const began = performance.now();
    try {
      const answer = await ask(`/panels?${query()}`, own.signal);
      const found = answer.ok ? await answer.json() : { problem: await problemOf(answer) };
      if (found.problem) {
        $$(".place").forEach((node) => node.classList.add("stale"));
        state = {};
        save();
        progress.textContent = "";
        return say(found.problem, true);
      }
      state = found.state;
      for (const [name, html] of Object.entries(found.html)) place(name, html);
      save();
      say("");
      status.dataset.took = Math.round(performance.now() - began);
      patch();
    } catch (error) {
      if (asking === own) say(failed(error), true);
    }
  }

  function save() {
    const link = $("#save");
    link.hidden = !state.save;
    if (state.save) link.href = state.save; else link.removeAttribute("href");
  }

  // What is computed for longer arrives in lines, of which the newest counts.
  async function eachLine(answer, failed, show) {
    const streamed = answer.ok && answer.headers.get("content-type").startsWith("application/x-ndjson");
    if (!streamed) return failed(await problemOf(answer));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      if (!lines.length) continue;
      const line = JSON.parse(lines[lines.length - 1]);
      if (line.problem) return failed(line.problem);
      show(line);
    }
  }

  // A patch grid arrives in lines, each with the grid so far.
  async function patch() {
    if (patching) patching.abort();
    const own = patching = new AbortController(), target = $("#patch");
    const tell = (text) => { progress.textContent = text; };
    whole = !state.patch;
    tell("");
    if (!state.patch) {
      const why = state.weighed ? "Patching needs a corrupted prompt: it puts activations of one run into the other, cell by cell."
        : "Patching needs an answer and a counterpart.";
      target.classList.remove("stale");
      target.replaceChildren(casestudy.node("p", { className: "caption", textContent: why }));
      return;
    }
    target.classList.add("stale");
    tell("patching…");
    try {
      const answer = await ask(`/patch?${query({ answer: state.answer, counterpart: state.counterpart })}`, own.signal);
      await eachLine(answer, failedPatch, (line) => {
        place("patch", line.html);
        whole = line.finished;
        tell(line.finished ? "" : `${line.done} of ${line.total} cells`);
      });
    } catch (error) {
      if (patching === own && error.name !== "AbortError") failedPatch(failed(error));
    }

    function failedPatch(why) {
      whole = true;
      tell("");
      target.classList.remove("stale");
      target.replaceChildren(casestudy.node("p", { className: "notice", role: "alert", textContent: why }));
    }
  }

  // The card of a part: asked when its name is clicked on, and again when the prompt is another.
  const section = $("#part-section"), heading = $("#part-h"), again = $("#part-again");
  function entitle(name) {
    heading.textContent = name.startsWith("mlp") ? `${name}: its neurons` : `What does ${name} do? Its card`;
  }
  async function openPart(name) {
    if (carding) carding.abort();
    const own = carding = new AbortController(), tell = (text) => { $("#part-progress").textContent = text; };
    part = name;
    remember();
    section.hidden = false;
    again.hidden = true;
    entitle(name);
    $("#part").classList.add("stale");
    tell("measuring…");
    section.scrollIntoView({ block: "start" });
    heading.focus({ preventScroll: true });
    const wrong = (why) => {
      tell("");
      $("#part").classList.remove("stale");
      $("#part").replaceChildren(casestudy.node("p", { className: "notice", role: "alert", textContent: why }));
    };
    // The model answers one question at a time: a grid under way yields, and is asked again.
    const unfinished = !whole;
    if (unfinished) patching.abort();
    try {
      const answer = await ask(`/part?${query({ answer: state.answer || fields.answer.value, counterpart: state.counterpart || fields.counterpart.value, part })}`, own.signal);
      await eachLine(answer, wrong, (line) => {
        if (line.finished) { entitle(line.part); place("part", line.html); return tell(""); }
        const share = line.total ? ` (${Math.round((100 * line.done) / line.total)} %)` : "";
        tell(`${line.note}${share}…`);
      });
    } catch (error) {
      if (carding === own && error.name !== "AbortError") wrong(failed(error));
    } finally {
      if (unfinished && !whole) patch();
    }
  }

  // The prompt is another: an open card stays, and says so.
  function passed() {
    if (carding) carding.abort();
    $("#part-progress").textContent = "The prompt has changed since.";
    again.hidden = false;
  }

  function closePart() {
    if (carding) carding.abort();
    part = "";
    section.hidden = true;
    $("#part").replaceChildren();
    remember();
  }
  again.addEventListener("click", () => openPart(part));
  $("#part-close").addEventListener("click", closePart);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-part]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (dialog.open) dialog.close();
    openPart(link.dataset.part);
  });
  casestudy.cards = {
    open(name) { openPart(name); return true; },
    of: (name) => [casestudy.node("a", { href: `/card?${query({ part: name })}`, textContent: `Card of ${name}`, "data-part": name })],
  };

  const limit = Number(fields.prompt.maxLength);
  form.addEventListener("input", (event) => {
    if (event.target.matches("select")) return;
    clearTimeout(pause);
    pause = setTimeout(update, PAUSE);
  });
  // Text cut at the longest that is read would be another prompt: what does not fit is not pasted.
  form.addEventListener("paste", (event) => {
    const text = (event.clipboardData || new DataTransfer()).getData("text");
    if (event.target.maxLength > 0 && event.target.value.length + text.length > event.target.maxLength) {
      event.preventDefault();
      say(`What was pasted is ${text.length.toLocaleString("en")} characters long; a prompt may have ${limit.toLocaleString("en")}.`, true);
    }
  });
  document.addEventListener("change", (event) => {
    const name = event.target.name;
    if (["view", "special", "chat"].includes(name)) update();
    else if (["site", "by", "direction"].includes(name)) { remember(); patch(); }
    else if (event.target.id === "picks" && event.target.value) choosePrompt(new URLSearchParams(event.target.value));
  });

  function choosePrompt(chosen) {
    for (const name of ["prompt", "corrupted", "answer", "counterpart", "special", "chat", "prefix", "readout"]) fields[name].value = chosen.get(name) ?? usual[name];
    update();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const button = event.submitter;
    if (button && button.name in fields) fields[button.name].value = button.value;
    if (button && button.id === "last") fields.prompt.focus(); // the button goes
    update();
  });
  $("#clear").addEventListener("click", () => { fields.answer.value = fields.counterpart.value = ""; update(); });
  $("#copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied.");
  });
  $$("#copy, #clear").forEach((button) => { button.hidden = false; });

  // Heads' patterns come when they are opened, and an open one is part of the address.
  casestudy.patterns = {
    get prompts() {
      const texts = [["clean", fields.prompt.value], ["corrupted", fields.corrupted.value]];
      const there = fields.corrupted.value ? texts : texts.slice(0, 1);
      return fields.view.value === "corrupted" ? there.reverse() : there;
    },
    // The model answers one question at a time: a grid under way yields to a head, and is asked again.
    async get(view, layer, at) {
      const unfinished = !whole;
      if (unfinished) patching.abort();
      try {
        const answer = await ask(`/pattern?${query({ view, head: `${layer}.${at}` })}`, new AbortController().signal);
        const found = answer.ok ? await answer.json() : { problem: await problemOf(answer) };
        if (!found.problem) return { tokens: found.tokens, data: bytes(found.bytes) };
        say(found.problem, true);
      } catch (error) {
        say(failed(error), true);
      } finally {
        if (unfinished && !whole) patch();
      }
      return null;
    },
  };
  document.addEventListener("head", (event) => { head = event.detail; remember(); });
  dialog.addEventListener("close", () => { head = ""; remember(); });

  rove(form);
  // A page that opened while the server was busy has no panels yet.
  if (state.weighed === undefined && !state.problem) update(); else patch();
  if (head) openHead(head);
  if (part) openPart(part);
})();
