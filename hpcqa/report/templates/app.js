// The table of decisions (sorted, filtered, in pages) and the reviewers' votes. No library, no network.
"use strict";
(() => {
  const table = window.HPCQA_TABLE;
  const root = document.getElementById("decisions");
  const PAGE = 50;
  const COLUMNS = ["expnum", "band", "night", "verdict", "p_bad", "reasons", "novelty", "num_bad_ccds", "known"];
  const text = (column, row) => (column.names ? column.names[column.rows[row]] : column[row]);
  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") made.className = value; else made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  // State lives in the address after #, so that a view of the table can be sent to a colleague.
  const state = { q: "", verdict: "", reason: "", band: "", sort: "", down: false, page: 1 };
  const readState = () => {
    if (!location.hash.includes("=")) return false;
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const name of ["q", "verdict", "reason", "band", "sort"]) state[name] = wanted.get(name) || "";
    if (!COLUMNS.includes(state.sort)) state.sort = "";
    state.down = wanted.get("down") === "1";
    state.page = Math.max(1, parseInt(wanted.get("page"), 10) || 1);
    return true;
  };
  const writeState = () => {
    const said = new URLSearchParams();
    for (const name of ["q", "verdict", "reason", "band", "sort"]) if (state[name]) said.set(name, state[name]);
    if (state.sort && state.down) said.set("down", "1");
    if (state.page > 1) said.set("page", state.page);
    history.replaceState(null, "", said.size ? "#" + said : location.pathname + location.search);
  };

  // Details come in chunks, each loaded once when a row of it is first shown.
  const chunks = new Map();
  window.hpcqaDetails = (number, rows) => { chunks.get(number).arrive(rows); };
  const details = (row) => {
    const number = Math.floor(row / table.chunk);
    if (!chunks.has(number)) {
      const chunk = {};
      chunk.rows = new Promise((arrive) => { chunk.arrive = arrive; });
      chunks.set(number, chunk);
      document.head.append(element("script", { src: `data/details-${String(number).padStart(5, "0")}.js` }));
    }
    return chunks.get(number).rows.then((rows) => rows[row % table.chunk]);
  };

  const matching = () => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const verdict = table.verdict.names.indexOf(state.verdict);
    const band = table.band.names.indexOf(state.band);
    const hasReason = table.reasons.names.map((names) => names.split(/[,\s]+/).includes(state.reason));
    const rows = [];
    for (let row = 0; row < table.expnum.length; row++) {
      if (state.verdict && table.verdict.rows[row] !== verdict) continue;
      if (state.band && table.band.rows[row] !== band) continue;
      if (state.reason && !hasReason[table.reasons.rows[row]]) continue;
      if (words.length) {
        const line = COLUMNS.map((name) => text(table[name], row) ?? "").join(" ").toLowerCase();
        if (!words.every((word) => line.includes(word))) continue;
      }
      rows.push(row);
    }
    return rows;
  };
  const sorted = (rows) => {
    if (!state.sort) return rows;
    const column = table[state.sort];
    const sign = state.down ? -1 : 1;
    return rows.sort((one, other) => {
      const a = text(column, one), b = text(column, other);
      if (a === b) return one - other;
      if (a === null || a === "") return 1;
      if (b === null || b === "") return -1;
      return (a < b ? -1 : 1) * sign;
    });
  };

  const pictured = new Set(table ? table.pictured : []);
  const meter = (value) => {
    if (value === null) return element("span", { class: "quiet" }, "–");
    const bar = element("i", { "aria-hidden": "true" });
    bar.style.setProperty("--part", `${100 * value}%`);
    return element("span", { class: "meter" }, bar, value.toFixed(value > 0 && value < 0.01 ? 4 : 2));
  };
  const chips = (names) => names.split(/[,\s]+/).filter(Boolean).map((name) => element("span", { class: "chip" }, name.replaceAll("_", " ")));
  const facts = (pairs) => {
    const list = element("dl", { class: "facts" });
    for (const [name, value] of pairs) if (value) list.append(element("dt", {}, name), element("dd", {}, value));
    return list;
  };
  const toggleDetail = async (line, row) => {
    const open = line.nextSibling && line.nextSibling.className === "detail";
    line.querySelector("button").setAttribute("aria-expanded", open ? "false" : "true");
    if (open) { line.nextSibling.remove(); return; }
    const cell = element("td", { colspan: "10" }, "…");
    line.after(element("tr", { class: "detail" }, cell));
    const [why, worst, nearest, evidence, plver, plprocid, extent] = await details(row);
    const expnum = table.expnum[row];
    cell.replaceChildren(facts([
      ["Why", why], ["Extent", { exposure: "the whole exposure", ccds: "single CCDs only" }[extent]], ["Stands out (σ)", evidence], ["Worst CCDs", worst], ["Nearest labelled", nearest],
      ["CCDs", `${table.num_decided[row]} of ${table.num_ccds[row]} decided, ${table.num_bad_ccds[row]} bad`],
      ["Processing", [plver, plprocid].filter(Boolean).join(" · ")], ["Known", text(table.known, row)],
    ]));
    if (pictured.has(expnum)) cell.append(element("p", {}, element("a", { href: `#exposure-${expnum}` }, "See its pictures")));
  };
  const line = (row) => {
    const verdict = text(table.verdict, row);
    const words = element("td", { class: "words" });
    details(row).then(([why, , , evidence]) => { words.textContent = why || evidence; words.title = words.textContent; });
    const opener = element("button", { "aria-expanded": "false", "aria-label": `Details of exposure ${table.expnum[row]}`, class: "toggle" }, String(table.expnum[row]));
    const made = element("tr", { class: `row is-${verdict}`, "data-expnum": table.expnum[row] },
      element("td", {}, opener), element("td", {}, text(table.band, row)), element("td", {}, String(table.night[row])),
      element("td", {}, element("span", { class: "badge" }, verdict)), element("td", {}, meter(table.p_bad[row])),
      element("td", {}, ...chips(text(table.reasons, row))),
      element("td", { class: "number" }, table.novelty[row] === null ? "–" : table.novelty[row].toFixed(1)),
      element("td", { class: "number" }, table.num_bad_ccds[row] ? `${table.num_bad_ccds[row]} / ${table.num_ccds[row]}` : "–"),
      element("td", { class: "known", title: text(table.known, row) }, text(table.known, row)), words);
    made.addEventListener("click", (event) => { if (!event.target.closest("a")) toggleDetail(made, row); });
    return made;
  };

  const draw = () => {
    const rows = sorted(matching());
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages);
    const shown = rows.slice((state.page - 1) * PAGE, state.page * PAGE);
    const none = element("tr", {}, element("td", { colspan: "10", class: "empty" }, "No exposure matches."));
    root.querySelector("tbody").replaceChildren(...(shown.length ? shown.map(line) : [none]));
    const count = document.getElementById("count");
    count.textContent = `${rows.length.toLocaleString("en")} of ${table.expnum.length.toLocaleString("en")} exposures`;
    count.dataset.count = rows.length;
    document.getElementById("page").textContent = `page ${state.page} of ${pages}`;
    document.getElementById("previous").disabled = state.page <= 1;
    document.getElementById("next").disabled = state.page >= pages;
    for (const head of root.querySelectorAll("th[data-sort]")) {
      const here = head.dataset.sort === state.sort;
      head.setAttribute("aria-sort", here ? (state.down ? "descending" : "ascending") : "none");
    }
    for (const button of document.querySelectorAll("#filters [data-verdict]")) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === state.verdict));
    }
    document.getElementById("search").value = state.q;
    document.getElementById("reason").value = state.reason;
    document.getElementById("band").value = state.band;
  };
  const change = (values) => { Object.assign(state, { page: 1 }, values); writeState(); draw(); };
  const fill = (id, names) => {
    for (const name of names) document.getElementById(id).append(element("option", { value: name }, name));
  };
  const startTable = () => {
    const reasons = new Set(table.reasons.names.flatMap((names) => names.split(/[,\s]+/)).filter(Boolean));
    fill("reason", [...reasons].sort());
    fill("band", table.band.names.filter(Boolean));
    for (const button of document.querySelectorAll("#filters [data-verdict]")) {
      button.addEventListener("click", () => change({ verdict: state.verdict === button.dataset.verdict ? "" : button.dataset.verdict }));
    }
    let typing = 0;
    document.getElementById("search").addEventListener("input", (event) => {
      clearTimeout(typing);
      typing = setTimeout(() => change({ q: event.target.value.trim() }), 120);
    });
    document.getElementById("reason").addEventListener("change", (event) => change({ reason: event.target.value }));
    document.getElementById("band").addEventListener("change", (event) => change({ band: event.target.value }));
    for (const head of root.querySelectorAll("th[data-sort]")) {
      head.querySelector("button").addEventListener("click", () => {
        const sort = head.dataset.sort;
        const numeric = !table[sort].names && sort !== "expnum" && sort !== "night";
        change({ sort, down: state.sort === sort ? !state.down : numeric });
      });
    }
    document.getElementById("previous").addEventListener("click", () => change({ page: state.page - 1 }));
    document.getElementById("next").addEventListener("click", () => change({ page: state.page + 1 }));
    window.addEventListener("hashchange", () => { if (readState()) draw(); });
    if (readState()) root.scrollIntoView();
    draw();
  };

  // Votes: kept in this browser under the report's own name, downloaded as hpcqa's label CSV.
  const storageKey = `hpcqa-votes-${document.body.dataset.report}`;
  const load = () => { try { return JSON.parse(localStorage.getItem(storageKey)) || {}; } catch { return {}; } };
  const ballot = load();
  const keep = () => {
    try { localStorage.setItem(storageKey, JSON.stringify(ballot)); } catch { /* private windows may refuse storage */ }
    showBallot();
  };
  const quote = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const isVote = (key) => key !== "reviewer" && ballot[key].verdict;
  const votesAsCsv = () => {
    const lines = ["expnum,ccdnum,verdict,reasons,severity,comment"];
    for (const key of Object.keys(ballot).filter(isVote)) {
      const [expnum, ccdnum] = key.split(":");
      const { verdict, reasons, comment } = ballot[key];
      const why = verdict === "bad" ? (reasons.length ? reasons : ["other"]) : [];
      const clean = comment.replace(/[\r\n]+/g, " ");
      lines.push([expnum, ccdnum, verdict, why.join("|"), "", quote(clean)].join(","));
    }
    return lines.join("\n") + "\n";
  };
  window.hpcqaVotesAsCsv = votesAsCsv;
  const showBallot = () => {
    const number = Object.keys(ballot).filter(isVote).length;
    document.getElementById("votes").textContent = number === 1 ? "1 vote" : `${number} votes`;
    document.getElementById("download").disabled = number === 0;
    document.getElementById("clear").disabled = number === 0;
  };
  const keyOf = (form) => `${form.dataset.expnum}:${form.querySelector("select").value}`;
  const showVote = (form) => {
    const vote = ballot[keyOf(form)] || { verdict: "", reasons: [], comment: "" };
    for (const button of form.querySelectorAll("[data-vote]")) button.setAttribute("aria-pressed", String(button.dataset.vote === vote.verdict));
    for (const button of form.querySelectorAll("[data-reason]")) button.setAttribute("aria-pressed", String(vote.reasons.includes(button.dataset.reason)));
    form.querySelector(".reasons").hidden = vote.verdict !== "bad";
    form.querySelector("input").value = vote.comment;
    const voted = Object.keys(ballot).some((key) => key.startsWith(form.dataset.expnum + ":") && isVote(key));
    form.closest(".card").classList.toggle("voted", voted);
  };
  const castVote = (form, values) => {
    const key = keyOf(form);
    ballot[key] = Object.assign({ verdict: "", reasons: [], comment: "" }, ballot[key], values);
    keep();
    showVote(form);
  };
  const startForm = (form) => {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("click", (event) => {
      const { vote, reason } = event.target.dataset;
      const before = ballot[keyOf(form)] || { verdict: "", reasons: [] };
      if (vote) castVote(form, { verdict: before.verdict === vote ? "" : vote });
      if (reason) {
        const without = before.reasons.filter((name) => name !== reason);
        castVote(form, { reasons: without.length < before.reasons.length ? without : [...without, reason] });
      }
    });
    form.querySelector("select").addEventListener("change", () => showVote(form));
    form.querySelector("input").addEventListener("input", (event) => castVote(form, { comment: event.target.value }));
    showVote(form);
  };
  const download = () => {
    const reviewer = (ballot.reviewer || "reviewer").replace(/[^\w.-]+/g, "-");
    const address = URL.createObjectURL(new Blob([votesAsCsv()], { type: "text/csv" }));
    element("a", { href: address, download: `votes-${reviewer}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
  // j and k walk through the cards; g, b and u vote on the one in view.
  const cards = [...document.querySelectorAll(".card")];
  let at = -1;
  const keys = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "j" || event.key === "k") {
      at = Math.min(cards.length - 1, Math.max(0, at + (event.key === "j" ? 1 : -1)));
      cards[at].scrollIntoView();
      cards[at].focus({ preventScroll: true });
    }
    const verdict = { g: "good", b: "bad", u: "unsure" }[event.key];
    if (verdict && at >= 0) castVote(cards[at].querySelector("form"), { verdict });
  };
  const startVotes = () => {
    document.querySelectorAll("form.vote").forEach(startForm);
    const name = document.getElementById("reviewer");
    name.value = ballot.reviewer || "";
    name.addEventListener("input", () => { ballot.reviewer = name.value; keep(); });
    document.getElementById("download").addEventListener("click", download);
    document.getElementById("clear").addEventListener("click", () => {
      if (!confirm("Remove all votes from this browser?")) return;
      for (const key of Object.keys(ballot)) if (key !== "reviewer") delete ballot[key];
      keep();
      document.querySelectorAll("form.vote").forEach(showVote);
    });
    cards.forEach((card, number) => card.addEventListener("focusin", () => { at = number; }));
    document.addEventListener("keydown", keys);
    showBallot();
  };

  if (table && root) startTable();
  if (document.getElementById("ballot")) startVotes();
  document.body.dataset.ready = "yes";
})();
