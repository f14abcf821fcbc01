package lab

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"slices"
	"strings"
)

// The size of a plot and of what stands around it, in pixels.
const (
	plotWidth, plotHeight   = 420, 260
	marginLeft, marginRight = 58, 12
	marginTop, marginBottom = 30, 38
	innerWidth              = plotWidth - marginLeft - marginRight
	innerHeight             = plotHeight - marginTop - marginBottom
	colours                 = 8  // told apart by colour; further series are dashed too
	markers                 = 5  // shapes of points
	logFrom                 = 30 // ratio of extremes from which an axis is logarithmic
)

// point is a value with its confidence interval; lo and hi are y where there is
// none.
type point struct{ x, y, lo, hi float64 }

// series is one line of a plot.
type series struct {
	name   string
	style  int // which colour, dash and marker; negative is a plain dashed line
	points []point
}

// plot is one diagram.
type plot struct {
	title, unit, xlabel string
	series              []series
	logX                bool
	lines               bool // no markers: the points lie close
}

// axis maps values to pixels.
type axis struct {
	lo, hi   float64
	from, to float64
	log      bool
}

func (a axis) at(v float64) float64 {
	share := (v - a.lo) / (a.hi - a.lo)
	if a.log {
		share = math.Log(max(v, a.lo)/a.lo) / math.Log(a.hi/a.lo)
	}
	return a.from + min(max(share, 0), 1)*(a.to-a.from)
}

// ticks returns round values on the axis, a handful.
func (a axis) ticks() []float64 {
	var out []float64
	if a.log {
		for e := math.Floor(math.Log10(a.lo)); e <= math.Ceil(math.Log10(a.hi)); e++ {
			for _, m := range []float64{1, 2, 5} {
				if v := m * math.Pow(10, e); v >= a.lo*0.999 && v <= a.hi*1.001 {
					out = append(out, v)
				}
			}
		}
		const many = 8
		for len(out) > many { // every second tick, from the first
			for i := range (len(out) + 1) / 2 {
				out[i] = out[2*i]
			}
			out = out[:(len(out)+1)/2]
		}
		return out
	}
	step := math.Pow(10, math.Floor(math.Log10((a.hi-a.lo)/4)))
	for _, m := range []float64{1, 2, 5, 10} {
		if (a.hi-a.lo)/(step*m) <= 6 {
			step *= m
			break
		}
	}
	for i := int(math.Ceil(a.lo/step - 1e-9)); float64(i)*step <= a.hi*(1+1e-9); i++ {
		out = append(out, float64(i)*step)
	}
	return out
}

// extent returns the extremes of what is finite and, for logarithms, positive.
func (p *plot) extent(of func(point) (lo, hi float64)) (lo, hi, least float64) {
	lo, hi, least = math.Inf(1), math.Inf(-1), math.Inf(1)
	for _, s := range p.series {
		for _, q := range s.points {
			a, b := of(q)
			lo, hi = min(lo, a), max(hi, b)
			if a > 0 {
				least = min(least, a)
			}
		}
	}
	return lo, hi, least
}

// axes chooses how values become pixels.
func (p *plot) axes() (x, y axis, ok bool) {
	xlo, xhi, xleast := p.extent(func(q point) (float64, float64) { return q.x, q.x })
	ylo, yhi, _ := p.extent(func(q point) (float64, float64) { return q.y, q.hi })
	if math.IsInf(xlo, 0) || math.IsInf(ylo, 0) {
		return x, y, false
	}
	x = axis{lo: xlo, hi: xhi, from: marginLeft, to: marginLeft + innerWidth}
	if p.logX && xhi > xleast {
		x.lo, x.log = xleast, true
	} else if pad := 0.06 * (xhi - xlo); pad > 0 {
		x.lo, x.hi = xlo-pad, xhi+pad
	} else {
		x.lo, x.hi = xlo-0.5, xhi+0.5
	}
	y = axis{lo: 0, hi: max(yhi*1.05, 1e-9), from: marginTop + innerHeight, to: marginTop}
	if !p.lines && ylo > 0 && yhi > logFrom*ylo {
		y.lo, y.log = ylo/1.3, true
	}
	return x, y, true
}

// svg draws the plot.
func (p *plot) svg() template.HTML {
	x, y, ok := p.axes()
	if !ok {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="plot" viewBox="0 0 %d %d" role="img" aria-label="%s">`, plotWidth, plotHeight, html.EscapeString(p.title+", "+p.unit+", over "+p.xlabel))
	fmt.Fprintf(&b, `<text class="title" x="%d" y="16">%s</text>`, marginLeft, html.EscapeString(p.title))
	for _, v := range y.ticks() {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`,
			marginLeft, marginLeft+innerWidth, y.at(v), y.at(v), marginLeft-6, y.at(v)+4, number(v))
	}
	for _, v := range x.ticks() {
		fmt.Fprintf(&b, `<line class="grid" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/><text class="tick" x="%.1f" y="%d" text-anchor="middle">%s</text>`,
			x.at(v), x.at(v), marginTop, marginTop+innerHeight, x.at(v), marginTop+innerHeight+15, number(v))
	}
	fmt.Fprintf(&b, `<text class="label" x="%d" y="%d" text-anchor="middle">%s</text>`, marginLeft+innerWidth/2, plotHeight-6, html.EscapeString(p.xlabel))
	fmt.Fprintf(&b, `<text class="label" x="14" y="%d" text-anchor="middle" transform="rotate(-90 14 %d)">%s</text>`,
		marginTop+innerHeight/2, marginTop+innerHeight/2, html.EscapeString(p.unit))
	for i := range p.series {
		p.draw(&b, &p.series[i], x, y)
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) //nolint:gosec // numbers, and names that are escaped
}

// draw draws one line, its band and its points.
func (p *plot) draw(b *strings.Builder, s *series, x, y axis) {
	if len(s.points) == 0 {
		return
	}
	class := styleClass(s.style)
	fmt.Fprintf(b, `<g class="%s"><title>%s</title>`, class, html.EscapeString(s.name))
	if !p.lines && len(s.points) > 1 {
		var band strings.Builder
		for _, q := range s.points {
			fmt.Fprintf(&band, "%.1f,%.1f ", x.at(q.x), y.at(q.hi))
		}
		for _, q := range slices.Backward(s.points) {
			fmt.Fprintf(&band, "%.1f,%.1f ", x.at(q.x), y.at(q.lo))
		}
		fmt.Fprintf(b, `<polygon class="band" points="%s"/>`, strings.TrimSpace(band.String()))
	}
	var line strings.Builder
	for _, q := range s.points {
		fmt.Fprintf(&line, "%.1f,%.1f ", x.at(q.x), y.at(q.y))
	}
	fmt.Fprintf(b, `<polyline points="%s"/>`, strings.TrimSpace(line.String()))
	if !p.lines && s.style >= 0 {
		for _, q := range s.points {
			if q.hi > q.lo {
				fmt.Fprintf(b, `<line class="whisker" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, x.at(q.x), x.at(q.x), y.at(q.lo), y.at(q.hi))
			}
			fmt.Fprintf(b, `<path class="mark" d="%s"><title>%s: %s ± %s %s at %s</title></path>`, marker(s.style, x.at(q.x), y.at(q.y)),
				html.EscapeString(s.name), number(q.y), number(q.hi-q.y), html.EscapeString(p.unit), number(q.x))
		}
	}
	b.WriteString("</g>")
}

// styleClass names the look of a series.
func styleClass(style int) string {
	if style < 0 {
		return "series reference"
	}
	return fmt.Sprintf("series s%d d%d", style%colours, min(style/colours, 1))
}

// marker is the outline of a point: shapes are told apart where colours are not.
func marker(style int, x, y float64) string {
	const r = 4.0
	switch style % markers {
	case 0:
		return fmt.Sprintf("M%.1f %.1fa%g %g 0 1 0 %g 0a%g %g 0 1 0 %g 0z", x-r, y, r, r, 2*r, r, r, -2*r)
	case 1:
		return fmt.Sprintf("M%.1f %.1fh%gv%gh%gz", x-r, y-r, 2*r, 2*r, -2*r)
	case 2:
		return fmt.Sprintf("M%.1f %.1fl%g %gl%g %gl%g %gz", x, y-1.3*r, 1.3*r, 1.3*r, -1.3*r, 1.3*r, -1.3*r, -1.3*r)
	case 3:
		return fmt.Sprintf("M%.1f %.1fl%g %gh%gz", x, y-1.2*r, 1.2*r, 2.2*r, -2.4*r)
	default:
		return fmt.Sprintf("M%.1f %.1fl%g %gh%gz", x, y+1.2*r, 1.2*r, -2.2*r, -2.4*r)
	}
}

// number prints a value shortly.
func number(v float64) string {
	a := math.Abs(v)
	switch {
	case a == 0 || a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a < 0.001:
		return fmt.Sprintf("%.1e", v)
	}
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.*f", max(2-int(math.Floor(math.Log10(a))), 0), v), "0"), ".")
}

// dots draws one value per policy with its interval, for a single load.
func dots(title, unit string, list []series) template.HTML {
	const rowHeight, label = 22, 190
	height := marginTop + rowHeight*len(list) + marginBottom
	p := plot{series: list}
	_, hi, _ := p.extent(func(q point) (float64, float64) { return q.lo, q.hi })
	if math.IsInf(hi, 0) {
		return ""
	}
	x := axis{lo: 0, hi: max(hi*1.05, 1e-9), from: label, to: plotWidth - marginRight}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="plot" viewBox="0 0 %d %d" role="img" aria-label="%s">`, plotWidth, height, html.EscapeString(title+", "+unit+", by policy"))
	fmt.Fprintf(&b, `<text class="title" x="12" y="16">%s</text>`, html.EscapeString(title))
	bottom := marginTop + rowHeight*len(list)
	for _, v := range x.ticks() {
		fmt.Fprintf(&b, `<line class="grid" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/><text class="tick" x="%.1f" y="%d" text-anchor="middle">%s</text>`,
			x.at(v), x.at(v), marginTop, bottom, x.at(v), bottom+15, number(v))
	}
	fmt.Fprintf(&b, `<text class="label" x="%d" y="%d" text-anchor="middle">%s</text>`, (label+plotWidth-marginRight)/2, height-6, html.EscapeString(unit))
	for i, s := range list {
		y := float64(marginTop + rowHeight*i + rowHeight/2)
		fmt.Fprintf(&b, `<text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text><g class="%s">`, label-8, y+4, html.EscapeString(s.name), styleClass(s.style))
		for _, q := range s.points {
			if q.hi > q.lo {
				fmt.Fprintf(&b, `<line class="whisker" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, x.at(q.lo), x.at(q.hi), y, y)
			}
			fmt.Fprintf(&b, `<path class="mark" d="%s"><title>%s: %s ± %s %s</title></path>`, marker(max(s.style, 0), x.at(q.y), y),
				html.EscapeString(s.name), number(q.y), number(q.hi-q.y), html.EscapeString(unit))
		}
		b.WriteString("</g>")
	}
	b.WriteString("</svg>")
	return template.HTML(b.String()) //nolint:gosec // numbers, and names that are escaped
}

// bars draws the share of each replica, one group per variant.
func bars(policy string, style int, shares []float64, fleet []Variant, top float64) template.HTML {
	const width, height, label = 420, 46, 150
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="plot" viewBox="0 0 %d %d" role="img" aria-label="%s">`, width, height,
		html.EscapeString("share of the requests that each replica got under "+policy))
	fmt.Fprintf(&b, `<text class="tick" x="%d" y="%d" text-anchor="end">%s</text><g class="%s">`, label-8, height-10, html.EscapeString(policy), styleClass(style))
	variant, within := 0, 0
	gaps := float64(max(len(fleet)-1, 0)) * 6
	each := (width - label - 4 - gaps) / float64(max(len(shares), 1))
	x := float64(label)
	for i, share := range shares {
		for variant < len(fleet) && within >= fleet[variant].Replicas {
			variant, within = variant+1, 0
			x += 6
		}
		name := ""
		if variant < len(fleet) {
			name = fleet[variant].Name
		}
		h := share / max(top, 1e-9) * (height - 12)
		fmt.Fprintf(&b, `<rect class="bar" x="%.2f" y="%.2f" width="%.2f" height="%.2f"><title>replica %d (%s): %.1f %%</title></rect>`,
			x, height-4-h, max(each*0.85, 0.3), h, i, html.EscapeString(name), 100*share)
		x += each
		within++
	}
	b.WriteString("</g></svg>")
	return template.HTML(b.String()) //nolint:gosec // numbers, and names that are escaped
}
