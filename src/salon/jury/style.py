"""The page's style sheet and its one script. Both are inline, and nothing is fetched.

Colors: those of the families keep a CIE76 distance of 20 under simulated protanopia, deuteranopia
and tritanopia (Machado et al. 2009), and text has a contrast of 4.5 or more on both papers.
"""

from __future__ import annotations

LIGHT = {
    "paper": "#fbfaf7",
    "plate": "#f3f1eb",
    "ink": "#1f1d1a",
    "faint": "#69645c",
    "hair": "#d9d4c9",
    "shade": "#1f1d1a2e",
    "gan": "#a8361c",
    "vae": "#007f62",
    "diffusion": "#25459a",
    "baseline": "#6b665e",
}
DARK = {
    "paper": "#161513",
    "plate": "#211f1c",
    "ink": "#ebe6dc",
    "faint": "#a8a196",
    "hair": "#3a3732",
    "shade": "#ebe6dc38",
    "gan": "#f07f5a",
    "vae": "#5fe0b8",
    "diffusion": "#7a9ff5",
    "baseline": "#a39c90",
}


def variables(colors: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colors.items())


CSS = (
    f":root{{color-scheme:light dark;{variables(LIGHT)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);
  font:17px/1.55 "Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua",Georgia,serif}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 28px}
a{color:inherit;text-decoration-color:var(--hair);text-underline-offset:.2em}
a:hover{text-decoration-color:currentColor}
:focus-visible{outline:2px solid var(--diffusion);outline-offset:2px}
.skip{position:absolute;left:-999em}
.skip:focus{left:8px;top:8px;background:var(--paper);padding:8px}
header{padding-top:72px;padding-bottom:20px}
.over{font-variant-caps:all-small-caps;letter-spacing:.12em;color:var(--faint);margin:0}
h1{font-size:clamp(34px,6vw,58px);line-height:1.08;font-weight:400;letter-spacing:-.015em;
  margin:.15em 0 .5em;max-width:18em;text-wrap:balance}
.lead{font-size:20px;line-height:1.5;max-width:36em;margin:0 0 32px}
nav ol{list-style:none;margin:0;padding:14px 0 0;border-top:1px solid var(--ink);
  display:flex;flex-wrap:wrap;gap:4px 26px;font-size:15.5px}
nav a{text-decoration:none}
nav a:hover{text-decoration:underline}
.numeral{color:var(--faint);font-variant-numeric:lining-nums;margin-right:.45em}
section{padding:56px 0 0}
h2{font-size:30px;line-height:1.2;font-weight:400;margin:0 0 10px;padding-top:16px;
  border-top:1px solid var(--hair)}
h3{font-size:17px;font-weight:600;margin:0 0 6px}
p{max-width:42em;margin:0 0 16px}
.note,.missing,figcaption{color:var(--faint);font-size:15px;line-height:1.5}
.missing{font-style:italic}
.scroll{overflow-x:auto;margin:20px 0 8px;background:
  linear-gradient(to left,var(--paper) 30%,transparent) right/44px 100% no-repeat local,
  linear-gradient(to left,var(--shade),transparent) right/16px 100% no-repeat scroll}
table{border-collapse:collapse;font:14px/1.35 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums lining-nums}
caption{text-align:left;color:var(--faint);padding-bottom:8px}
th,td{padding:7px 10px 7px 0;text-align:right;vertical-align:top;white-space:nowrap;font-weight:400}
thead th{border-bottom:1px solid var(--ink);vertical-align:bottom;color:var(--faint);
  font-size:13px;white-space:normal}
tbody th,thead th:first-child,.text td,.text th{text-align:left}
tbody tr>*{border-bottom:1px solid var(--hair)}
tbody:not(:last-child) tr:last-child>*{border-bottom-color:var(--ink)}
tbody th{position:sticky;left:0;background:var(--paper);z-index:1;padding-right:18px}
thead th:first-child{position:sticky;left:0;background:var(--paper);z-index:1}
.baselines{color:var(--faint)}
.name{display:block;font-weight:600}
.kind{display:block;font-size:12.5px;color:var(--faint)}
.best{font-weight:700}
.range{display:block;color:var(--faint);font-size:12px}
th button{all:unset;cursor:pointer;text-align:right}
th:first-child button{text-align:left}
th button:hover{color:var(--ink)}
th button:focus-visible{outline:2px solid var(--diffusion);outline-offset:2px}
th button::after{content:"\\a0\\2195";opacity:.45}
th[aria-sort=ascending] button::after{content:"\\a0\\2191";opacity:1}
th[aria-sort=descending] button::after{content:"\\a0\\2193";opacity:1}
th[aria-sort=ascending] button,th[aria-sort=descending] button{color:var(--ink)}
.group{display:block;font-size:11.5px;letter-spacing:.03em}
svg{display:block;overflow:visible}
.family-gan{--c:var(--gan)}.family-vae{--c:var(--vae)}
.family-diffusion{--c:var(--diffusion)}.family-baseline{--c:var(--baseline)}
.chart{width:100%;height:auto;
  font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
.chart text{fill:var(--ink)}
.chart .axis-title{fill:var(--faint)}
.chart line{stroke:var(--ink);stroke-width:1}
.grid,.chart .grid{stroke:var(--hair)}
.line{fill:none;stroke:var(--c);stroke-width:1.7;stroke-linejoin:round}
.marker{fill:var(--c);stroke:var(--paper);stroke-width:.28}
.dot{fill:var(--c);fill-opacity:.8}
.reach{stroke:var(--c);stroke-width:5;stroke-opacity:.25}
.bar{fill:var(--c)}
.chart .whisker{stroke:var(--ink);stroke-width:1.5}
.chance line{stroke-dasharray:3 3}
.ground{fill:var(--hair)}
.tick{stroke:var(--ink);stroke-width:2}
.strip{width:84px;height:14px;margin:3px 0 0 auto}
.share{width:46px;height:10px;margin:4px 0 0 auto}
.swatch{width:34px;height:14px;flex:none}
.head{display:flex;gap:10px;align-items:center}
.legend{list-style:none;margin:14px 0 18px;padding:0;display:flex;flex-wrap:wrap;gap:6px 24px;
  font:14px/1.3 system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
.legend li{display:flex;gap:9px;align-items:center}
.plates{display:grid;gap:32px 44px;
  grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.plates.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:28px 48px}
figure{margin:0;min-width:0}
fieldset{border:0;margin:18px 0 0;padding:0;min-width:0}
legend{padding:0;color:var(--faint);font-size:15px;margin-bottom:6px}
.switch>input{position:absolute;opacity:0;pointer-events:none}
.switch>label{display:inline-block;margin:0 20px 16px 0;padding-bottom:2px;cursor:pointer;
  color:var(--faint);border-bottom:2px solid transparent}
.switch>input:checked+label{color:var(--ink);border-color:var(--ink)}
.switch>input:focus-visible+label{outline:2px solid var(--diffusion);outline-offset:3px}
.panel{display:none}
.switch>input:nth-of-type(1):checked~.panel:nth-of-type(1),
.switch>input:nth-of-type(2):checked~.panel:nth-of-type(2),
.switch>input:nth-of-type(3):checked~.panel:nth-of-type(3){display:block}
img{image-rendering:pixelated;display:block;background:var(--plate);outline:1px solid var(--hair)}
.wall th,.wall td{border:0;padding:5px 10px 5px 0;vertical-align:middle}
.wall thead th{vertical-align:bottom;white-space:normal;text-align:left;width:106px;
  font:italic 13px/1.3 "Iowan Old Style","Palatino Linotype",Palatino,Georgia,serif;border:0}
.wall img{width:96px;height:96px}
.pairs{display:grid;gap:26px 30px;margin-top:22px;
  grid-template-columns:repeat(auto-fill,minmax(210px,1fr))}
.pair{display:flex;gap:6px;margin-bottom:6px}
.pair img{width:96px;height:96px}
details{margin:14px 0}
summary{cursor:pointer;color:var(--faint);font-size:15px}
pre{background:var(--plate);padding:16px 18px;overflow-x:auto;
  font:13.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.text td{white-space:normal;overflow-wrap:anywhere;min-width:12em}
footer{padding-top:48px;padding-bottom:64px;color:var(--faint);font-size:15px}
@media (max-width:560px){
  body{font-size:16px}
  main,header,footer{padding-left:16px;padding-right:16px}
  header{padding-top:40px}
  .lead{font-size:18px}
  section{padding-top:40px}
  h2{font-size:25px}
  .chart{font-size:14px}
  .wall img{width:80px;height:80px}
  .swatch{display:none}
  .legend .swatch{display:block}
  tbody th{white-space:normal;padding-right:12px}
}
@media print{section{break-inside:avoid-page}.scroll{overflow:visible}}
"""
)

# Each body is sorted by itself, so that baselines stay below; what was not measured stays last.
JS = """"use strict";
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = head.dataset.first;
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      for (const one of heads) one.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = row => row.cells[column].dataset.value;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const [p, q] = [Number(x), Number(y)];
        return sign * (Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q);
      };
      for (const body of table.tBodies) body.append(...[...body.rows].sort(compare));
    });
  });
}
"""
