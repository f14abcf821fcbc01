package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"penstock.dev/penstock/internal/lab"
)

// printComparison prints, for every load, what was served and how fast.
func printComparison(w io.Writer, x *lab.Comparison) {
	for at := 0; at < len(x.Rows); {
		end := at + 1
		for end < len(x.Rows) && x.Rows[end].Load == x.Rows[at].Load {
			end++
		}
		rows := x.Rows[at:end]
		last := rows[len(rows)-1]
		fmt.Fprintf(w, "load %v: %d requests a run; an endless cache would hold %s of their prompt tokens\n",
			last.Load, last.Requests, last.Ceiling.Text(100, "%.1f", " %"))
		printTable(w, rows, lab.Served())
		printTable(w, rows, lab.Speed())
		fmt.Fprintln(w)
		at = end
	}
	for _, n := range x.Notes {
		fmt.Fprintln(w, n)
	}
	runs := "1 seed, no confidence intervals"
	if x.Seeds > 1 {
		runs = fmt.Sprintf("mean over %d seeds ± half of the 95 %% confidence interval", x.Seeds)
	}
	fmt.Fprintf(w, "%d replicas, %s; virtual time\n", x.Replicas, runs)
}

func printTable(w io.Writer, rows []lab.Row, columns []lab.Column) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := make([]string, 0, len(columns)+1)
	for _, c := range columns {
		line = append(line, c.Head)
	}
	fmt.Fprintln(t, strings.Join(line, "\t")+"\t")
	for i := range rows {
		line = line[:0]
		for _, c := range columns {
			line = append(line, c.Text(&rows[i]))
		}
		fmt.Fprintln(t, strings.Join(line, "\t")+"\t")
	}
	t.Flush()
}
