// Loaded before anything is drawn, so that a page that is kept dark never flashes.
(() => {
  const choices = ["automatic", "light", "dark"];
  let now = 0;
  try { now = Math.max(0, choices.indexOf(localStorage.getItem("theme"))); } catch { /* a browser may forbid it */ }
  const show = () => {
    if (now) document.documentElement.dataset.theme = choices[now];
    else delete document.documentElement.dataset.theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${choices[now]}`;
  };
  show();
  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme").addEventListener("click", () => {
      now = (now + 1) % choices.length;
      try { localStorage.setItem("theme", choices[now]); } catch { /* then for this visit only */ }
      show();
    });
  });
})();
