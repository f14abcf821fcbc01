package lab

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/sim"
)

// report writes the report of some cells.
func report(t *testing.T, cells []Cell, spoil func(*Comparison)) string {
	t.Helper()
	s := scene(t, 20)
	x := mustCompare(t, s, cells, mustRunAll(t, s, cells))
	x.Settings = s.Describe()
	spoil(x)
	var b bytes.Buffer
	if err := x.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestReportIsOneWholeFile(t *testing.T) {
	policies := []string{"predictive", "p2c", "round-robin", "random", "least-request", "prefix-affinity", "llm-d", "dynamo", "sglang", "aibrix"}
	for name, cells := range map[string][]Cell{
		"loads": Grid(policies, []float64{0.5, 1, 3}, 2), "one load": Grid(policies, []float64{1}, 2), "one seed": Grid(policies[:2], []float64{1, 2}, 1),
		"all refused": Grid(policies[:1], []float64{1}, 1),
	} {
		command := `penstock simulate --policy '<b>&"'`
		page := report(t, cells, func(x *Comparison) {
			x.Command = command
			if name == "all refused" {
				x.Rows[0] = newRow([]*sim.Result{{Arrived: 3, Refused: 3, PerReplica: []int{0, 0, 0}}}, 0)
			}
		})
		if again := report(t, cells, func(x *Comparison) { x.Command = command }); name != "all refused" && again != page {
			t.Errorf("%s: two reports of the same results differ", name)
		}
		if found := regexp.MustCompile(`(?i)https?://|src=|<link|@import|url\(|NaN|Inf\b`).FindString(page); found != "" {
			t.Errorf("%s: the report has %q", name, found)
		}
		plots, text := wellFormed(t, name, page)
		if !strings.Contains(text, command) {
			t.Errorf("%s: the command is not told as it was", name)
		}
		if name == "all refused" {
			continue
		}
		for _, c := range cells {
			if !strings.Contains(text, c.Policy) {
				t.Errorf("%s: nothing of %s", name, c.Policy)
			}
		}
		// Twelve figures; two distributions and the replicas of each policy per load.
		loads := len(slices.Compact(slices.Sorted(func(yield func(float64) bool) {
			for _, c := range cells {
				if !yield(c.Load) {
					return
				}
			}
		})))
		seen := map[string]bool{}
		for _, c := range cells {
			seen[c.Policy] = true
		}
		if want := 12 + loads*(2+len(seen)) + len(seen); plots != want {
			t.Errorf("%s: %d drawings, want %d", name, plots, want)
		}
	}
}

// wellFormed reads a page as XML, counts its drawings, each of which must have a
// name or be hidden from readers, and returns its text.
func wellFormed(t *testing.T, name, page string) (drawings int, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(page))
	d.Entity = xml.HTMLEntity
	var b strings.Builder
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return drawings, b.String()
		}
		if err != nil {
			t.Fatalf("%s: not well-formed: %v", name, err)
		}
		switch tok := tok.(type) {
		case xml.CharData:
			b.Write(tok)
		case xml.StartElement:
			if tok.Name.Local != "svg" {
				continue
			}
			drawings++
			if !slices.ContainsFunc(tok.Attr, func(a xml.Attr) bool {
				return (a.Name.Local == "aria-label" || a.Name.Local == "aria-hidden") && a.Value != ""
			}) {
				t.Errorf("%s: a drawing has no name", name)
			}
		}
	}
}

func TestTicksAreRoundAndFew(t *testing.T) {
	for _, a := range []axis{{lo: 0, hi: 1}, {lo: 0, hi: 0.0037}, {lo: 0.64, hi: 1.36}, {lo: 0, hi: 98765}, {lo: 0.01, hi: 300, log: true}, {lo: 0.4, hi: 1.1, log: true}} {
		ticks := a.ticks()
		if len(ticks) < 2 || len(ticks) > 8 {
			t.Errorf("%+v: ticks %v", a, ticks)
		}
		for _, v := range ticks {
			if v < a.lo*0.99 || v > a.hi*1.01 {
				t.Errorf("%+v: tick %v is outside", a, v)
			}
		}
	}
}

func TestPlotsPutValuesWhereTheyBelong(t *testing.T) {
	lin, lg := axis{lo: 0, hi: 10, from: 100, to: 200}, axis{lo: 1, hi: 100, from: 100, to: 200, log: true}
	if lin.at(5) != 150 || math.Abs(lg.at(10)-150) > 1e-9 || lin.at(-3) != 100 || lg.at(0) != 100 || lin.at(11) != 200 {
		t.Errorf("linear %v, logarithmic %v", lin.at(5), lg.at(10))
	}
	for v, want := range map[float64]string{0: "0", 1234.5: "1234", 12.34: "12.3", 2: "2", 0.5: "0.5", 0.012345: "0.0123", 0.00001: "1.0e-05"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}
