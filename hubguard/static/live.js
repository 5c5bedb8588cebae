// Around htmx's polling: nothing is asked for in hidden tabs, and a refresh that fails is said instead of hidden.
(() => {
  const live = document.getElementById("live");
  const stale = document.getElementById("stale");
  let fresh = new Date();
  const fine = () => {
    fresh = new Date();
    stale.hidden = true;
  };
  const wear = (badge) => {
    const [count, icon] = badge.split(" ");
    const title = document.title.replace(/^\(\d+\) /, "");
    document.title = count === "0" ? title : `(${count}) ${title}`;
    const link = document.querySelector('link[rel="icon"]');
    if (!link.href.split("?")[0].endsWith(`/${icon}`)) link.href = link.href.replace(/[^/]*$/, icon);
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
    const { status, headers } = event.detail.ctx.response;
    if (headers.has("HubGuard-Badge")) wear(headers.get("HubGuard-Badge"));
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
