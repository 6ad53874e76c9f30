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

  // The strip of a generated text says whose account is open.
  function current() {
    const tokens = $$(".strip a");
    const open = tokens.find((a) => a.hash === location.hash) || tokens[0];
    tokens.forEach((a) => a.removeAttribute("aria-current"));
    if (open) open.setAttribute("aria-current", "true");
  }
  addEventListener("hashchange", current);
  current();

  // In a logit lens the last position decides the answer, so a wide one opens there.
  document.addEventListener("toggle", (event) => {
    $$(".scroll:has(> .lens)", event.target).forEach((box) => { box.scrollLeft = box.scrollWidth; });
  }, true);

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
