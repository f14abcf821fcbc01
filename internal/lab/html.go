package lab

import (
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"

	"penstock.dev/penstock/internal/stat"
)

// metric is a figure that is plotted over load.
type metric struct {
	title, unit string
	scale       float64
	of          func(r *Row) Interval
}

// metrics are the figures plotted, in groups.
func metrics() [][]metric {
	spread := func(name, unit string, scale float64, of func(r *Row) *Spread) []metric {
		return []metric{
			{name + " p50", unit, scale, func(r *Row) Interval { return of(r).P50 }},
			{name + " p90", unit, scale, func(r *Row) Interval { return of(r).P90 }},
			{name + " p99", unit, scale, func(r *Row) Interval { return of(r).P99 }},
		}
	}
	return [][]metric{
		{
			{"Good requests", "per second", 1, func(r *Row) Interval { return r.GoodRate }},
			{"Share of requests that were good", "%", 100, func(r *Row) Interval { return r.GoodShare }},
			{"Output", "tokens per second", 1, func(r *Row) Interval { return r.Output }},
		},
		spread("Time to first token", "s", 1, func(r *Row) *Spread { return &r.TTFT }),
		spread("Time per output token", "ms", 1000, func(r *Row) *Spread { return &r.TPOT }),
		{
			{"Cached share of prompt tokens", "%", 100, func(r *Row) Interval { return r.Cached }},
			{"Imbalance: busiest replica over the mean", "times", 1, func(r *Row) Interval { return r.Imbalance }},
			{"Cost of a million output tokens", "US dollars", 1, func(r *Row) Interval { return r.CostPerTok }},
		},
	}
}

// section is a group of plots of the report.
type section struct {
	Title string
	Plots []template.HTML
}

// loadTables are the figures of one load.
type loadTables struct {
	Load     float64
	Requests int
	Ceiling  string
	Tables   []table
}

type table struct {
	Caption string
	Heads   []string
	Rows    [][]string
}

// legendEntry is one policy with its look.
type legendEntry struct {
	Name string
	Icon template.HTML
}

// page is what the template shows.
type page struct {
	Title    string
	Command  string
	Settings []Setting
	Notes    []string
	Seeds    int
	Legend   []legendEntry
	Loads    []loadTables
	Sections []section
}

// WriteHTML writes a report of the comparison: one file that refers to nothing
// outside it. Equal comparisons give equal bytes.
func (c *Comparison) WriteHTML(w io.Writer) error {
	t, err := template.New("report").Parse(reportTemplate)
	if err != nil {
		return fmt.Errorf("report template: %w", err)
	}
	names := c.policies()
	p := page{Title: "Policies compared", Command: c.Command, Settings: c.Settings, Notes: c.Notes, Seeds: c.Seeds}
	for i, n := range names {
		icon := fmt.Sprintf(`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><g class="%s"><path class="mark" d="%s"/></g></svg>`, styleClass(i), marker(i, 8, 8))
		p.Legend = append(p.Legend, legendEntry{n, template.HTML(icon)}) //nolint:gosec // made of numbers
	}
	for _, load := range c.loads() {
		rows := c.at(load)
		l := loadTables{Load: load, Requests: rows[len(rows)-1].Requests, Ceiling: rows[len(rows)-1].Ceiling.Text(100, "%.1f", " %")}
		l.Tables = append(l.Tables, tableOf("What was served", rows, Served()), tableOf("How fast, and how well that was foreseen", rows, Speed()))
		p.Loads = append(p.Loads, l)
	}
	p.Sections = c.sections(names)
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func tableOf(caption string, rows []Row, columns []Column) table {
	t := table{Caption: caption}
	for _, col := range columns {
		t.Heads = append(t.Heads, col.Head)
	}
	for i := range rows {
		var line []string
		for _, col := range columns {
			line = append(line, col.Text(&rows[i]))
		}
		t.Rows = append(t.Rows, line)
	}
	return t
}

// policies returns the names of the rows, each once, in order.
func (c *Comparison) policies() []string {
	var names []string
	for i := range c.Rows {
		if !slices.Contains(names, c.Rows[i].Policy) {
			names = append(names, c.Rows[i].Policy)
		}
	}
	return names
}

// loads returns the loads of the rows, each once, in rising order.
func (c *Comparison) loads() []float64 {
	var loads []float64
	for i := range c.Rows {
		if !slices.Contains(loads, c.Rows[i].Load) {
			loads = append(loads, c.Rows[i].Load)
		}
	}
	slices.Sort(loads)
	return loads
}

// at returns the rows of a load.
func (c *Comparison) at(load float64) []Row {
	var rows []Row
	for i := range c.Rows {
		if c.Rows[i].Load == load {
			rows = append(rows, c.Rows[i])
		}
	}
	return rows
}

// sections draws all plots.
func (c *Comparison) sections(names []string) []section {
	var out []section
	overLoad := section{Title: "Over load"}
	if len(c.loads()) == 1 {
		overLoad.Title = "By policy"
	}
	for _, group := range metrics() {
		for _, m := range group {
			if svg := c.metricPlot(m, names); svg != "" {
				overLoad.Plots = append(overLoad.Plots, svg)
			}
		}
	}
	out = append(out, overLoad)
	for _, load := range c.loads() {
		rows := c.at(load)
		s := section{Title: fmt.Sprintf("Distributions at load %v", load)}
		for _, d := range []struct {
			title, unit string
			scale       float64
			of          func(r *Row) *stat.Hist
		}{
			{"Share of requests by time to first token", "s", 1e-9, func(r *Row) *stat.Hist { return &r.ttft }},
			{"Share of requests by time per output token", "ms", 1e-6, func(r *Row) *stat.Hist { return &r.tpot }},
		} {
			p := plot{title: d.title, unit: "% of requests", xlabel: d.unit, logX: true, lines: true}
			for i := range rows {
				p.series = append(p.series, cdf(rows[i].Policy, slices.Index(names, rows[i].Policy), d.of(&rows[i]), d.scale))
			}
			s.Plots = append(s.Plots, p.svg())
		}
		top := 0.0
		for i := range rows {
			top = max(top, slices.Max(append(slices.Clone(rows[i].Shares), 0)))
		}
		out = append(out, s)
		b := section{Title: fmt.Sprintf("Which replica got how many requests at load %v", load)}
		for i := range rows {
			fleet := c.fleet
			if rows[i].recorded {
				fleet = nil // replicas in the journal's order, not by variant
			}
			b.Plots = append(b.Plots, bars(rows[i].Policy, slices.Index(names, rows[i].Policy), rows[i].Shares, fleet, top))
		}
		out = append(out, b)
	}
	return out
}

// metricPlot draws a figure over load, or by policy where there is but one load.
func (c *Comparison) metricPlot(m metric, names []string) template.HTML {
	var list []series
	ceiling := series{name: "an endless cache", style: -1}
	for i, name := range names {
		s := series{name: name, style: i}
		for k := range c.Rows {
			r := &c.Rows[k]
			if r.Policy != name {
				continue
			}
			if q, ok := pointOf(r.Load, m.of(r), m.scale); ok {
				s.points = append(s.points, q)
			}
			if q, ok := pointOf(r.Load, r.Ceiling, m.scale); ok && i == len(names)-1 {
				ceiling.points = append(ceiling.points, q)
			}
		}
		slices.SortFunc(s.points, byX)
		list = append(list, s)
	}
	slices.SortFunc(ceiling.points, byX)
	if m.title == metrics()[3][0].title {
		list = append(list, ceiling)
	}
	if len(c.loads()) == 1 {
		return dots(m.title, m.unit, list)
	}
	p := plot{title: m.title, unit: m.unit, xlabel: "load", series: list}
	return p.svg()
}

func byX(a, b point) int {
	if a.x < b.x {
		return -1
	}
	return 1
}

// pointOf is an interval at a load.
func pointOf(load float64, v Interval, scale float64) (point, bool) {
	if !v.Known() {
		return point{}, false
	}
	half := v.Half * scale
	if math.IsNaN(half) {
		half = 0
	}
	y := v.Mean * scale
	return point{load, y, y - half, y + half}, true
}

// cdf is the share of observations up to each value, in per cent.
func cdf(name string, style int, h *stat.Hist, scale float64) series {
	s := series{name: name, style: style}
	if h.Count() == 0 {
		return s
	}
	for _, q := range cdfAt() {
		s.points = append(s.points, point{h.Quantile(q) * scale, 100 * q, 100 * q, 100 * q})
	}
	return s
}

// cdfAt are the shares at which a distribution is drawn, closer towards its end.
func cdfAt() []float64 {
	var at []float64
	for i := 1; i < 98; i++ {
		at = append(at, float64(i)/100)
	}
	for i := 0; i <= 30; i++ {
		at = append(at, 0.98+0.019*float64(i)/30)
	}
	return append(at, 1)
}
