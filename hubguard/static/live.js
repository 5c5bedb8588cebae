// Around htmx's polling: nothing is asked for in hidden tabs, and a refresh that fails is said instead of hidden.
(() => {
  const live = document.getElementById("live");
  const stale = document.getElementById("stale");
  let fresh = new Date();
  const fine = () => {
    fresh = new Date();
    stale.hidden = true;
  };
  const failed = (why) => {
    const text = `Stale since ${fresh.toLocaleTimeString()}: ${why} This page shows the state at that time and retries every few seconds.`;
    if (stale.textContent !== text) stale.textContent = text;
    stale.hidden = false;
  };
  live.addEventListener("htmx:config:request", (event) => {
    if (document.hidden) event.preventDefault();
  });
  live.addEventListener("htmx:after:request", (event) => {
    const status = event.detail.ctx.response.status;
    if (status < 400) fine();
    else if (status === 403) failed("you may no longer see this.");
    else if (status === 503) failed("HubGuard can't ask the hub, or its journal, right now.");
    else failed(`HubGuard answered ${status}.`);
  });
  live.addEventListener("htmx:error", () => failed("HubGuard doesn't answer."));
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) live.dispatchEvent(new CustomEvent("hg:now"));
  });
})();
