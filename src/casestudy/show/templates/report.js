// What only a report does: folded prompts that links open, and a rail that says where the reader is.
(() => {
  "use strict";
  const { $, $$ } = casestudy;

  // A link to a folded prompt opens it; printing opens nothing that was closed.
  function unfold() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let at = target; at; at = at.parentElement) if (at.matches("details")) at.open = true;
    if (target && target.matches("details")) target.scrollIntoView();
  }
  addEventListener("hashchange", unfold);
  unfold();

  // A strip says whose account is open: without a choice the first one, which may be no token's.
  function current() {
    const tokens = $$(".strip a");
    const first = $(".account");
    const of = (hash) => tokens.find((a) => a.hash === hash);
    const open = of(location.hash) || (first && of(`#${first.id}`));
    tokens.forEach((a) => a.removeAttribute("aria-current"));
    if (open) open.setAttribute("aria-current", "true");
  }
  addEventListener("hashchange", current);
  current();

  // In a logit lens the last position decides the answer, so a wide one opens there.
  document.addEventListener("toggle", (event) => {
    $$(".scroll:has(> .lens)", event.target).forEach((box) => { box.scrollLeft = box.scrollWidth; });
  }, true);

  // Under whatever is wider than its place stands that there is more to the right.
  function hint() {
    $$("main .scroll").forEach((box) => {
      const wide = box.scrollWidth > box.clientWidth + 4;
      let note = box.nextElementSibling;
      if (!note || !note.matches(".wide")) {
        if (!wide) return;
        note = document.createElement("p");
        note.className = "caption wide";
        note.setAttribute("aria-hidden", "true");
        note.textContent = "More to the right: scroll \u2192";
        box.after(note);
      }
      note.hidden = !wide;
    });
  }
  addEventListener("resize", hint);
  document.addEventListener("toggle", hint, true);
  hint();

  // The rail says where the reader is.
  const links = new Map($$(".rail a").map((a) => [a.hash.slice(1), a]));
  const inView = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((a) => a.removeAttribute("aria-current"));
      const link = links.get(entry.target.id);
      if (link) link.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -75% 0px" });
  $$("main > section").forEach((section) => inView.observe(section));
  if (innerWidth < 1120) $(".rail details").open = false;
})();
