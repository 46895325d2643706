
"use strict";
(() => {
const $ = id => document.getElementById(id);
const pause = ms => new Promise(done => setTimeout(done, ms));
const plural = (n, word) => n + " " + word + (n === 1 ? "" : "s");
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; }; // said once by a screen reader
const element = (tag, text) => { const made = document.createElement(tag); made.textContent = text; return made; };

let token = ""; // here and nowhere else
let skew = 0;   // the server's clock less this one's, in milliseconds

// Failure is what the API refused, by its code; without one no answer of the API came.
class Failure extends Error {
  constructor(code, message) { super(message); this.code = code; }
}

// Repeating a call cannot help with these, and they say that nothing was done.
const final = ["invalid_argument", "not_found", "already_exists", "permission_denied", "unauthenticated", "failed_precondition", "out_of_range", "unimplemented"];
const isFinal = failure => final.includes(failure.code);

// call asks the API, by the Connect protocol. It throws a Failure.
async function call(method, request) {
  let response, text;
  try {
    response = await fetch("/keyturn.v1.ControlService/" + method, {
      method: "POST", body: JSON.stringify(request), cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(35000),
      headers: {"Authorization": "Bearer " + token, "Connect-Protocol-Version": "1", "Content-Type": "application/json"},
    });
    text = await response.text();
  } catch {
    throw new Failure("", "no answer from the server");
  }
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Failure("", "status " + response.status + ", which is no answer of Keyturn");
  }
  if (!response.ok) throw new Failure(answer.code || "", answer.message || "status " + response.status);
  const date = Date.parse(response.headers.get("Date"));
  if (date) skew = date - Date.now();
  return answer;
}

// attempt runs what a control does, and shows what went wrong.
async function attempt(what, doing) {
  $("problem").textContent = "";
  $("status").textContent = doing;
  try {
    return await what();
  } catch (failure) {
    complain(failure);
  } finally {
    $("status").textContent = "";
  }
}

function complain(failure) {
  $("problem").textContent = !(failure instanceof Failure) ? "This page has a fault; use keyturn rotate --emergency: " + failure
    : failure.code ? failure.message + " (" + failure.code + ")" : failure.message + ". Try again.";
  if (failure.code === "unauthenticated") $("open").hidden = false; // another token may go on
}

const on = (id, event, listener) => $(id).addEventListener(event, listener);
const onSubmit = (id, listener) => on(id, "submit", event => { event.preventDefault(); listener(); });

// Opening, and what there was.

onSubmit("open", async () => {
  const given = $("token").value.trim();
  $("token").value = "";
  if (!/^[\x21-\x7e]+$/.test(given)) {
    $("problem").textContent = "This is no token: it has spaces or other signs in it.";
    return;
  }
  token = given;
  if (!await attempt(() => list(""), "Asking the server …")) return;
  $("open").hidden = true;
  $("work").hidden = false;
  address();
  $(location.hash ? "progress-title" : "by").focus();
});
addEventListener("pagehide", () => { token = ""; });
addEventListener("pageshow", event => { if (event.persisted) location.reload(); });

let next = "";
async function list(after) {
  const page = await call("ListEmergencies", {pageSize: 10, pageToken: after});
  if (!after) $("list").replaceChildren();
  for (const e of page.emergencies || []) {
    const item = document.createElement("li"), link = element("a", time(e.startedAt) + ", " + selectionText(e));
    link.href = "#" + e.id;
    item.append(link, summary(e));
    $("list").append(item);
  }
  if (!$("list").firstChild) $("list").append(element("li", "None that this token covers."));
  next = page.nextPageToken || "";
  $("more").hidden = !next;
  return true;
}
on("more", "click", () => attempt(() => list(next), "Asking the server …"));
on("another", "click", () => {
  history.replaceState(null, "", location.pathname);
  address();
  $("by").focus();
});

// address shows the emergency that the address names, or what to declare.
function address() {
  if (!token) return;
  const id = location.hash.slice(1);
  $("problem").textContent = "";
  $("progress").hidden = !id;
  $("another").hidden = !id;
  $("declare").hidden = Boolean(id);
  watching++;
  if (id) follow(id);
}
addEventListener("hashchange", () => { if (!declaring) address(); });

// 1. Which keys.

const hints = {
  selector: ["Labels", "For example tier=1,team=orders; also name!=value, name and !name. Every term must hold."],
  host: ["Host", "Its parties and tokens: named after it, or with the label host."],
  readBy: ["Party or token", "The ID of a party, or the name or ID of a token."],
  address: ["Address", "For example 10.0.3.7 or 10.0.3.0/24."],
};

function selection() {
  const by = $("by").value, what = $("what").value.trim();
  if (by === "selector") return {selector: what};
  const request = {[by]: what, couldRead: $("could").checked};
  if ($("narrow").value.trim()) request.selector = $("narrow").value.trim();
  if ($("since").value) request.sinceTime = new Date($("since").value).toISOString();
  return request;
}

let shown = null; // the selection that was shown, with its keys; there is no button without

function chosen() {
  const [label, hint] = hints[$("by").value];
  setText($("what-label"), label);
  setText($("what-hint"), hint);
  $("reading").hidden = $("by").value === "selector";
  shown = null;
  $("found").hidden = true;
  $("button").disabled = true;
}
on("select", "input", chosen);
chosen();

onSubmit("select", async () => {
  chosen();
  const request = selection();
  const answer = await attempt(() => call("DeclareEmergency", {...request, dryRun: true}), "Looking for the keys …");
  if (!answer || JSON.stringify(request) !== JSON.stringify(selection())) return; // it was changed meanwhile
  const e = answer.emergency || {}, keys = e.keys || [], lacks = e.incomplete || [];
  if (keys.length === 0) {
    $("problem").textContent = "No key was found.";
    return;
  }
  shown = {request: {...request, keys: keys.map(k => k.key), acceptIncomplete: lacks.length > 0}, id: ""};
  setText($("found-title"), "2. " + plural(keys.length, "key") + " would be rotated");
  setText($("looked"), e.since ? "From the entries " + (e.lookedFrom || 0) + " to " + (e.lookedTo || 0) + " of the audit log, since " + time(e.since) + ", and from what is registered now." : "");
  $("keys").replaceChildren(...keys.map(k => row([k.key, (k.why || []).join("\n")])));
  $("incomplete").replaceChildren(...lacks.map(lack => element("li", lack)));
  $("lacks").hidden = $("accept-label").hidden = lacks.length === 0;
  $("accept").required = lacks.length > 0;
  $("accept").checked = false;
  name();
  $("button").disabled = false;
  $("found").hidden = false;
  $("found-title").focus();
});

const strategy = () => document.querySelector("input[name=strategy]:checked").value;

// name says on the button what it does.
function name() {
  const keys = shown ? plural(shown.request.keys.length, "key") : "";
  setText($("button"), {"contain-first": "Contain and replace " + keys, "replace-first": "Replace and then refuse " + keys, "": "Rotate " + keys + " now"}[strategy()]);
}
on("confirm", "input", name);

// 2. The button. One press is one request ID: however often it is sent, one group is declared.

let declaring = false;
onSubmit("confirm", async () => {
  if (!shown || declaring) return;
  const sent = shown;
  sent.id ||= Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, "0")).join("");
  sent.body ||= {...sent.request, reason: $("reason").value.trim(), strategy: strategy(), requestId: sent.id};
  lock(true);
  const answer = await attempt(() => declare(sent), "Declaring …");
  lock(false);
  if (!answer) {
    $("button").focus(); // it lost it when it was disabled
    return;
  }
  shown = null;
  chosen();
  history.replaceState(null, "", "#" + answer.emergency.id);
  address();
  $("progress-title").focus();
  await attempt(() => list(""), "");
});

async function declare(sent) {
  for (let tries = 0; ; tries++) {
    try {
      return await call("DeclareEmergency", sent.body);
    } catch (failure) {
      if (isFinal(failure)) {
        sent.id = sent.body = ""; // nothing was declared
        throw failure;
      }
      if (tries === 300) throw new Failure("", "Whether it was declared is not known: " + failure.message + ". The button sends the same once more, which declares nothing twice");
      $("status").textContent = "Not known whether it is declared: " + failure.message + ". Sending the same again, which declares nothing twice …";
    }
    await pause(2000);
  }
}

function lock(locked) {
  declaring = locked;
  for (const control of $("declare").querySelectorAll("input, select, button")) control.disabled = locked;
}
addEventListener("beforeunload", event => { if (declaring) event.preventDefault(); });

// 3. The progress.

let watching = 0; // counts up: an older watch ends
let begun = 0, stopped = false; // the one that is shown: in milliseconds by the server's clock, and whether all is refused

async function follow(id) {
  const mine = watching;
  let heard = Date.now();
  begun = 0;
  $("rows").replaceChildren();
  for (const text of ["headline", "connection", "clock", "users", "selection", "strategy", "declared", "because"]) $(text).textContent = "";
  $("missing").replaceChildren();
  $("evidence").hidden = true;
  setText($("progress-title"), "Emergency " + id.slice(0, 8));
  for (let wait = 1000; mine === watching; await pause(wait)) {
    try {
      const {emergency} = await call("GetEmergency", {id});
      if (mine !== watching) return;
      heard = Date.now();
      show(emergency);
      setText($("connection"), "");
      if (emergency.ended) return;
      wait = emergency.refusedAt ? 5000 : 1000;
    } catch (failure) {
      if (mine !== watching) return;
      if (!(failure instanceof Failure) || isFinal(failure)) {
        complain(failure);
        setText($("connection"), "This is not followed any more.");
        return;
      }
      setText($("connection"), "Connection lost: " + failure.message + ". What is shown is of " + new Date(heard).toLocaleTimeString() + "; the emergency goes on. Asking again every second.");
      wait = 1000;
    }
  }
}
setInterval(() => {
  setText($("clock"), begun && !stopped ? clock(Date.now() + skew - begun) + " since the declaration" : "");
}, 250);

function show(e) {
  const rotations = (e.keys || []).map(k => k.rotation || {});
  begun = Date.parse(e.startedAt);
  stopped = Boolean(e.refusedAt || e.ended);
  setText($("progress-title"), "Emergency " + e.id.slice(0, 8) + " of " + plural(e.total || 0, "key"));
  setText($("headline"), headline(e));
  const listed = $("list").querySelector("a[href='#" + e.id + "']");
  if (listed) listed.nextSibling.data = summary(e);
  $("headline").className = e.refusedAt ? "good" : "";
  $("bar").max = e.total || 1;
  $("bar").value = e.refused || 0;
  setText($("users"), users(rotations) || (rotations.some(r => r.measuredAt) ? "nobody, by the last measurements" : e.ended ? "not measured" : "not measured yet"));
  setText($("selection"), selectionText(e) + (e.couldRead ? ", also what could have been read" : "") + (e.since ? ", since " + time(e.since) : ""));
  setText($("strategy"), e.strategy || "each key as its policy says");
  setText($("declared"), time(e.startedAt) + " by " + e.actor);
  setText($("because"), e.reason);
  fit($("missing"), (e.incomplete || []).map(lack => element("li", "Keys may be missing: " + lack)));
  fit($("rows"), (e.keys || []).map(k => row([k.key, refused(e, k), phase(k), residual(k.rotation || {}), waits(k).join("\n")])));
  $("evidence").hidden = !(e.ended || (e.refused || 0) + (e.failed || 0) === e.total);
  $("later").hidden = Boolean(e.ended);
  setText($("pack"), "keyturn evidence pack " + e.id + " -o evidence-" + e.id.slice(0, 8) + ".zip");
}

// fit replaces only the children that have changed: what is selected or read aloud stays.
function fit(parent, children) {
  children.forEach((child, i) => {
    const old = parent.children[i];
    if (!old) parent.append(child);
    else if (!old.isEqualNode(child)) old.replaceWith(child);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

function row(cells) {
  const made = document.createElement("tr");
  made.append(...cells.map(text => element("td", text)));
  return made;
}

function headline(e) {
  let text = (e.refused || 0) + " of " + plural(e.total || 0, "key") + " refused everywhere";
  if (e.refusedAt) text = (e.total === 1 ? "The key is" : "All " + e.total + " keys are") + " refused everywhere, after " + took(e, e.refusedAt);
  if (e.ended) text += "; every rotation has ended";
  if (e.held) text += "; " + plural(e.held, "key") + " on hold until somebody acts";
  if (e.failed) text += "; " + e.failed + " could not be declared";
  return text;
}

const summary = e => ": " + headline(e) + ". “" + e.reason + "”, " + e.actor;
const selectionText = e => [["", e.selector], ["read by ", e.readBy], ["host ", e.host], ["address ", e.address]].filter(part => part[1]).map(part => part.join("")).join(", ");
const time = stamp => new Date(stamp).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "long"});
function took(e, stamp) {
  const ms = Date.parse(stamp) - Date.parse(e.startedAt);
  return ms < 100000 ? (ms / 1000).toFixed(ms < 10000 ? 2 : 1) + " s" : clock(ms);
}
const refused = (e, k) => k.refusedAt ? "✓ after " + took(e, k.refusedAt) : "not yet";
const holder = h => [h.address, h.application].filter(Boolean).join(" ");

function clock(ms) {
  const s = Math.max(0, Math.floor(ms / 1000)), two = n => String(n).padStart(2, "0");
  return Math.floor(s / 3600) + ":" + two(Math.floor(s / 60) % 60) + ":" + two(s % 60);
}

function phase(k) {
  if (k.trouble) return "not declared";
  if (!k.rotation) return "to be declared";
  return k.rotation.phase + (k.rotation.hold ? " (on hold)" : "");
}

const names = (list, total) => list.join(", ") + (total > list.length ? " and " + (total - list.length) + " more" : "");

// residual names who still uses a key's old version, by the last measurement.
function residual(r) {
  const lines = (r.holders || []).map(h => holder(h) + " (" + (h.sessions || 0) + ")");
  if (r.behind) lines.push("without the new version: " + names(r.behind, r.behindTotal || 0));
  return lines.join("\n") || (r.measuredAt ? "nobody" : "");
}

// users names them over all keys, those of the most keys first.
function users(rotations) {
  const keys = new Map();
  let unnamed = 0;
  for (const r of rotations) {
    for (const user of new Set([...(r.holders || []).map(holder), ...(r.behind || [])])) keys.set(user, (keys.get(user) || 0) + 1);
    unnamed = Math.max(unnamed, (r.behindTotal || 0) - (r.behind || []).length);
  }
  const all = [...keys].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  return names(all.slice(0, 5).map(([user, n]) => user + " (" + plural(n, "key") + ")"), all.length + unnamed);
}

function waits(k) {
  if (k.trouble) return [k.trouble];
  const r = k.rotation || {}, lines = [];
  if (r.ended) return lines;
  if (r.hold) lines.push("on hold: " + r.hold.message + (r.hold.human ? "; mend it, then keyturn rotation resume " + r.id : ""));
  for (const w of r.waiting || []) lines.push((w.region ? w.region + ": " : "") + w.message + (w.names ? ": " + names(w.names, w.total || 0) : ""));
  return lines;
}
})();
