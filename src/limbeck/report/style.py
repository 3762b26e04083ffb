"""The one style sheet of the report: light, dark, narrow and printed.

The palette is after Okabe and Ito, darkened on light paper and lightened on dark until every colour has a
contrast of at least 4.5 to the background, since the same colours are used for words.
"""

STYLE = """
:root{color-scheme:light dark;
--paper:#fdfdfb;--card:#f6f6f2;--ink:#1b1d20;--soft:#41464d;--muted:#5d636c;--hair:#e3e3dd;--rule:#c9c9c2;
--accent:#0a62a0;--good:#0b6e4f;--bad:#a8321a;--warn:#8a5a00;--warn-paper:#fdf5e3;--best:#eef4f9;
--ct:#1b1d20;--cc:#656a73;--c0:#0067a8;--c1:#b8480a;--c2:#007a5a;--c3:#98478c;--c4:#806000;--c5:#5a55c9;
--sans:-apple-system,"Segoe UI",Inter,Roboto,"Noto Sans","Helvetica Neue",Arial,sans-serif;
--serif:"Iowan Old Style",Charter,"Source Serif 4","Palatino Linotype",Palatino,"Noto Serif",Georgia,
"Liberation Serif",serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace}
@media (prefers-color-scheme:dark){:root{
--paper:#15171a;--card:#1c1f23;--ink:#e9e8e4;--soft:#c6c8ca;--muted:#a1a6ae;--hair:#2b2f35;--rule:#474c54;
--accent:#7cbcf0;--good:#5fcf9f;--bad:#f2917a;--warn:#e6b85a;--warn-paper:#262117;--best:#1b242d;
--ct:#f1f0ec;--cc:#9aa0a9;--c0:#6cb6f2;--c1:#f0935a;--c2:#4cc79c;--c3:#dc95cd;--c4:#d9b64a;--c5:#a9a5f7}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 var(--sans);
font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
table{overflow-wrap:normal}
main{max-width:1180px;margin:0 auto;padding:3.5rem 2rem 4rem}
h1,h2,h3,p,dl,dd,figure,table,pre,ul{margin:0;padding:0}
h1{font:600 1rem/1.4 var(--sans);letter-spacing:.01em;color:var(--ink)}
h2{font:600 1.45rem/1.25 var(--serif);margin-bottom:1.1rem}
h3{font:600 .95rem/1.4 var(--sans)}
section{margin-top:4rem}
code,pre{font-family:var(--mono);font-size:.9em}
.lead{color:var(--muted);max-width:68ch;margin:-.7rem 0 1.4rem}
.masthead{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;justify-content:space-between;align-items:baseline;
padding-bottom:.8rem;border-bottom:1px solid var(--rule)}
.masthead time{color:var(--muted);font-size:.9rem}
.verdict{font:400 1.62rem/1.42 var(--serif);margin-top:2.2rem;max-width:60ch;text-wrap:pretty}
.verdict.more{font-size:1.12rem;line-height:1.6;margin-top:.9rem;max-width:72ch;color:var(--soft)}
.verdict code{font:600 .84em/1 var(--sans);color:var(--accent)}
.warnings{list-style:none;margin-top:1.8rem;max-width:80ch;padding:.8rem 1.1rem;background:var(--warn-paper);
border-left:3px solid var(--warn);border-radius:0 4px 4px 0;font-size:.95rem}
.warnings li+li{margin-top:.45rem}
.warnings b{color:var(--warn);font-weight:600}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:1.4rem 2rem;
margin-top:2.4rem;
padding-top:1.4rem;border-top:1px solid var(--hair)}
.figures dt{color:var(--muted);font-size:.85rem}
.figures .big{font:400 2.1rem/1.2 var(--serif);font-variant-numeric:lining-nums tabular-nums}
.figures .small{color:var(--muted);font-size:.85rem;line-height:1.45}
table{width:100%;border-collapse:collapse;font-size:.94rem}
.table-note{color:var(--muted);font-size:.85rem;line-height:1.5;padding-top:.8rem}
th,td{padding:.75rem 0 .75rem 1.1rem;text-align:right;vertical-align:top;font-weight:400;white-space:nowrap}
th:first-child{text-align:left;padding-left:.7rem;white-space:normal}
thead th{white-space:normal}
tbody th{min-width:9rem;overflow-wrap:anywhere}
tr>:last-child{padding-right:.7rem}
thead th{color:var(--muted);font-size:.82rem;line-height:1.35;vertical-align:bottom;padding-bottom:.5rem;
border-bottom:1px solid var(--rule)}
tbody tr{border-bottom:1px solid var(--hair)}
tbody tr.best{background:var(--best)}
tbody th .who{font-weight:600}
.sub{display:block;color:var(--muted);font-size:.8rem;line-height:1.45;font-weight:400}
.sub.note{max-width:26ch;white-space:normal}
.absent{color:var(--muted)}
.better{color:var(--good)}.worse{color:var(--bad)}
.swatch{display:inline-block;width:10px;height:10px;border-radius:50%;background:var(--s);margin-right:.5em;
forced-color-adjust:none;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.st{--s:var(--ct)}.sc{--s:var(--cc)}.s0{--s:var(--c0)}.s1{--s:var(--c1)}.s2{--s:var(--c2)}.s3{--s:var(--c3)}
.s4{--s:var(--c4)}.s5{--s:var(--c5)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:2.6rem 3.5rem;
align-items:start}
figure{min-width:0;max-width:40rem}
figure h3{margin-bottom:.5rem}
figcaption{color:var(--muted);font-size:.85rem;line-height:1.5;margin-top:.5rem}
.chart{display:block;width:100%;height:auto;overflow:visible;font:12px var(--sans)}
.chart text{fill:var(--muted)}
.chart .name{fill:var(--ink)}.chart .value{fill:var(--ink);font-weight:600}
.chart .label{fill:var(--s);font-weight:600}
.chart path{fill:none}
.chart .grid{stroke:var(--hair)}.chart .axis{stroke:var(--rule)}
.chart .line{stroke:var(--s);stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
.chart .raw{stroke:var(--s);stroke-width:.8;opacity:.28;stroke-linejoin:round}
.chart .sc .line{stroke-dasharray:5 3}.chart .v1 .line{stroke-dasharray:7 2}
.chart .v2 .line{stroke-dasharray:2 3}
.chart .leader{stroke:var(--s);stroke-width:.8;opacity:.55}
.chart .far{stroke-dasharray:1 4}
.chart .dot,.chart .bar{fill:var(--s)}
.chart .whisker{stroke:var(--s);stroke-width:1.6}
.chart .reference{stroke:var(--s);stroke-dasharray:3 3}
.chart .band{fill:var(--accent);opacity:.07}
.sample{border-top:1px solid var(--hair);padding:1.5rem 0 1.7rem}
.prompt{color:var(--muted);max-width:80ch;white-space:pre-wrap;font-size:.95rem;margin-bottom:1.1rem}
.prompt b{display:block;font-size:.82rem;font-weight:400;letter-spacing:.01em;color:var(--muted)}
.prompt span{color:var(--soft)}
.answers{display:grid;gap:1.4rem 1.7rem;grid-template-columns:repeat(var(--n),minmax(0,1fr))}
.n1{--n:1}.n2{--n:2}.n3{--n:3}.n4{--n:4}.n5{--n:5}
.answers h3{border-top:2px solid var(--s,var(--rule));padding-top:.4rem;margin-bottom:.3rem;font-size:.88rem}
.answers .text{white-space:pre-wrap;font-size:.92rem;line-height:1.55;unicode-bidi:isolate;overflow:hidden;
tab-size:4}
.cut{color:var(--muted);font-style:italic}
.glossary{display:grid;grid-template-columns:minmax(9rem,13rem) minmax(0,68ch);gap:.7rem 2rem;
font-size:.95rem}
.glossary dt{font-weight:600}.glossary dd{color:var(--soft)}
details{border-top:1px solid var(--hair)}
details:last-of-type{border-bottom:1px solid var(--hair)}
summary{cursor:pointer;padding:.8rem 0;font-weight:600}
summary:hover{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:3px}
.inside{padding:.2rem 0 1.6rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.6rem 3rem}
.facts h3{margin-bottom:.35rem}
.facts dl{display:grid;grid-template-columns:minmax(7rem,auto) minmax(0,1fr);gap:.25rem 1.2rem;
font-size:.9rem}
.facts dt{color:var(--muted)}
pre{background:var(--card);padding:1rem 1.2rem;border-radius:4px;font-size:.85rem;line-height:1.55;
white-space:pre-wrap;tab-size:2}
pre.command{user-select:all}
footer{margin-top:4rem;color:var(--muted);font-size:.85rem}
@media screen and (max-width:1360px){th,td{padding-left:.65rem}}
@media screen and (max-width:1020px){.m2{--n:2}.m3{--n:3}.m4{--n:4}}
@media screen and (max-width:900px){
main{padding:2rem 1.25rem 3rem}
section{margin-top:3rem}
.verdict{font-size:1.35rem}
.n3,.n4,.n5{--n:2}
.n3>:last-child:nth-child(odd),.n4>:last-child:nth-child(odd),.n5>:last-child:nth-child(odd){grid-column:1/-1}
}
@media screen and (max-width:1100px){
table,tbody{display:block}
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
tbody tr{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.4rem,1fr));gap:.9rem 1rem;
padding:1rem 0}
tbody tr.best{margin:0 -.7rem;padding:1rem .7rem}
tbody th{grid-column:1/-1}
th,td,th:first-child,tr>:last-child{padding:0;text-align:left}
td::before{content:attr(data-label);display:block;color:var(--muted);font-size:.78rem;line-height:1.4}
td.absent{display:none}
.sub.note{max-width:none}
}
@media screen and (max-width:560px){
.n2,.n3,.n4,.n5{--n:1}
.figures{grid-template-columns:1fr 1fr}
.figures .big{font-size:1.7rem}
.glossary{grid-template-columns:1fr;gap:.1rem}
.glossary dd{margin-bottom:.8rem}
.facts dl{grid-template-columns:1fr;gap:0}.facts dd{margin-bottom:.5rem}
}
@media print{
:root{color-scheme:light;--paper:#fff;--card:#f6f6f2;--ink:#000;--soft:#222;--muted:#444;--hair:#ddd;
--rule:#aaa;
--accent:#0a62a0;--good:#0b6e4f;--bad:#a8321a;--warn:#8a5a00;--warn-paper:#fff;--best:#f3f6f9;
--ct:#000;--cc:#666;--c0:#0067a8;--c1:#b8480a;--c2:#007a5a;--c3:#98478c;--c4:#806000;--c5:#5a55c9}
@page{margin:16mm 14mm}
body{font-size:10.5pt}
main{max-width:none;padding:0}
section{margin-top:2rem}
.charts{grid-template-columns:1fr 1fr;gap:1.4rem 1.2rem}
.chart{font-size:13.5px}
.figures{grid-template-columns:repeat(4,1fr);gap:1rem}.figures .big{font-size:17pt}
.verdict{font-size:15pt;margin-top:1.4rem}.verdict.more{font-size:10.5pt}
table{font-size:8.5pt}th,td{padding:.45rem 0 .45rem .4rem}th:first-child{padding-left:.3rem}
.answers .text,.prompt{font-size:9pt;line-height:1.45}
.sample{padding:1rem 0}
.sub{font-size:7pt}thead th{font-size:7pt;white-space:normal}.sub.note{max-width:18ch}
.m2{--n:2}.m3{--n:3}.m4{--n:4}
figure,.sample,.answers>div,tr,.warnings,.figures>div{break-inside:avoid}
h2,.prompt,summary{break-after:avoid}
details::details-content{content-visibility:visible;block-size:auto;display:block}
summary{list-style:none}
summary::-webkit-details-marker{display:none}
}
"""
