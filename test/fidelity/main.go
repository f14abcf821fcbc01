// Command fidelity measures how near the models of this repository come to what
// was measured on real engines, against data that stands beside the checkout,
// and exits with 1 when a goal is missed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// goal is one figure with the limit it must not exceed.
type goal struct {
	name       string
	got, limit float64
	ok         bool
}

// atMost is the goal that got is no more than limit.
func atMost(name string, got, limit float64) goal {
	return goal{name: name, got: got, limit: limit, ok: got <= limit} // not a number is no success
}

// failed is the goal that could not be measured at all.
func failed(name string) goal { return goal{name: name} }

// section is a group of goals measured together; run tells what it finds on the
// way.
type section struct {
	name string
	run  func(w io.Writer) []goal
}

// sections lists what is measured, from data in the directory shared.
func sections(shared string) []section {
	return []section{
		{"points", func(w io.Writer) []goal { return points(w, shared) }},
		{"ladder", func(w io.Writer) []goal { return ladder(w, shared) }},
		{"wide-ep", wideEP},
	}
}

func main() {
	shared := flag.String("shared", "", "directory with the measured data; default ../shared beside the module's root")
	only := flag.String("only", "", "the sections to run, separated by commas; default all")
	flag.Parse()
	dir := *shared
	if dir == "" {
		root, err := moduleRoot()
		if err != nil {
			fmt.Fprintln(os.Stderr, "fidelity:", err)
			os.Exit(2)
		}
		dir = filepath.Join(root, "..", "shared")
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err != nil {
		fmt.Fprintf(os.Stderr, "fidelity: no measured data: %v; say where it is with --shared DIR, the directory that holds data/\n", err)
		os.Exit(2)
	}
	var all []goal
	for _, s := range sections(dir) {
		if *only != "" && !strings.Contains(","+*only+",", ","+s.name+",") {
			continue
		}
		fmt.Printf("== %s\n", s.name)
		goals := s.run(os.Stdout)
		for _, g := range goals {
			fmt.Println(g)
		}
		all = append(all, goals...)
	}
	summary, ok := sum(all)
	fmt.Println(summary)
	if !ok {
		os.Exit(1)
	}
}

// String returns a goal as a line of the report.
func (g goal) String() string {
	mark := "ok    "
	if !g.ok {
		mark = "MISSED"
	}
	return fmt.Sprintf("  %s %-62s %8.4g  (at most %.4g)", mark, g.name, g.got, g.limit)
}

// sum says in one line how the goals went.
func sum(goals []goal) (line string, ok bool) {
	var missed []string
	for _, g := range goals {
		if !g.ok {
			missed = append(missed, fmt.Sprintf("%s %.4g > %.4g", g.name, g.got, g.limit))
		}
	}
	if len(goals) == 0 {
		return "fidelity: nothing was measured", false
	}
	if len(missed) == 0 {
		return fmt.Sprintf("fidelity: all %d goals met", len(goals)), true
	}
	return fmt.Sprintf("fidelity: %d of %d goals missed: %s", len(missed), len(goals), strings.Join(missed, "; ")), false
}

// moduleRoot returns the directory of go.mod at or above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod here or above: run from the checkout, or give --shared")
		}
		dir = up
	}
}
