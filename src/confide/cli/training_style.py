"""The style sheet of a training report: light, dark, phone and print, without a font or an image.

It stands in the page, which allows this text alone, by its hash.
"""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbf9;--fg:#1c2126;--dim:#5b6670;--card:#fff;--rule:#d9dde0;
--one:#0b63b0;--two:#9a5b00;--good:#17693b;--bad:#b3261e;--warn:#7a5600;--warnbg:#fff3cd}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e9eb;--dim:#9aa5ae;--card:#1c2125;
--rule:#343b41;--one:#6cb6ff;--two:#f0b35a;--good:#6fcf97;--bad:#ff8a80;--warn:#f5d06b;--warnbg:#3a3010}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.25rem 1rem 3rem}
h1{font-size:1.6rem;line-height:1.2;margin:.2rem 0}
h2{font-size:1.15rem;margin:2.2rem 0 .7rem;padding-bottom:.3rem;border-bottom:1px solid var(--rule)}
h3{font-size:1rem;margin:0}
p{margin:.4rem 0}
.dim,figure p,dt,.note{color:var(--dim)}
.note{font-size:.9rem}
code{font:.85em/1.4 ui-monospace,monospace;overflow-wrap:anywhere}
.verdict{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin:.4rem 0}
.verdict b,.sim{padding:.15rem .6rem;border-radius:.3rem;font-weight:700;
border:2px solid currentcolor}
.ok{color:var(--good)}.no{color:var(--bad)}
.sim{color:var(--warn);background:var(--warnbg)}
.simline{background:var(--warnbg);color:var(--warn);padding:.5rem .75rem;border-radius:.4rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(12rem,1fr));gap:.75rem;
list-style:none;margin:0;padding:0}
.cards li,figure,.made{background:var(--card);border:1px solid var(--rule);border-radius:.5rem;
padding:.75rem}
.cards b{display:block}
.cards code{display:block;color:var(--dim)}
.cards .main{border-color:var(--one);border-width:2px}
.down{text-align:center;color:var(--dim);font-size:1.3rem;line-height:1.6}
figure{margin:0 0 1rem}
figcaption{display:flex;flex-wrap:wrap;gap:.25rem 1rem;justify-content:space-between;
align-items:baseline;margin-bottom:.5rem}
figure p{font-size:.9rem}
.legend{display:flex;gap:1rem;list-style:none;margin:0;padding:0;font-size:.85rem}
.legend i{display:inline-block;width:1.4rem;height:0;border-top:3px solid;vertical-align:middle;
margin-right:.4rem}
.legend .one{border-color:var(--one)}
.legend .two{border-color:var(--two)}
.frame{display:flex;gap:.5rem;height:13rem}
.frame svg{flex:1;min-width:0;height:100%;display:block}
.y{display:flex;flex-direction:column;justify-content:space-between;text-align:right;
min-width:3.6rem}
.x{display:flex;justify-content:space-between;padding-left:4.1rem}
.x,.y{font-size:.8rem;color:var(--dim);font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule);stroke-width:1;vector-effect:non-scaling-stroke}
.mark{stroke:var(--dim);stroke-width:1;vector-effect:non-scaling-stroke;stroke-dasharray:2 4}
.mark.turn{stroke:var(--bad);stroke-dasharray:6 4;stroke-width:1.5}
.line{fill:none;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.line.one{stroke:var(--one)}
.line.two{stroke:var(--two);stroke-width:2.5}
.busy .line.one{stroke-width:1;opacity:.55}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:1rem}
.bar{display:grid;grid-template-columns:4rem 1fr 6rem;gap:.6rem;align-items:center;
margin:.35rem 0}
.bar svg{height:1.1rem;width:100%}
.bar b{font-variant-numeric:tabular-nums}
rect.track{fill:var(--rule)}
rect.one{fill:var(--one)}
rect.two{fill:var(--two)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;margin:0}
dd{margin:0;overflow-wrap:anywhere}
ul.plain{list-style:none;margin:0;padding:0}
ul.plain li{padding:.3rem 0 .3rem 1.6rem;position:relative;overflow-wrap:anywhere}
ul.plain li::before{position:absolute;left:.2rem;font-weight:700}
.proven li::before{content:"\\2713";color:var(--good)}
.open li::before{content:"\\2013";color:var(--warn)}
.failed li::before{content:"\\2717";color:var(--bad)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--rule);
vertical-align:top;font-weight:400}
thead th{color:var(--dim)}
summary{cursor:pointer;color:var(--one);margin-top:.4rem}
footer{margin-top:2.5rem;color:var(--dim);font-size:.9rem}
@media (max-width:34rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}.frame{height:10rem}
.y{min-width:2.9rem}.x{padding-left:3.4rem}}
@media print{:root{color-scheme:light;--bg:#fff;--fg:#000;--card:#fff}body{font-size:11pt}
main{max-width:none;padding:0}figure,.cards li{break-inside:avoid}summary{display:none}}
"""
