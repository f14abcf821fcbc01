//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one line of the table: a measure, by subject.
type row struct {
	Name     string            `json:"name"`
	Unit     string            `json:"unit"`
	Subjects map[string]figure `json:"subjects"`
	scale    float64           // from seconds, bytes, … to the unit
}

// goal is a promise and what came of it.
type goal struct {
	Name  string  `json:"name"`
	Value figure  `json:"value"`
	Limit float64 `json:"limit"`
	Low   float64 `json:"low,omitempty"` // least value, where too little is wrong too
	Unit  string  `json:"unit"`
	Met   bool    `json:"met"`
	Void  bool    `json:"void,omitempty"` // not measured: the machine was too busy
}

// report is a run's outcome.
type report struct {
	Machine map[string]string `json:"machine"`
	Quick   bool              `json:"quick"`
	Busy    bool              `json:"busy"` // slices on a busy machine were counted: not valid as figures
	Seconds float64           `json:"seconds"`
	Driver  float64           `json:"driverBusy"`  // median busy share of the core that measures
	Voided  int               `json:"voidSlices"`  // measured again because the machine was busy
	Load    string            `json:"loadAverage"` // of the machine, at the start
	Rows    []row             `json:"figures"`
	Goals   []goal            `json:"goals"`
	least   int               // rounds that a figure needs
	versus  bool              // another build of the gateway is in the table
}

// add puts a measure into the table.
func (r *report) add(name, unit string, scale float64, by map[string][]float64) {
	w := row{Name: name, Unit: unit, Subjects: map[string]figure{}, scale: scale}
	for subject, v := range by {
		w.Subjects[subject] = figureOf(scaled(v, scale))
	}
	r.Rows = append(r.Rows, w)
}

func scaled(v []float64, by float64) []float64 {
	out := slices.Clone(v)
	for i := range out {
		out[i] *= by
	}
	return out
}

// promise judges a goal by the median. Too few valid rounds are a miss.
func (r *report) promise(name, unit string, low, limit float64, v []float64) {
	g := goal{Name: name, Unit: unit, Low: low, Limit: limit, Value: figureOf(v)}
	g.Void = len(v) < r.least
	g.Met = !g.Void && g.Value.Median <= limit && g.Value.Median >= low
	r.Goals = append(r.Goals, g)
}

// missed names the goals that were not met.
func (r *report) missed() []string {
	var out []string
	for _, g := range r.Goals {
		switch {
		case g.Void:
			out = append(out, g.Name+" (void: core too busy)")
		case !g.Met:
			out = append(out, fmt.Sprintf("%s (%.3g %s, limit %.3g)", g.Name, g.Value.Median, g.Unit, g.Limit))
		}
	}
	return out
}

// write prints the tables.
func (r *report) write(w io.Writer) error {
	fmt.Fprintf(w, "%s, %s, %s, %s\n", r.Machine["cpu"], r.Machine["kernel"], r.Machine["go"], r.Machine["haproxy"])
	fmt.Fprintf(w, "subjects on core %d with GOMAXPROCS=1, load and mocks on core %d (median %.0f %% busy); load average %s; %d slices void\n\n",
		subjectCore, driverCore, 100*r.Driver, r.Load, r.Voided)
	if r.Busy {
		fmt.Fprint(w, "NOT VALID as figures: slices on a busy machine were counted\n\n")
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	subjects := []string{penstock, haproxy, floor, direct}
	if r.versus {
		subjects = append(subjects, versus)
	}
	fmt.Fprintf(t, "figure, median [95 %%]\tunit\t%s\n", strings.Join(subjects, "\t"))
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%s\t%s", row.Name, row.Unit)
		for _, s := range subjects {
			if f, ok := row.Subjects[s]; ok {
				fmt.Fprintf(t, "\t%.4g [%.4g, %.4g]", f.Median, f.Low, f.High)
			} else {
				fmt.Fprint(t, "\t-")
			}
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintln(t, "\ngoal\tlimit\tmeasured [95 %]\t")
	for _, g := range r.Goals {
		verdict := "met"
		if g.Void {
			verdict = "VOID"
		} else if !g.Met {
			verdict = "MISSED"
		}
		limit := fmt.Sprintf("≤ %.4g %s", g.Limit, g.Unit)
		if g.Low > 0 {
			limit = fmt.Sprintf("%.4g to %.4g %s", g.Low, g.Limit, g.Unit)
		}
		fmt.Fprintf(t, "%s\t%s\t%.4g [%.4g, %.4g]\t%s\n", g.Name, limit, g.Value.Median, g.Value.Low, g.Value.High, verdict)
	}
	return t.Flush()
}

func (r *report) json(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// summary is the last line.
func (r *report) summary() string {
	missed := r.missed()
	s := fmt.Sprintf("bench-gateway: %d of %d goals met in %.0f s", len(r.Goals)-len(missed), len(r.Goals), r.Seconds)
	if len(missed) > 0 {
		s += "; missed: " + strings.Join(missed, "; ")
	}
	return s
}

// machine says where a run took place.
func machine(o options) map[string]string {
	m := map[string]string{"go": runtime.Version(), "cpu": "unknown processor", "kernel": "unknown kernel", "haproxy": "no haproxy"}
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(raw)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				// runtime.NumCPU would count the cores that this process is pinned to.
				m["cpu"] = fmt.Sprintf("%d x %s", strings.Count(string(raw), "processor\t"), strings.TrimSpace(v))
			}
		}
	}
	if raw, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m["kernel"] = "Linux " + strings.TrimSpace(string(raw))
	}
	if out, err := exec.Command(o.haproxy, "-v").Output(); err == nil {
		first, _, _ := strings.Cut(string(out), " -")
		m["haproxy"] = strings.TrimSpace(first)
	}
	m["time"] = time.Now().UTC().Format(time.RFC3339)
	return m
}

// loadAverage is what the machine says of its last minutes.
func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(raw))[:3], " ")
}

// single judges a goal that is measured once; without a value it is void.
func (r *report) single(name, unit string, limit float64, v ...float64) {
	g := goal{Name: name, Unit: unit, Limit: limit, Value: figureOf(v), Void: len(v) == 0}
	g.Met = !g.Void && g.Value.Median <= limit
	r.Goals = append(r.Goals, g)
}
