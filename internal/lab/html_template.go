package lab

// reportTemplate is the report. It is well-formed XML too, so that a test can
// read it. Colours are those of Okabe and Ito (2008), which colour-blind people
// tell apart.
const reportTemplate = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{{.Title}}</title>
<style>
:root { color-scheme: light dark; --back: #ffffff; --text: #1a1a1a; --faint: #5c5c5c; --grid: #dddddd; --panel: #f6f6f6;
  --c0: #0072b2; --c1: #d55e00; --c2: #007f5f; --c3: #b0508a; --c4: #8a6d00; --c5: #2f7fb8; --c6: #6b6b6b; --c7: #9a3b26; }
@media (prefers-color-scheme: dark) { :root { --back: #16181b; --text: #e8e8e8; --faint: #a8a8a8; --grid: #3a3d42; --panel: #202327;
  --c0: #56b4e9; --c1: #f0894a; --c2: #2fc79a; --c3: #e08fbf; --c4: #f0e442; --c5: #8fc6f0; --c6: #b5b5b5; --c7: #e69f00; } }
body { font: 15px/1.5 system-ui, sans-serif; background: var(--back); color: var(--text); margin: 0 auto; padding: 1.5rem; max-width: 84rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
pre { background: var(--panel); padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; } dt { color: var(--faint); } dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
caption { text-align: left; color: var(--faint); }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th[scope=row], thead th:first-child { text-align: left; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plot { width: 26rem; max-width: 100%; background: var(--panel); }
.icon { width: 1rem; height: 1rem; vertical-align: -.15rem; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: .4rem 0; margin: 0; position: sticky; top: 0; background: var(--back); }
svg text { fill: var(--text); font-size: 11px; } svg .title { font-weight: 600; font-size: 12px; } svg .label { fill: var(--faint); }
.grid { stroke: var(--grid); stroke-width: 1; }
.series polyline { fill: none; stroke: currentColor; stroke-width: 2; } .series .band { fill: currentColor; opacity: .15; stroke: none; }
.series .mark, .series .bar { fill: currentColor; } .series .whisker { stroke: currentColor; stroke-width: 1.5; }
.series.d1 polyline { stroke-dasharray: 6 3; } .series.d1 .mark { fill: var(--back); stroke: currentColor; stroke-width: 2; }
.series.reference { color: var(--faint); } .series.reference polyline { stroke-dasharray: 2 3; }
.s0 { color: var(--c0); } .s1 { color: var(--c1); } .s2 { color: var(--c2); } .s3 { color: var(--c3); }
.s4 { color: var(--c4); } .s5 { color: var(--c5); } .s6 { color: var(--c6); } .s7 { color: var(--c7); }
</style>
</head>
<body>
<main>
<h1>{{.Title}}</h1>
<pre>{{.Command}}</pre>
<dl>{{range .Settings}}<dt>{{.Name}}</dt><dd>{{.Value}}</dd>{{end}}<dt>runs</dt><dd>{{.Seeds}} of each policy and load, each with a seed of its own</dd></dl>
{{range .Notes}}<p><strong>Note:</strong> {{.}}.</p>
{{end}}{{range .Loads}}<section>
<h2>Load {{.Load}}</h2>
<p>{{.Requests}} requests a run. A cache without end, shared by all replicas, would hold {{.Ceiling}} of their prompt tokens.
{{if gt $.Seeds 1}}Figures are means over seeds ± half of the 95 % confidence interval.{{else}}One seed: no confidence intervals.{{end}}</p>
{{range .Tables}}<div class="scroll" tabindex="0" role="region" aria-label="{{.Caption}}"><table>
<caption>{{.Caption}}</caption>
<thead><tr>{{range .Heads}}<th scope="col">{{.}}</th>{{end}}</tr></thead>
<tbody>
{{range .Rows}}<tr>{{range $i, $x := .}}{{if eq $i 0}}<th scope="row">{{$x}}</th>{{else}}<td>{{$x}}</td>{{end}}{{end}}</tr>
{{end}}</tbody>
</table></div>
{{end}}</section>
{{end}}<ul class="legend" aria-label="Policies">{{range .Legend}}<li>{{.Icon}} {{.Name}}</li>{{end}}</ul>
{{range .Sections}}<section>
<h2>{{.Title}}</h2>
<div class="plots">
{{range .Plots}}{{.}}
{{end}}</div>
</section>
{{end}}<section>
<h2>How to read this</h2>
<ul>
<li>All times are virtual. The routing code is the one that serves; the engines are simulated, and the router learns of them what a gateway would, as late as it would.</li>
<li>Bands and whiskers are 95 % confidence intervals over seeds. Policies whose intervals overlap widely are not told apart: run more seeds.</li>
<li>"cached" is the share of prompt tokens that engines had in their caches. "imbalance" counts requests, so where replicas differ in speed, even is not best.</li>
<li>"error" is the median of |predicted / measured − 1| of what was predicted when a request was sent.</li>
<li>Costs are of the replicas for the time from the first request to the last answer: stated by the fleet, or rough list prices of accelerators.</li>
<li>Not simulated: transfer of KV between engines, several gateways, answers whose length depends on who gives them, and clients that change their minds.</li>
</ul>
</section>
</main>
</body>
</html>
`
