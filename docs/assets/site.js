// What the theme leaves without a name, or out of the keyboard's reach.
document$.subscribe(() => {
  document.querySelector('[role="dialog"].md-search')?.setAttribute("aria-label", "Search");
  for (const one of document.querySelectorAll(".md-typeset__scrollwrap, .highlight code")) one.tabIndex = 0;
  document.querySelectorAll(".md-code__nav").forEach((one, i) => one.setAttribute("aria-label", `Code ${i + 1}`));
});
