// The theme that was picked at the hub; without one, the style sheet follows the system's.
(() => {
  const apply = () => {
    let picked = null;
    try { picked = localStorage.getItem("jupyterhub-bs-theme"); } catch { /* storage is switched off */ }
    if (picked === "light" || picked === "dark") document.documentElement.dataset.bsTheme = picked;
    else delete document.documentElement.dataset.bsTheme;
  };
  apply();
  addEventListener("storage", apply);
})();
